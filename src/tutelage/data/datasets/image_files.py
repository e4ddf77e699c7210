"""Image files as a dataset: those of a folder, of a table, of ImageNet.

torchvision.datasets.ImageFolder reads a folder too. Ours also reads tables, checks every image before a run begins, and
knows an unlabelled part and pools of shards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.datasets.download import OnProgress, ignore_progress
from tutelage.data.duplicates import find_duplicates
from tutelage.data.files.contents import content_ids
from tutelage.data.files.decoding import FilePicture, open_picture
from tutelage.data.files.folders import list_folder
from tutelage.data.files.group_names import describe_groups, find_group_names, number_groups
from tutelage.data.files.large import (
    LARGE_PIXELS,
    StoredPicture,
    fingerprint_with_shrinking,
    open_copy,
    shrink_picture,
    write_copies,
)
from tutelage.data.files.listing import Listing, find_path
from tutelage.data.files.names import ALL, FURTHER_TEST_PREFIX, LABELLED_PARTS, UNLABELLED, printable
from tutelage.data.files.packing import PackedImages
from tutelage.data.files.scan import raise_for_unreadable, scan_listing
from tutelage.data.files.tables import list_table
from tutelage.data.files.unlabelled import add_unlabelled
from tutelage.data.files.wide import describe_range
from tutelage.data.fitting import fit_image, fit_picture
from tutelage.data.loading.shared_memory import SharedTexts
from tutelage.data.shards.images import ShardImages, ShardNames
from tutelage.data.shards.index import Pool, index_shards
from tutelage.data.shards.pools import find_shards, is_remote
from tutelage.data.source import UNKNOWN, JoinedImages, JoinedNames, Source, as_images
from tutelage.errors import UserError
from tutelage.storage import digest

if TYPE_CHECKING:
    from tutelage.augmentation import Picture

INT16_COUNT, INT32_COUNT = 1 << 15, 1 << 31  # classes that int16 labels can number; images that int32 indices can


def _list_folder(config: DataConfig, only_test: bool = False, val_is_test: bool = False) -> Listing:
    fewest = 1 if only_test or config.takes_one_class else 2
    return _with_pool_files(list_folder(config.root, val_is_test, config.layout, only_test, fewest), config)


def _list_table(config: DataConfig, only_test: bool = False) -> Listing:
    fewest = 1 if only_test or config.takes_one_class else 2
    return _with_pool_files(list_table(config.root, config.group, only_test, fewest), config)


class ListFiles(Protocol):
    """Lists a dataset's files; ``only_test`` where nothing is learned from them (see ``list_folder``)."""

    def __call__(self, config: DataConfig, only_test: bool = False) -> Listing:
        """Return the listing. Raises UserError where there is none."""
        ...


# by the name of the DataModule
LISTINGS: dict[str, ListFiles] = {
    "ImageFolder": _list_folder,
    "ImageNet": partial(_list_folder, val_is_test=True),
    "Table": _list_table,
}


def _with_pool_files(listing: Listing, config: DataConfig) -> Listing:
    """Return the listing with the files that ``data.unlabelled`` names; the images of shards are not listed."""
    unlabelled = config.unlabelled
    if unlabelled is None:
        return listing
    if not is_remote(unlabelled):
        find_path(unlabelled, f"data.unlabelled={printable(unlabelled)}")
    return listing if find_shards(unlabelled) is not None else add_unlabelled(listing, unlabelled)


class FileImages:
    """Image files, each read when it is used; large ones are shrunk, and may have copies (see ``files.large``)."""

    def __init__(self, paths: Sequence[str], config: DataConfig, large: Mapping[int, bytes] | None = None) -> None:
        """Take the files, the dataset's config, and of large files that may have copies the SHA-256, by number.

        Many paths are given as ``SharedTexts``, which workers do not copy.
        """
        self._paths = paths
        self._config = config
        self._large = large or {}
        self.preparable = len(paths) if large else 0

    def __len__(self) -> int:
        return len(self._paths)

    def prepare(self, indices: np.ndarray, on_progress: OnProgress) -> None:
        """Store copies of the large ones among the files at ``indices`` (n,), which all processes read from then on.

        Raises:
            UserError: as in ``write_copies``.
        """
        numbers = np.intersect1d(list(self._large), indices).tolist()
        paths = {self._large[number]: self._paths[number] for number in numbers}
        write_copies(paths, self._open_file, self._config, on_progress)

    def __getitem__(self, index: int) -> np.ndarray:
        return fit_image(self._open_picture(index).read(), self._config)

    def picture(self, index: int) -> "Picture":
        """Return the image of the file that crops are cut from, of any size, not decoded yet (see ``data.fit``)."""
        return fit_picture(self._open_picture(index), self._config)

    def _open_picture(self, index: int) -> FilePicture | StoredPicture:
        content = self._large.get(index)
        if content is not None and (copy := open_copy(content, self._config)) is not None:
            return copy
        picture = self._open_file(self._paths[index])
        height, width, _ = picture.shape
        return shrink_picture(picture, self._config) if height * width > LARGE_PIXELS else picture

    def _open_file(self, path: str) -> FilePicture:
        config, name = self._config, printable(path)
        return open_picture(Path(path), name, config.channels, config.background, config.max_pixels, config.white)


