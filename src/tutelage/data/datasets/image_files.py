"""Image files as a dataset: those of a folder, of a table, of ImageNet."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.datasets.download import OnProgress, silent
from tutelage.data.files.decoding import FilePicture, complaint, picture
from tutelage.data.files.listing import (
    ALL,
    FURTHER,
    LABELLED_PARTS,
    UNLABELLED,
    Entry,
    Listing,
    list_folder,
    list_table,
)
from tutelage.data.files.packing import packed
from tutelage.data.files.scan import stop_at, unreadable
from tutelage.data.loading.shared_memory import Texts
from tutelage.data.shards.images import ShardImages, ShardNames
from tutelage.data.shards.index import Pool, indexed
from tutelage.data.shards.pools import find_shards
from tutelage.data.source import UNKNOWN, Joined, JoinedNames, Source, WholeImages, resized
from tutelage.data.stratify import stratified
from tutelage.errors import UserError
from tutelage.randomness import Key
from tutelage.storage import digest

MOST_INT16, MOST_INT32 = 1 << 15, 1 << 31  # classes, images

# by the name of the DataModule
LISTINGS: dict[str, Callable[[DataConfig], Listing]] = {
    "ImageFolder": lambda config: list_folder(config.root, _files_of(config)),
    "ImageNet": lambda config: list_folder(config.root, _files_of(config), val_is_test=True),
    "Table": lambda config: list_table(config.root, _files_of(config)),
}


def _files_of(config: DataConfig) -> str | None:
    """Return ``data.unlabelled`` where it names files; the images of shards are not listed one by one."""
    given = config.unlabelled
    return given if given is None or find_shards(given) is None else None


class FileImages:
    """Image files, read when asked for."""

    def __init__(self, paths: Sequence[str], config: DataConfig) -> None:
        self._paths = Texts(paths)
        self._config = config

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return resized(self.picture(index).read(), self._config.image_size)

    def picture(self, index: int) -> FilePicture:
        """Return the whole image of the file, of whatever size, decoded when it is known how much of it."""
        config, path = self._config, self._paths[index]
        return picture(Path(path), path, config.channels, config.background, config.max_pixels)


def image_files(listing: Listing, config: DataConfig, tell: OnProgress = silent) -> Source:
    """Return listed images as a source, each file tried; without a test set a fifth of each class is set aside for it.

    Raises:
        UserError: a file gives no pixels and ``data.on_bad_image`` is stop; or a class is left without images.
    """
    listing, left_out = _readable(listing, config, tell)
    pool = _pool(config, tell)
    entries = listing.entries
    number = {label: index for index, label in enumerate(listing.classes)}
    labels = np.array([number.get(entry.label or "", UNKNOWN) for entry in entries], dtype=np.int64)
    parts = np.array([entry.part for entry in entries])
    indices = {part: np.flatnonzero(parts == part) for part in (ALL, *LABELLED_PARTS, UNLABELLED)}
    train, test = np.concatenate([indices["train"], indices[ALL]]), indices["test"]
    if not len(test):
        test = stratified(train, labels, max(1, len(train) // 5), Key(0, "image_folder", "test"))
        train = np.setdiff1d(train, test)
        for c, label in enumerate(listing.classes):
            if not (labels[train] == c).any():
                raise UserError(f"{listing.where}: class {label!r} has too few images to set some aside for a test set")
    files = FileImages([entry.path for entry in entries], config)
    source = Source(
        images=packed(files, _states(entries), config, tell) if config.pack else files,
        labels=labels,
        classes=listing.classes,
        train=train,
        test=test,
        val=indices["val"],
        unlabelled=indices[UNLABELLED],
        names=Texts(entry.name for entry in entries),
        left_out=left_out,
        notes=listing.notes,
        others={
            part.removeprefix(FURTHER): np.flatnonzero(parts == part)
            for part in sorted({entry.part for entry in entries if entry.part.startswith(FURTHER)})
        },
    )
    return source if pool is None else _with_shards(source, pool, config)


def _pool(config: DataConfig, tell: OnProgress) -> Pool | None:
    """Return the pool of shards that ``data.unlabelled`` names; None where it names none."""
    shards = find_shards(config.unlabelled) if config.unlabelled is not None else None
    return None if shards is None else indexed(shards, config, f"data.unlabelled={config.unlabelled}", tell)


def _with_shards(source: Source, pool: Pool, config: DataConfig) -> Source:
    """Return a source whose pool has the images of shards too, behind all others.

    Of a large pool nothing is held for each image but a label and its index, of the smallest types that fit.
    """
    first, files = len(source.labels), source.images
    images = ShardImages(pool, config)
    last = first + len(images)
    labels = np.full(last, UNKNOWN, dtype=np.int16 if len(source.classes) <= MOST_INT16 else np.int32)
    labels[:first] = source.labels
    kind = np.int32 if last <= MOST_INT32 else np.int64
    unlabelled, others = np.arange(first, last, dtype=kind), source.unlabelled.astype(kind)
    return replace(
        source,
        images=Joined([WholeImages(files) if isinstance(files, np.ndarray) else files, images]),
        labels=labels,
        unlabelled=np.concatenate([others, unlabelled]) if len(others) else unlabelled,
        names=JoinedNames(source.names, ShardNames(pool)),
        left_out=(*source.left_out, *pool.left_out),
        blocks=first + np.cumsum(pool.counts) - pool.counts,
    )


def _states(entries: Sequence[Entry]) -> list[str]:
    """Return for each file what it is as far as can be told without reading it: its path, size and time."""
    return [f"{os.path.abspath(entry.path)}\0{entry.size}\0{entry.time}" for entry in entries]  # noqa: PTH100


def fingerprint(listing: Listing, config: DataConfig, tell: OnProgress = silent) -> str:
    """Return what the files and shards are; images that ``data.on_bad_image=skip`` leaves out are no part of it."""
    files = (_readable(listing, config, tell)[0] if config.on_bad_image == "skip" else listing).fingerprint()
    pool = _pool(config, tell)
    return files if pool is None else digest([files, pool.fingerprint()])


def _readable(listing: Listing, config: DataConfig, tell: OnProgress) -> tuple[Listing, tuple[str, ...]]:
    """Return the listing without the files that give no pixels, and these files' names.

    Raises:
        UserError: there are such files and ``data.on_bad_image`` is stop; they are named before.
    """
    entries = listing.entries
    states = [f"{state}\0{config.max_pixels}" for state in _states(entries)]
    bad = unreadable(
        str(listing.place.resolve()), states, lambda n: complaint(Path(entries[n].path), config.max_pixels), tell
    )
    if not bad:
        return listing, ()
    if config.on_bad_image == "stop":
        stop_at(bad, [entry.path for entry in entries], listing.where)
    kept = tuple(entry for number, entry in enumerate(entries) if number not in bad)
    lost = set(listing.classes) - {entry.label for entry in kept if entry.part in {"train", ALL}}
    if lost:
        raise UserError(f"{listing.where}: class {min(lost)!r} has no readable image; mend or remove it")
    return replace(listing, entries=kept), tuple(entries[number].name for number in bad)
