"""Pseudo-labels of the pool: a teacher's probabilities, read from a complete label store."""

import json
import mmap
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.data.cached_logits import row_dtype, unpack_rows
from tutelage.errors import UserError

FOLDER, METADATA = "labels", "about.json"
SHARD = 1 << 16  # pool images of a shard, at most
SHARDS = 32  # at least, if the pool is large enough: a killed process loses no more than one shard
EVALUATION_BATCH = 512  # images; a shard is whole batches
CHUNK_SIZE = 1 << 17  # probabilities that are decoded at once: they fit the processor's cache
MAX_TOUCHED_ROWS = 512  # rows that are read before their pages are released: each brings 64 KB into this memory
MAX_MAPPED_SHARDS = 512  # shards that are mapped at once: each is an open file, of which a process may have 1024


def shard_size(count: int) -> int:
    """Return how many pool images a shard of a store of ``count`` has: whole batches, at most ``SHARD``."""
    return min(SHARD, max(1, -(-count // (SHARDS * EVALUATION_BATCH))) * EVALUATION_BATCH)


def shard_files(folder: Path, count: int) -> list[Path]:
    """Return the files of a complete store of ``count`` pool images in a stage's folder."""
    return [folder / FOLDER / f"{number:05d}.npy" for number in range(-(-count // shard_size(count)))]


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """Return the metadata of the label store in a stage's folder; None if there is no store."""
    try:
        metadata = json.loads((folder / FOLDER / METADATA).read_text())
    except (OSError, ValueError):
        return None
    return metadata if isinstance(metadata, dict) else None


class Labels:
    """A complete label store, read only; its memory does not grow with the pool, except by two small numbers an image.

    Attributes:
        count: pool images.
        classes: probabilities of an image.
    """

    def __init__(self, folder: Path, count: int, classes: int) -> None:
        """Open the store in a stage's folder."""
        self.count, self.classes = count, classes
        self._shard, self._files = shard_size(count), shard_files(folder, count)
        self._touched_rows = 0

    @staticmethod
    def from_array(probabilities: np.ndarray) -> "Labels":
        """Return labels that hold probabilities (N, C) in memory, unchanged."""
        return _ArrayLabels(probabilities)

    def __len__(self) -> int:
        return self.count

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in {"_maps", "_summary"}}

    def without_summary(self) -> "Labels":
        """Return the same labels without the predictions and confidences of all images, which take memory."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__getstate__())
        return new

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield all labels in their order, some at a time: the first entry and probabilities (n, C) float32."""
        rows_at_once = max(1, CHUNK_SIZE // self.classes)
        for number, file in enumerate(self._files):
            rows = np.load(file, allow_pickle=False)
            for first in range(0, len(rows), rows_at_once):
                yield number * self._shard + first, self._decode_rows(rows[first : first + rows_at_once])

    def __getitem__(self, entries: np.ndarray) -> np.ndarray:
        """Return the probabilities (B, C) float32 of pool images (B,), in any order, from memory-mapped shards."""
        shards, positions = np.divmod(np.asarray(entries, dtype=np.int64), self._shard)
        order = np.argsort(shards, kind="stable")
        numbers, starts = np.unique(shards[order], return_index=True)
        rows = np.empty(len(shards), row_dtype(self.classes, exact=False))
        for number, in_shard in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            rows[in_shard] = self._map_shard(number)[positions[in_shard]]
        self._release_pages(len(rows))
        return self._decode_rows(rows)

    @property
    def predictions(self) -> np.ndarray:
        """The most likely class of each pool image, (N,) uint16 or uint32; of several the first."""
        return self._summary[0]

    @property
    def confidence(self) -> np.ndarray:
        """The probability of that class, (N,) float32."""
        return self._summary[1]

    @cached_property
    def _summary(self) -> tuple[np.ndarray, np.ndarray]:
        predictions = np.empty(self.count, np.uint16 if self.classes <= 1 << 16 else np.uint32)
        confidence = np.empty(self.count, np.float32)
        for first, probabilities in self.chunks():
            chunk = slice(first, first + len(probabilities))
            predictions[chunk] = probabilities.argmax(axis=1)
            confidence[chunk] = probabilities.max(axis=1)
        return predictions, confidence

    @cached_property
    def _maps(self) -> dict[int, np.memmap[Any, Any]]:
        return {}

    def _map_shard(self, number: int) -> "np.memmap[Any, Any]":
        """Return the rows of a shard, memory-mapped."""
        rows = self._maps.get(number)
        if rows is None:
            if len(self._maps) >= MAX_MAPPED_SHARDS:
                self._maps.pop(next(iter(self._maps)))
            rows = self._maps[number] = np.load(self._files[number], mmap_mode="r", allow_pickle=False)
        return rows

    def _release_pages(self, rows: int) -> None:
        """Count ``rows`` more rows as read, and now and then release the mapped pages.

        The system keeps them in its page cache as long as there is room.
        """
        self._touched_rows += rows
        if self._touched_rows > MAX_TOUCHED_ROWS and hasattr(mmap, "MADV_DONTNEED"):
            self._touched_rows = 0
            for mapped in self._maps.values():
                pages: mmap.mmap = mapped._mmap  # type: ignore[attr-defined]
                pages.madvise(mmap.MADV_DONTNEED)

    def _decode_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the probabilities (n, C) float32 that rows (n,) of the store stand for."""
        probabilities: np.ndarray = np.exp(unpack_rows(rows, self.classes))  # the largest logarithm is 0
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        return probabilities


class _ArrayLabels(Labels):
    """Labels in memory."""

    def __init__(self, probabilities: np.ndarray) -> None:
        self.count, self.classes = probabilities.shape
        self._probabilities = np.asarray(probabilities, dtype=np.float32)

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield all labels at once."""
        yield 0, self._probabilities

    def __getitem__(self, entries: np.ndarray) -> np.ndarray:
        """Return the probabilities (B, C) float32 of pool images (B,)."""
        probabilities: np.ndarray = self._probabilities[np.asarray(entries)]
        return probabilities


def read_labels(folder: Path) -> Labels:
    """Return the labels of a complete store in a stage's folder.

    Raises:
        UserError: there is none.
    """
    metadata = read_metadata(folder)
    if metadata is None:
        raise UserError(f"{folder / FOLDER}: no labels here; the run's command makes them again")
    return Labels(folder, metadata["images"], metadata["classes"])
