"""A frozen network's answers to what a stage shows, kept in a memory-mapped file: whole or absent."""

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

ANSWERS, PARTIAL, PROGRESS = "answers.npy", "answers.partial", "progress.json"
ALL_CLASSES = 128  # up to so many classes every logit is kept
TOP = 32  # of more classes, the largest ones; big_vision and TinyViT keep 10 to 100 of 1000
LOWEST = -60_000.0  # of float16, whose range ends at 65504

VALUES, CLASSES = "values", "classes"


def row_dtype(width: int, exact: bool, whole: bool = False) -> np.dtype[Any]:
    """Return how an answer of ``width`` numbers is kept.

    Args:
        width: numbers of an answer.
        exact: they are features, kept as they are; else logits, as float16 less the largest, which no softmax sees. Of
            more than ``ALL_CLASSES`` the ``TOP`` largest are kept and, behind them, the one that the others share.
        whole: all logits are kept, however many there are: the softmax is over parts of them.
    """
    if exact:
        return np.dtype([(VALUES, "<f4", (width,))])
    if whole or width <= ALL_CLASSES:
        return np.dtype([(VALUES, "<f2", (width,))])
    return np.dtype([(VALUES, "<f2", (TOP + 1,)), (CLASSES, "<u2" if width <= 1 << 16 else "<u4", (TOP,))])


def packed(answers: np.ndarray, kind: np.dtype[Any]) -> np.ndarray:
    """Return answers (B, K) float32 as rows (B,) of a ``row_dtype``.

    Raises:
        ValueError: a number is not finite.
    """
    if not np.isfinite(answers).all():
        raise ValueError("an answer is not finite")
    rows = np.empty(len(answers), kind)
    if kind[VALUES].base == np.float32:
        rows[VALUES] = answers
        return rows
    logits = np.maximum(answers - answers.max(axis=1, keepdims=True), LOWEST)
    if CLASSES not in (kind.names or ()):
        rows[VALUES] = logits
        return rows
    order = np.argsort(-logits, axis=1, kind="stable")
    rest = np.take_along_axis(logits, order[:, TOP:], axis=1)
    shared = np.log(np.exp(rest - rest[:, :1]).mean(axis=1)) + rest[:, 0]  # the same mass, spread evenly
    rows[CLASSES] = order[:, :TOP]
    rows[VALUES][:, :TOP] = np.take_along_axis(logits, order[:, :TOP], axis=1)
    rows[VALUES][:, TOP] = shared
    return rows


def unpacked(rows: np.ndarray, width: int) -> np.ndarray:
    """Return the answers (B, ``width``) float32 that rows (B,) keep."""
    if CLASSES not in (rows.dtype.names or ()):
        return rows[VALUES].astype(np.float32)
    values = rows[VALUES].astype(np.float32)
    answers = np.repeat(values[:, TOP:], width, axis=1)
    np.put_along_axis(answers, rows[CLASSES].astype(np.int64), values[:, :TOP], axis=1)
    return answers


@dataclass(frozen=True, eq=False)
class CachedLogits:
    """Answers in a file, which each process maps when it first reads some.

    Attributes:
        file: of rows, one for each place of each view, or of each step.
        width: numbers of an answer.
        views: how many views of each image there are, which repeat; None where each pass shows new ones.
        instead: they are shown instead of the images.
    """

    file: Path
    width: int
    views: int | None
    instead: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "rows"}

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows, memory-mapped."""
        found: np.ndarray = np.load(self.file, mmap_mode="r", allow_pickle=False)
        return found

    def repeated(self, shows: SampleIndices) -> SampleIndices:
        """Return what is shown where views repeat: the passes are the numbers of views, and there are no copies."""
        if self.views is None:
            return shows
        return SampleIndices((shows.passes + shows.copies) % self.views, shows.entries, np.zeros_like(shows.copies))

    def answers(self, step: int, shows: SampleIndices, stream: Stream) -> np.ndarray:
        """Return the answers (B, K) float32 to what a stream ``repeated`` at a step."""
        if self.views is None:
            return unpacked(self.rows[step * stream.batch_size : (step + 1) * stream.batch_size], self.width)
        return unpacked(self.rows[shows.passes * len(stream.indices) + shows.entries], self.width)


def views_shown(stream: Stream, steps: int, views: int) -> int:
    """Return how many of ``views`` views of its images a stream shows in some steps."""
    if stream.even or stream.copies.any():
        return views
    return min(views, -(-steps * stream.batch_size // stream.length))


class CachedLogitsWriter:
    """Rows that are written one batch after another; a process that was killed among them goes on behind the last.

    Attributes:
        file: where all of them will be.
        done: batches that are written.
    """

    def __init__(self, folder: Path, kind: np.dtype[Any], rows: int) -> None:
        """Begin, or go on; the caller holds the folder's lock.

        Raises:
            UserError: the disk has no room.
        """
        self.file = folder / ANSWERS
        self._partial, self._progress = folder / PARTIAL, folder / PROGRESS
        folder.mkdir(parents=True, exist_ok=True)
        self.done, self._written = 0, 0
        begun = mapped(self._partial, kind, rows)
        if begun is not None:
            self._rows = begun
            with suppress(OSError, ValueError, KeyError):
                progress = json.loads(self._progress.read_text())
                self.done, self._written = int(progress["batches"]), int(progress["rows"])
        else:
            self._progress.unlink(missing_ok=True)
            self._rows = _reserved(self._partial, kind, rows)

    @property
    def share(self) -> float:
        """The share of the rows that is written."""
        return self._written / len(self._rows)

    def add(self, rows: np.ndarray) -> None:
        """Write the next batch; what goes beyond the last row is left out."""
        end = min(len(self._rows), self._written + len(rows))
        self._rows[self._written : end] = rows[: end - self._written]
        self._written = end
        self.done += 1

    def save(self) -> None:
        """Make what is written durable."""
        self._rows.flush()  # type: ignore[attr-defined]
        write_json(self._progress, {"batches": self.done, "rows": self._written})

    def finish(self) -> None:
        """Give the file its name."""
        self._rows.flush()  # type: ignore[attr-defined]
        self._partial.replace(self.file)
        self._progress.unlink(missing_ok=True)
        flush_folder(self.file.parent)


def mapped(file: Path, kind: np.dtype[Any], rows: int) -> np.ndarray | None:
    """Return the rows of a file, mapped to be written to; None where it does not hold so many of that kind."""
    try:
        found: np.ndarray = np.load(file, mmap_mode="r+", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return found if found.dtype == kind and found.shape == (rows,) else None


def _reserved(file: Path, kind: np.dtype[Any], rows: int) -> np.ndarray:
    """Return rows of a new file, mapped; its place on the disk is taken: a full disk would end the process later."""
    try:
        found: np.ndarray = np.lib.format.open_memmap(file, "w+", kind, (rows,))
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    except OSError as error:
        file.unlink(missing_ok=True)
        size = f"{rows * kind.itemsize / 1e9:.1f} GB"
        raise UserError(
            f"{file.parent}: no room for {size} of a teacher's answers ({error.strerror}); fewer strategy.cached_views, "
            "or strategy.teacher_logits=live"
        ) from None
    return found
