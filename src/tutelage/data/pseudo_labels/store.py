"""The label store: a teacher's probabilities for the pool, in shards that any number of processes write."""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from tutelage.data.cached_logits import packed, row_dtype
from tutelage.data.pseudo_labels.labels import ABOUT, FOLDER, read_metadata, shard_files, shard_size
from tutelage.errors import UserError
from tutelage.storage import TRAILER_LENGTH, digest, has_checksum, is_sound, remove_partials, write_checked, write_json

LOCKS = ".locks"
KEY_LENGTH = 64  # of a SHA-256, in hexadecimal
LEAST = float(np.finfo(np.float32).tiny)  # so that every probability has a logarithm

About = Mapping[str, Any]


class LabelStore:
    """A folder of shards, each the answers to some pool images in a row, written whole or not at all.

    Answers are kept as logarithms of probabilities (``row_dtype``): float16, above 128 classes the 32 largest and what
    the others share. Behind its rows each shard says, by a digest, what it belongs to; then comes its checksum.

    Attributes:
        count: pool images.
        classes: numbers of an answer.
        shard: pool images of a shard; the last one may have fewer.
        about: what it holds.
        written: the shards that this process has written.
    """

    def __init__(self, folder: Path, count: int, classes: int, about: About, begin: bool = True) -> None:
        """Begin a store in a stage's folder, or go on; shards that are damaged or belong to something else are removed.

        Args:
            folder: the stage's.
            count: pool images.
            classes: numbers of an answer.
            about: what the answers depend on: the teacher's weights, the data, views, precision.
            begin: the folder is this store's from now on; else only if it is already.
        """
        self.count, self.classes, self.shard = count, classes, shard_size(count)
        self.about = {**about, "images": count, "classes": classes, "shard": self.shard}
        self._folder, self._files = folder / FOLDER, shard_files(folder, count)
        self._key = digest(self.about).encode()
        self._kind = row_dtype(classes, exact=False)
        self._seen: set[int] = set()
        self.written: set[int] = set()
        (self._folder / LOCKS).mkdir(parents=True, exist_ok=True)
        if begin and not self.is_current:
            write_json(self._folder / ABOUT, self.about)
        if self.is_current:
            for number, file in enumerate(self._files):
                self._remove_other(number, file)

    @classmethod
    def under_way(cls, folder: Path) -> "LabelStore | None":
        """Return the store that somebody has begun in a stage's folder; None where nobody has."""
        about = read_metadata(folder)
        if about is None:
            return None
        given = {name: value for name, value in about.items() if name not in {"images", "classes", "shard"}}
        found = cls(folder, about["images"], about["classes"], given, begin=False)
        return found if found.is_current else None  # of a version that made other shards

    @property
    def is_current(self) -> bool:
        """Whether the folder still is what this store writes: a teacher may have been trained again."""
        return read_metadata(self._folder.parent) == self.about

    @property
    def missing(self) -> list[int]:
        """The shards that nobody has written yet."""
        for number, file in enumerate(self._files):
            if number not in self._seen and self._is_ours(file):
                self._seen.add(number)
        return [number for number in range(len(self._files)) if number not in self._seen]

    def present(self, but: Collection[int] = ()) -> int:
        """Return how many images the shards that are known to be there have, ``but`` some."""
        return sum(last - first for first, last in map(self.bounds, self._seen.difference(but)))

    @property
    def complete(self) -> bool:
        """Whether all shards are there."""
        return not self.missing

    def bounds(self, shard: int) -> tuple[int, int]:
        """Return the first pool image of a shard and the one behind its last."""
        return shard * self.shard, min(self.count, (shard + 1) * self.shard)

    @contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Yield whether this process is to write a shard; while the block runs no other one is.

        It is not where another process is at it or has done it. A process that ends, however it ends, gives it up.
        """
        with self._lock(shard) as mine:
            yield mine and not self._is_ours(self._files[shard]) and self.is_current

    def packed(self, probabilities: np.ndarray) -> np.ndarray:
        """Return probabilities (B, C) float32 as rows (B,) of a shard.

        Raises:
            ValueError: one is not finite.
        """
        return packed(np.log(np.maximum(probabilities, LEAST)), self._kind)  # NaN stays NaN

    def write(self, shard: int, probabilities: np.ndarray) -> None:
        """Write a shard: probabilities (n, C) float32, or rows (n,) that are ``packed``; the caller has claimed it.

        Raises:
            ValueError: these are not the shard's images, or a number is not finite.
            UserError: the disk has no room.
        """
        rows = probabilities if probabilities.dtype == self._kind else self.packed(probabilities)
        first, last = self.bounds(shard)
        if len(rows) != last - first:
            raise ValueError(f"shard {shard} has {last - first} images, not {len(rows)}")

        def put(file: Any) -> None:
            np.lib.format.write_array(file, rows, allow_pickle=False)
            file.write(self._key)

        try:
            try:
                write_checked(self._files[shard], put)
            except FileNotFoundError:  # a run that goes on has cleared away half-written files, this one among them
                write_checked(self._files[shard], put)
            self._seen.add(shard)
            self.written.add(shard)
        except OSError as error:
            raise UserError(
                f"{self._files[shard]}: cannot be written ({error.strerror}); free some room, or move paths.outputs"
            ) from None

    def finish(self) -> None:
        """Clear away what writing has left; the store is complete."""
        for lock in (self._folder / LOCKS).glob("*"):
            lock.unlink(missing_ok=True)
        remove_partials(self._folder)

    @contextmanager
    def _lock(self, shard: int) -> Iterator[bool]:
        lock = FileLock(self._folder / LOCKS / f"{shard:05d}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _remove_other(self, shard: int, file: Path) -> None:
        """Remove a shard that is there but is damaged or another's; nobody writes it meanwhile."""
        if not file.exists() or (self._is_ours(file) and is_sound(file)):
            return
        with self._lock(shard) as mine:
            if mine and not (self._is_ours(file) and is_sound(file)):  # it may have been written since the first look
                file.unlink(missing_ok=True)

    def _is_ours(self, file: Path) -> bool:
        """Return whether a shard is there and belongs to this store; it was written whole, so that its end says it."""
        if not has_checksum(file):
            return False
        with suppress(OSError), file.open("rb") as opened:
            opened.seek(-TRAILER_LENGTH - KEY_LENGTH, os.SEEK_END)
            return opened.read(KEY_LENGTH) == self._key
        return False
