"""A look at a dataset before a run begins: how many pictures, of which sizes and kinds. Only headers are read.

Which files are looked at depends on the data alone, so that the same data look the same on every machine.
"""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import IO

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.datasets.image_files import LISTINGS
from tutelage.data.files.decoding import Header, read_header
from tutelage.data.files.listing import FileState, Listing
from tutelage.data.files.names import ALL, UNLABELLED, printable
from tutelage.data.shards.pools import find_shards
from tutelage.data.splits import TEST_FRACTION
from tutelage.errors import UserError

MAX_HEADERS = 1000  # pictures whose headers are read, evenly spaced in the sorted list
PHOTOGRAPHS = "JPEG"  # the format of photographs; drawings and screens are PNGs, GIFs and the like


@dataclass(frozen=True)
class DataLook:
    """What a dataset looks like.

    Attributes:
        classes: their number.
        labels: labelled images that are trained on, under the label budget and without the test set; about as many
            where the data has no test set.
        pool: images without labels; None for shards, which are not counted.
        test: images of the data's own test set; 0 if a part of the others will be tested on.
        side: the median of the longer sides, in pixels.
        sides: the smallest and the largest longer side.
        elongation: the median of the longer over the shorter side.
        is_grey: whether no picture has colours.
        photographs: share of the pictures that are JPEGs.
        formats: the names of the formats, the most frequent one first.
    """

    classes: int
    labels: int
    pool: int | None
    test: int
    side: int
    sides: tuple[int, int]
    elongation: float
    is_grey: bool
    photographs: float
    formats: tuple[str, ...]

    @property
    def has_pool(self) -> bool:
        """Whether there are images without labels."""
        return self.pool is None or self.pool > 0


def look_at_data(config: DataConfig) -> DataLook | None:
    """Return what a dataset of people's own pictures looks like; None for one of which the config says all.

    Torch is not imported.

    Raises:
        UserError: the files cannot be listed, or none of those that were tried is an image.
    """
    name = config.target.rpartition(".")[2]
    if config.is_ours and name in LISTINGS:
        return _look_at_files(LISTINGS[name](config), config)
    if config.is_ours and name == "HuggingFace":
        return _look_at_rows(config)
    return None


def _look_at_files(listing: Listing, config: DataConfig) -> DataLook:
    """Return what listed files look like."""
    parts = np.array([entry.part for entry in listing.entries])
    labels = np.array([entry.label or "" for entry in listing.entries])
    trained = np.isin(parts, ("train", ALL)) & (labels != "")
    unlabelled = parts == UNLABELLED
    seen = np.flatnonzero(trained | unlabelled)
    files = tuple((listing.entries[number].path, listing.entries[number].state) for number in _spread(seen))
    has_shards = config.unlabelled is not None and find_shards(config.unlabelled) is not None
    pool = None if has_shards else int(unlabelled.sum())
    test = int((parts == "test").sum())
    counts = np.unique(labels[trained], return_counts=True)[1]
    return _describe(_read_headers(files, config.max_pixels), listing.setting, counts, pool, test, config)


def _look_at_rows(config: DataConfig) -> DataLook:
    """Return what a dataset of the library ``datasets`` looks like."""
    from tutelage.data.datasets.huggingface import read_rows

    rows = read_rows(config)
    train, is_labelled = rows.indices["train"], rows.labels >= 0
    trained = train[is_labelled[train]]
    unlabelled = np.concatenate([train[~is_labelled[train]], rows.indices.get(UNLABELLED, train[:0])])
    seen = _spread(np.sort(np.concatenate([trained, unlabelled])))
    contents = ((f"image {number}", io.BytesIO(rows.images.read_encoded(number))) for number in seen)
    headers = tuple(_try_headers(contents, config.max_pixels))
    counts = np.unique(rows.labels[trained], return_counts=True)[1]
    setting, test = f"data.root={printable(config.root or '')}", len(rows.indices.get("test", ()))
    return _describe(headers, setting, counts, len(unlabelled), test, config)


def _describe(
    headers: Sequence[Header], setting: str, counts: np.ndarray, pool: int | None, test: int, config: DataConfig
) -> DataLook:
    """Return what is known from headers and from the number of labelled training images of each class (C,)."""
    if not headers:
        raise UserError(f"{setting}: none of its pictures can be read")
    sides = [max(header.width, header.height) for header in headers]
    formats = Counter(header.format for header in headers)
    total = int(counts.sum()) if config.limit is None else min(int(counts.sum()), config.limit)
    total -= 0 if test else max(1, total // TEST_FRACTION)
    labels = _count_labels(counts if test else counts - counts // TEST_FRACTION, total, config)
    return DataLook(
        classes=len(counts),
        labels=labels,
        pool=None if pool is None else pool + total - labels,
        test=test,
        side=round(median(sides)),
        sides=(min(sides), max(sides)),
        elongation=median(side / min(header.width, header.height) for side, header in zip(sides, headers, strict=True)),
        is_grey=all(header.is_grey for header in headers),
        photographs=formats[PHOTOGRAPHS] / len(headers),
        formats=tuple(name for name, _ in formats.most_common()),
    )


def _count_labels(available: np.ndarray, total: int, config: DataConfig) -> int:
    """Return how many images keep their labels, of about so many of each class (C,), ``total`` in all."""
    if config.labels_per_class is not None:
        return int(np.minimum(available, config.labels_per_class).sum())
    if config.labels_share is not None:
        return max(len(available), round(config.labels_share * total))
    return total if config.labels is None else min(total, int(config.labels))


def _spread(numbers: np.ndarray) -> list[int]:
    """Return at most ``MAX_HEADERS`` of some numbers, evenly spaced."""
    places = np.linspace(0, len(numbers) - 1, min(len(numbers), MAX_HEADERS)).round().astype(int)
    chosen: list[int] = numbers[places].tolist()
    return chosen


@lru_cache(maxsize=4)  # the jobs of a sweep look at the same files
def _read_headers(files: tuple[tuple[str, FileState], ...], max_pixels: int) -> tuple[Header, ...]:
    """Return the headers of files, each given by its path and state, without those that are no images."""
    return tuple(_try_headers(((printable(path), Path(path)) for path, _ in files), max_pixels))


def _try_headers(files: Iterator[tuple[str, Path | IO[bytes]]], max_pixels: int) -> Iterator[Header]:
    """Yield the headers of the images among named files; the scan before a run says what is wrong with others."""
    for name, file in files:
        try:
            yield read_header(file, name, max_pixels)
        except UserError:
            continue
