"""Labels of the pool that a teacher gave: what is read of a complete label store."""

import json
import mmap
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.data.cached_logits import row_dtype, unpacked
from tutelage.errors import UserError

FOLDER, ABOUT = "labels", "about.json"
SHARD = 1 << 16  # pool images of a shard, at most
SHARDS = 32  # at least, where the pool has images for them: a killed process loses no more than one shard
EVALUATION_BATCH = 512  # images; a shard is whole batches
PIECE = 1 << 17  # probabilities that are unpacked at once: they fit the cache
MOST_TOUCHED = 512  # rows that are read before their pages are let go: each brings 64 KB into this memory
MOST_MAPS = 512  # shards that are mapped at once: each is an open file, of which a process may have 1024


def shard_size(count: int) -> int:
    """Return how many pool images a shard of a store of ``count`` has: whole batches, at most ``SHARD``."""
    return min(SHARD, max(1, -(-count // (SHARDS * EVALUATION_BATCH))) * EVALUATION_BATCH)


def shard_files(folder: Path, count: int) -> list[Path]:
    """Return the files that a store of ``count`` pool images in a stage's folder has once it is complete."""
    return [folder / FOLDER / f"{number:05d}.npy" for number in range(-(-count // shard_size(count)))]


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """Return what the labels in a stage's folder are; None where there are none."""
    try:
        found = json.loads((folder / FOLDER / ABOUT).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


class Labels:
    """A complete store, read only; what it holds in memory does not grow with the pool, but for two small numbers each.

    Attributes:
        count: pool images.
        classes: numbers of an answer.
    """

    def __init__(self, folder: Path, count: int, classes: int) -> None:
        """Read the store that lies in a stage's folder."""
        self.count, self.classes = count, classes
        self._shard, self._files = shard_size(count), shard_files(folder, count)
        self._touched = 0

    @staticmethod
    def of(probabilities: np.ndarray) -> "Labels":
        """Return labels (N, C) that are held in memory as they are."""
        return _Held(probabilities)

    def __len__(self) -> int:
        return self.count

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in {"_maps", "_summary"}}

    def bare(self) -> "Labels":
        """Return the same labels without what was noted of all of them."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__getstate__())
        return new

    def parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield all labels in their order: the first entry and (n, C) float32 probabilities, a few at a time."""
        at_once = max(1, PIECE // self.classes)
        for number, file in enumerate(self._files):
            rows = np.load(file, allow_pickle=False)
            for first in range(0, len(rows), at_once):
                yield number * self._shard + first, self._unpacked(rows[first : first + at_once])

    def __getitem__(self, entries: np.ndarray) -> np.ndarray:
        """Return the probabilities (B, C) float32 of pool images (B,), in any order, by way of mapped memory."""
        shards, within = np.divmod(np.asarray(entries, dtype=np.int64), self._shard)
        order = np.argsort(shards, kind="stable")
        numbers, starts = np.unique(shards[order], return_index=True)
        rows = np.empty(len(shards), row_dtype(self.classes, exact=False))
        for number, places in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            rows[places] = self._map(number)[within[places]]
        self._let_go(len(rows))
        return self._unpacked(rows)

    @property
    def answers(self) -> np.ndarray:
        """The most likely class of each pool image, (N,) uint16 or uint32; of several the first."""
        return self._summary[0]

    @property
    def certainty(self) -> np.ndarray:
        """The probability of that class, (N,) float32."""
        return self._summary[1]

    @cached_property
    def _summary(self) -> tuple[np.ndarray, np.ndarray]:
        answers = np.empty(self.count, np.uint16 if self.classes <= 1 << 16 else np.uint32)
        certainty = np.empty(self.count, np.float32)
        for first, probabilities in self.parts():
            part = slice(first, first + len(probabilities))
            answers[part] = probabilities.argmax(axis=1)
            certainty[part] = probabilities.max(axis=1)
        return answers, certainty

    @cached_property
    def _maps(self) -> dict[int, np.memmap[Any, Any]]:
        return {}

    def _map(self, number: int) -> "np.memmap[Any, Any]":
        found = self._maps.get(number)
        if found is None:
            if len(self._maps) >= MOST_MAPS:
                self._maps.pop(next(iter(self._maps)))
            found = self._maps[number] = np.load(self._files[number], mmap_mode="r", allow_pickle=False)
        return found

    def _let_go(self, rows: int) -> None:
        """Give mapped pages back to the system now and then; it has them at hand as long as there is room."""
        self._touched += rows
        if self._touched > MOST_TOUCHED and hasattr(mmap, "MADV_DONTNEED"):
            self._touched = 0
            for mapped in self._maps.values():
                pages: mmap.mmap = mapped._mmap  # type: ignore[attr-defined]
                pages.madvise(mmap.MADV_DONTNEED)

    def _unpacked(self, rows: np.ndarray) -> np.ndarray:
        probabilities: np.ndarray = np.exp(unpacked(rows, self.classes))  # the largest logarithm is 0
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        return probabilities


class _Held(Labels):
    """Labels in memory."""

    def __init__(self, probabilities: np.ndarray) -> None:
        self.count, self.classes = probabilities.shape
        self._probabilities = np.asarray(probabilities, dtype=np.float32)

    def parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield all labels at once."""
        yield 0, self._probabilities

    def __getitem__(self, entries: np.ndarray) -> np.ndarray:
        """Return the probabilities (B, C) float32 of pool images (B,)."""
        found: np.ndarray = self._probabilities[np.asarray(entries)]
        return found


def read_labels(folder: Path) -> Labels:
    """Return the labels of a complete store in a stage's folder.

    Raises:
        UserError: there is none.
    """
    about = read_metadata(folder)
    if about is None:
        raise UserError(f"{folder / FOLDER}: no labels here; the run's command makes them again")
    return Labels(folder, about["images"], about["classes"])
