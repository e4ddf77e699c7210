"""The label store: a teacher's probabilities for the pool, in shards that any number of processes write."""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from tutelage.data.cached_logits import pack_rows, row_dtype
from tutelage.data.pseudo_labels.labels import FOLDER, METADATA, read_metadata, shard_files, shard_size
from tutelage.errors import UserError
from tutelage.storage import TRAILER_LENGTH, digest, has_checksum, is_sound, remove_partials, write_checked, write_json

LOCKS = ".locks"
KEY_LENGTH = 64  # of a SHA-256, in hexadecimal
SMALLEST = float(np.finfo(np.float32).tiny)  # probability, so that each has a logarithm
SHAPE_KEYS = {"images", "classes", "shard"}  # what the store itself adds to its metadata


class LabelStore:
    """A folder of shards, each the probabilities of some consecutive pool images, written whole or not at all.

    Probabilities are stored as their logarithms (``row_dtype``): float16, above 128 classes the 32 largest and the one
    value that the others share. After its rows each shard has the digest of the store's metadata, then its checksum.

    Attributes:
        count: pool images.
        classes: probabilities of an image.
        shard: pool images of a shard; the last one may have fewer.
        metadata: what the probabilities depend on, and the store's shape.
        written: the shards that this process has written.
    """

    def __init__(self, folder: Path, count: int, classes: int, metadata: Mapping[str, Any], begin: bool = True) -> None:
        """Begin a store in a stage's folder, or continue it; remove shards that are damaged or belong to another store.

        Args:
            folder: the stage's.
            count: pool images.
            classes: probabilities of an image.
            metadata: what the probabilities depend on: the teacher's weights, the data, views, precision.
            begin: make the folder this store's if it is not; else leave a folder of another store alone.
        """
        self.count, self.classes, self.shard = count, classes, shard_size(count)
        self.metadata = {**metadata, "images": count, "classes": classes, "shard": self.shard}
        self._folder, self._files = folder / FOLDER, shard_files(folder, count)
        self._key = digest(self.metadata).encode()
        self._row_dtype = row_dtype(classes, exact=False)
        self._present: set[int] = set()
        self.written: set[int] = set()
        (self._folder / LOCKS).mkdir(parents=True, exist_ok=True)
        if begin and not self.is_current:
            write_json(self._folder / METADATA, self.metadata)
        if self.is_current:
            for number, file in enumerate(self._files):
                self._remove_unusable(number, file)

    @classmethod
    def open_existing(cls, folder: Path) -> "LabelStore | None":
        """Return the store that another process has begun in a stage's folder; None if there is none."""
        stored = read_metadata(folder)
        if stored is None:
            return None
        metadata = {name: value for name, value in stored.items() if name not in SHAPE_KEYS}
        store = cls(folder, stored["images"], stored["classes"], metadata, begin=False)
        return store if store.is_current else None  # a version of the code that cut other shards has begun it

    @property
    def is_current(self) -> bool:
        """Whether the folder is still this store's: the teacher may have been trained again since."""
        return read_metadata(self._folder.parent) == self.metadata

    @property
    def missing(self) -> list[int]:
        """The shards that no process has written yet."""
        for number, file in enumerate(self._files):
            if number not in self._present and self._has_own_key(file):
                self._present.add(number)
        return [number for number in range(len(self._files)) if number not in self._present]

    def count_present(self, exclude: Collection[int] = ()) -> int:
        """Return how many images are in the shards that are known to be written, without the shards in ``exclude``."""
        return sum(last - first for first, last in map(self.bounds, self._present.difference(exclude)))

    @property
    def complete(self) -> bool:
        """Whether all shards are written."""
        return not self.missing

    def bounds(self, shard: int) -> tuple[int, int]:
        """Return the first pool image of a shard and the one after its last."""
        return shard * self.shard, min(self.count, (shard + 1) * self.shard)

    @contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Yield whether this process is to write a shard; no other process gets the same claim while the block runs.

        It yields False if another process is writing the shard or has written it. A process that ends, however it ends,
        gives its claims up.
        """
        with self._try_lock(shard) as is_locked:
            yield is_locked and not self._has_own_key(self._files[shard]) and self.is_current

    def encode_rows(self, probabilities: np.ndarray) -> np.ndarray:
        """Return probabilities (B, C) float32 as rows (B,) of a shard.

        Raises:
            ValueError: one is not finite.
        """
        return pack_rows(np.log(np.maximum(probabilities, SMALLEST)), self._row_dtype)  # NaN stays NaN

    def write(self, shard: int, probabilities: np.ndarray) -> None:
        """Write a shard that the caller has claimed: probabilities (n, C) float32, or rows (n,) of ``encode_rows``.

        Raises:
            ValueError: the number of images is not the shard's, or a number is not finite.
            UserError: the disk is full.
        """
        rows = probabilities if probabilities.dtype == self._row_dtype else self.encode_rows(probabilities)
        first, last = self.bounds(shard)
        if len(rows) != last - first:
            raise ValueError(f"shard {shard} has {last - first} images, not {len(rows)}")

        def write_rows(file: Any) -> None:
            np.lib.format.write_array(file, rows, allow_pickle=False)
            file.write(self._key)

        try:
            try:
                write_checked(self._files[shard], write_rows)
            except FileNotFoundError:  # a resumed run has removed all partial files, this one among them
                write_checked(self._files[shard], write_rows)
            self._present.add(shard)
            self.written.add(shard)
        except OSError as error:
            raise UserError(
                f"{self._files[shard]}: cannot be written ({error.strerror}); free some room, or move paths.outputs"
            ) from None

    def finish(self) -> None:
        """Remove the lock files and partial files of a complete store."""
        for lock in (self._folder / LOCKS).glob("*"):
            lock.unlink(missing_ok=True)
        remove_partials(self._folder)

    @contextmanager
    def _try_lock(self, shard: int) -> Iterator[bool]:
        """Yield whether this process holds a shard's lock, without waiting for another that does."""
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

    def _remove_unusable(self, shard: int, file: Path) -> None:
        """Remove a shard that is damaged or belongs to another store, unless a process is writing it."""
        if not file.exists() or (self._has_own_key(file) and is_sound(file)):
            return
        with self._try_lock(shard) as is_locked:
            # it may have been written since it was checked
            if is_locked and not (self._has_own_key(file) and is_sound(file)):
                file.unlink(missing_ok=True)

    def _has_own_key(self, file: Path) -> bool:
        """Return whether a shard exists and belongs to this store; shards are written whole, so its end is enough."""
        if not has_checksum(file):
            return False
        with suppress(OSError), file.open("rb") as shard:
            shard.seek(-TRAILER_LENGTH - KEY_LENGTH, os.SEEK_END)
            return shard.read(KEY_LENGTH) == self._key
        return False
