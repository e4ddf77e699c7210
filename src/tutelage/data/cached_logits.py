"""Cached logits: a frozen network's logits, or features, for a stage's images in a memory-mapped file."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.data.loading.streams import SampleIndices, Stream
from tutelage.errors import UserError
from tutelage.storage import flush_folder, write_json

LOGITS_FILE, PARTIAL, PROGRESS = "logits.npy", "logits.partial", "progress.json"
ALL_CLASSES = 128  # up to so many classes every logit is stored
TOP = 32  # of more classes, the largest ones; big_vision and TinyViT keep 10 to 100 of 1000
LOWEST = -60_000.0  # of float16, whose range ends at 65504

VALUES, CLASSES = "values", "classes"


def row_dtype(width: int, exact: bool, whole: bool = False) -> np.dtype[Any]:
    """Return the type of a row of ``width`` numbers in the file.

    Args:
        width: numbers of a row.
        exact: they are features, stored as float32; else logits, stored as float16 less the largest one, which leaves
            their softmax as it is. Of more than ``ALL_CLASSES`` the ``TOP`` largest are stored, and one value for all
            others.
        whole: all logits are stored, however many: each softmax is over a part of them.
    """
    if exact:
        return np.dtype([(VALUES, "<f4", (width,))])
    if whole or width <= ALL_CLASSES:
        return np.dtype([(VALUES, "<f2", (width,))])
    return np.dtype([(VALUES, "<f2", (TOP + 1,)), (CLASSES, "<u2" if width <= 1 << 16 else "<u4", (TOP,))])


def pack_rows(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Return logits or features (B, K) float32 as rows (B,) of a ``row_dtype``.

    Raises:
        ValueError: a number is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite")
    rows = np.empty(len(values), dtype)
    if dtype[VALUES].base == np.float32:
        rows[VALUES] = values
        return rows
    logits = np.maximum(values - values.max(axis=1, keepdims=True), LOWEST)
    if CLASSES not in (dtype.names or ()):
        rows[VALUES] = logits
        return rows
    order = np.argsort(-logits, axis=1, kind="stable")
    rest = np.take_along_axis(logits, order[:, TOP:], axis=1)
    mean_of_rest = np.log(np.exp(rest - rest[:, :1]).mean(axis=1)) + rest[:, 0]  # the same probability, spread evenly
    rows[CLASSES] = order[:, :TOP]
    rows[VALUES][:, :TOP] = np.take_along_axis(logits, order[:, :TOP], axis=1)
    rows[VALUES][:, TOP] = mean_of_rest
    return rows


def unpack_rows(rows: np.ndarray, width: int) -> np.ndarray:
    """Return the logits or features (B, ``width``) float32 of rows (B,)."""
    if CLASSES not in (rows.dtype.names or ()):
        return rows[VALUES].astype(np.float32)
    values = rows[VALUES].astype(np.float32)
    logits = np.repeat(values[:, TOP:], width, axis=1)
    np.put_along_axis(logits, rows[CLASSES].astype(np.int64), values[:, :TOP], axis=1)
    return logits


@dataclass(frozen=True, eq=False)
class CachedLogits:
    """Cached logits or features in a file, which each process maps at its first read.

    Attributes:
        file: its rows are one for each image of each view, or of each step.
        width: numbers of a row.
        views: number of views of each image, which repeat; None where each pass shows new ones.
        replaces_images: they are features, and the stage sees them in place of images.
    """

    file: Path
    width: int
    views: int | None
    replaces_images: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "rows"}

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows, memory-mapped."""
        rows: np.ndarray = np.load(self.file, mmap_mode="r", allow_pickle=False)
        return rows

    def repeat_views(self, samples: SampleIndices) -> SampleIndices:
        """Return the samples of a step where views repeat: passes become numbers of views, and there are no copies."""
        if self.views is None:
            return samples
        views = (samples.passes + samples.copies) % self.views
        return SampleIndices(views, samples.entries, np.zeros_like(samples.copies))

    def read(self, step: int, samples: SampleIndices, stream: Stream) -> np.ndarray:
        """Return the values (B, K) float32 for the samples of a step, after ``repeat_views``."""
        if self.views is None:
            return unpack_rows(self.rows[step * stream.batch_size : (step + 1) * stream.batch_size], self.width)
        return unpack_rows(self.rows[samples.passes * len(stream.indices) + samples.entries], self.width)


def count_views(stream: Stream, steps: int, views: int) -> int:
    """Return how many of ``views`` views of its images a stream reaches in some steps."""
    if stream.even or stream.copies.any():
        return views
    return min(views, -(-steps * stream.batch_size // stream.length))


class CachedLogitsWriter:
    """Writes rows batch by batch; after a kill the next process goes on behind the last saved batch.

    Attributes:
        file: the finished file.
        batches: number of batches that are written.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any], rows: int) -> None:
        """Begin, or go on; the caller holds the folder's lock.

        Raises:
            UserError: the disk is full.
        """
        self.file = folder / LOGITS_FILE
        self._partial, self._progress = folder / PARTIAL, folder / PROGRESS
        folder.mkdir(parents=True, exist_ok=True)
        self.batches, self._written = 0, 0
        begun = map_rows(self._partial, dtype, rows)
        if begun is not None:
            self._rows = begun
            with suppress(OSError, ValueError, KeyError):
                progress = json.loads(self._progress.read_text())
                self.batches, self._written = int(progress["batches"]), int(progress["rows"])
        else:
            self._progress.unlink(missing_ok=True)
            self._rows = _reserve_rows(self._partial, dtype, rows)

    @property
    def fraction(self) -> float:
        """The fraction of the rows that is written."""
        return self._written / len(self._rows)

    def add(self, rows: np.ndarray) -> None:
        """Write the next batch; rows beyond the last one of the file are left out."""
        end = min(len(self._rows), self._written + len(rows))
        self._rows[self._written : end] = rows[: end - self._written]
        self._written = end
        self.batches += 1

    def save(self) -> None:
        """Make the written rows durable."""
        self._rows.flush()  # type: ignore[attr-defined]
        write_json(self._progress, {"batches": self.batches, "rows": self._written})

    def finish(self) -> None:
        """Give the file its final name."""
        self._rows.flush()  # type: ignore[attr-defined]
        self._partial.replace(self.file)
        self._progress.unlink(missing_ok=True)
        flush_folder(self.file.parent)


def map_rows(file: Path, dtype: np.dtype[Any], rows: int) -> np.ndarray | None:
    """Return the rows of a file, mapped for writing; None where it does not hold so many of that type."""
    try:
        mapped: np.ndarray = np.load(file, mmap_mode="r+", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return mapped if mapped.dtype == dtype and mapped.shape == (rows,) else None


def _reserve_rows(file: Path, dtype: np.dtype[Any], rows: int) -> np.ndarray:
    """Return the mapped rows of a new file, with its room on the disk reserved: a full disk fails here, not later."""
    try:
        mapped: np.ndarray = np.lib.format.open_memmap(file, "w+", dtype, (rows,))
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    except OSError as error:
        file.unlink(missing_ok=True)
        size = f"{rows * dtype.itemsize / 1e9:.1f} GB"
        raise UserError(
            f"{file.parent}: no room for {size} of a teacher's logits ({error.strerror}); fewer strategy.cached_views, "
            "or strategy.teacher_logits=live"
        ) from None
    return mapped