def image_files(listing: Listing, config: DataConfig, on_progress: OnProgress = ignore_progress) -> Source:
    """Return the listed images as a source, after checking that each file can be decoded.

    Raises:
        UserError: a file cannot be decoded and ``data.on_bad_image`` is stop; or a class is left without images.
    """
    listing, facts, left_out = _scan(listing, config, on_progress)
    pool = _index_pool(config, on_progress)
    entries = listing.entries
    label_of_class = {name: label for label, name in enumerate(listing.classes)}
    labels = np.array([label_of_class.get(entry.label or "", UNKNOWN) for entry in entries], dtype=np.int64)
    parts = np.array([entry.part for entry in entries])
    groups = find_group_names(listing, config)
    group_notes = () if groups is None else describe_groups(listing, groups, f"data.group={config.group}")
    indices = {part: np.flatnonzero(parts == part) for part in (ALL, *LABELLED_PARTS, UNLABELLED)}
    contents = facts["content"].tolist()
    large = {number: contents[number] for number in np.flatnonzero(facts["pixels"] > LARGE_PIXELS).tolist()}
    files = FileImages(SharedTexts(entry.path for entry in entries), config, large)
    source = Source(
        images=PackedImages(files, contents, config) if config.pack else files,
        labels=labels,
        classes=listing.classes,
        train=np.concatenate([indices["train"], indices[ALL]]),
        test=indices["test"],
        val=indices["val"],
        unlabelled=indices[UNLABELLED],
        names=SharedTexts(entry.name for entry in entries),
        left_out=left_out,
        notes=(*listing.notes, *group_notes, *describe_range(_find_peak(facts, pool), config.white)),
        groups=None if groups is None else number_groups(groups),
        further_tests={
            part.removeprefix(FURTHER_TEST_PREFIX): np.flatnonzero(parts == part)
            for part in sorted({entry.part for entry in entries if entry.part.startswith(FURTHER_TEST_PREFIX)})
        },
    )
    ids = content_ids(facts)
    if pool is None:
        return replace(source, duplicates=find_duplicates(ids))
    duplicates = find_duplicates(ids, map(pool.read_content_ids, range(len(pool.shards))))
    return replace(_append_shards(source, pool, config), duplicates=duplicates)


def _find_peak(facts: np.ndarray, pool: Pool | None) -> int:
    """Return the largest value of images with 16 bits a sample; 0 without such images."""
    return max(int(facts["peak"].max(initial=0)), 0 if pool is None else int(pool.heads["peak"].max(initial=0)))


def _index_pool(config: DataConfig, on_progress: OnProgress) -> Pool | None:
    """Return the pool of shards that ``data.unlabelled`` names; None if it names none."""
    if config.unlabelled is None or (shards := find_shards(config.unlabelled)) is None:
        return None
    return index_shards(shards, config, f"data.unlabelled={printable(config.unlabelled)}", on_progress)


def _append_shards(source: Source, pool: Pool, config: DataConfig) -> Source:
    """Return a source whose pool also has the images of shards, after all other images.

    For each image of a large pool, only a label and its index are held, of the smallest integer types that fit.
    """
    first, files = len(source.labels), source.images
    images = ShardImages(pool, config)
    end = first + len(images)
    labels = np.full(end, UNKNOWN, dtype=np.int16 if len(source.classes) <= INT16_COUNT else np.int32)
    labels[:first] = source.labels
    dtype = np.int32 if end <= INT32_COUNT else np.int64
    in_shards, in_files = np.arange(first, end, dtype=dtype), source.unlabelled.astype(dtype)
    return replace(
        source,
        images=JoinedImages([as_images(files), images]),
        labels=labels,
        unlabelled=np.concatenate([in_files, in_shards]) if len(in_files) else in_shards,
        names=JoinedNames(source.names, ShardNames(pool)),
        left_out=(*source.left_out, *pool.left_out),
        blocks=first + np.cumsum(pool.counts) - pool.counts,
    )


def fingerprint(listing: Listing, config: DataConfig, on_progress: OnProgress = ignore_progress) -> str:
    """Return a digest of files, groups and shards, without the images that ``data.on_bad_image=skip`` leaves out.

    Raises:
        UserError: as in ``image_files``.
    """
    listing, facts, _ = _scan(listing, config, on_progress)
    files = fingerprint_with_shrinking(listing.fingerprint(facts["content"].tolist()), facts["pixels"])
    if (groups := find_group_names(listing, config)) is not None:
        files = digest([files, groups])
    pool = _index_pool(config, on_progress)
    return files if pool is None else digest([files, pool.fingerprint()])


def _scan(listing: Listing, config: DataConfig, on_progress: OnProgress) -> tuple[Listing, np.ndarray, tuple[str, ...]]:
    """Return the listing of the files that can be decoded, their ``FACTS`` (N,), and the names of the others.

    Raises:
        UserError: there are such files and ``data.on_bad_image`` is stop; they are printed before. Or a class has no
            other files.
    """
    entries = listing.entries
    facts, reasons = scan_listing(listing, config.max_pixels, on_progress)
    if not reasons:
        return listing, facts, ()
    if config.on_bad_image == "stop":
        raise_for_unreadable(reasons, [printable(entry.path) for entry in entries], listing.setting)
    readable = [number for number in range(len(entries)) if number not in reasons]
    kept = listing.keep(readable)
    lost = _list_learned_classes(listing) - _list_learned_classes(kept)
    if lost:
        raise UserError(f"{listing.setting}: class {min(lost)!r} has no readable image; repair or remove it")
    return kept, facts[readable], tuple(entries[number].name for number in reasons)


def _list_learned_classes(listing: Listing) -> set[str]:
    """Return the classes that have images to learn from."""
    return {entry.label for entry in listing.entries if entry.label and entry.part in {"train", ALL}}
