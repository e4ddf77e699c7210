"""Selection of the pool images that a student trains on, with their targets."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.data.loading.shared_memory import SharedArray
from tutelage.data.pseudo_labels.labels import Labels

CHUNK_SIZE = 1 << 20  # entries that are processed at once, so that intermediate arrays stay small


@dataclass(frozen=True)
class Rules:
    """Rules of a selection (Xie et al. 2020, section 2 and appendix A.2) and of its targets.

    Attributes:
        confidence: images whose prediction is less confident are dropped.
        balance: each class that was predicted is selected equally often.
        per_class: how often, under ``balance``; None for the mean over all classes.
        hard: targets are the predicted classes; else probabilities.
        temperature: T of soft targets p^(1/T), renormalised; above 1 they are softer.
        in_order: entries ascend, duplicates side by side, as needed for a pool that is read shard by shard.
    """

    confidence: float = 0.0
    balance: bool = True
    per_class: int | None = None
    hard: bool = False
    temperature: float = 1.0
    in_order: bool = False


class Targets:
    """A student's targets for the images of a selection: (n, C) float32, computed from the labels when they are read.

    Attributes:
        ndim: 2, as of the array that it stands for.
        shape: (n, C).
    """

    ndim = 2

    def __init__(self, labels: Labels, entries: np.ndarray, rules: Rules) -> None:
        self._labels, self._entries, self._rules = labels.without_summary(), SharedArray(entries), rules
        self.shape = (len(entries), labels.classes)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, positions: Any) -> np.ndarray:
        """Return the targets (B, C) float32 at some positions (B,) of the selection."""
        probabilities = self._labels[self._entries.array[positions]]
        if self._rules.hard:
            one_hot = np.zeros_like(probabilities)
            np.put_along_axis(one_hot, probabilities.argmax(axis=1)[:, None], 1.0, axis=1)
            return one_hot
        if self._rules.temperature != 1.0:
            probabilities **= 1 / self._rules.temperature
            probabilities /= probabilities.sum(axis=1, keepdims=True)
        return probabilities

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return all targets; for pictures and small selections."""
        return np.asarray(self[np.arange(len(self))], dtype=dtype)


@dataclass(frozen=True)
class Selection:
    """The pool images that a student trains on.

    Attributes:
        entries: (n,) of the smallest signed integers that fit, indices into the pool; a duplicated image is here
            several times.
        copies: (n,) of the smallest integers that fit, the number of each duplicate of an image, from 0.
        targets: (n, C) float32 probabilities, or an object that returns those at positions (B,).
    """

    entries: np.ndarray
    copies: np.ndarray
    targets: Targets | np.ndarray

    def count_uses(self, count: int) -> np.ndarray:
        """Return how often each of ``count`` pool images is shown in a pass, (count,) uint32."""
        return _count_entries(self.entries, count)


def _count_entries(entries: np.ndarray, count: int) -> np.ndarray:
    """Return how often each of 0 ... ``count`` - 1 is among the entries, (count,) uint32."""
    uses = np.zeros(count, dtype=np.uint32)
    for chunk in chunk_slices(len(entries)):
        np.add.at(uses, entries[chunk], 1)
    return uses


def chunk_slices(count: int) -> Iterator[slice]:
    """Yield slices that cover ``count`` items, ``CHUNK_SIZE`` each."""
    for first in range(0, count, CHUNK_SIZE):
        yield slice(first, min(count, first + CHUNK_SIZE))


def select(labels: Labels, rules: Rules) -> Selection:
    """Return the pool images to train on (Xie et al. 2020, section 2 and appendix A.2).

    Images below ``confidence`` are dropped. With ``balance`` each class that was predicted gets the same number: its
    most confident images, or all of them with duplicates, from the most confident on, if there are fewer. Among equally
    confident images the earlier one comes first.

    The result depends only on labels and rules. For N pool images it takes about 15 bytes each.
    """
    if not rules.balance:
        entries = _confident_entries(labels, rules.confidence)
        return Selection(entries, np.zeros(len(entries), np.uint8), Targets(labels, entries, rules))
    confident, ends = _confident_entries_by_class(labels, rules.confidence)
    class_counts = np.diff(ends, prepend=0)
    per_class = rules.per_class or max(1, round(len(confident) / labels.classes))
    predicted = np.flatnonzero(class_counts)
    entries = np.empty(len(predicted) * per_class, confident.dtype)
    fewest = int(class_counts[predicted].min(initial=per_class))
    copies = np.empty(len(entries), np.min_scalar_type(-(-per_class // max(1, fewest))))
    for number, c in enumerate(predicted.tolist()):
        members = confident[ends[c - 1] if c else 0 : ends[c]]
        by_confidence = members[np.argsort(-labels.confidence[members], kind="stable")]
        chunk = slice(number * per_class, (number + 1) * per_class)
        entries[chunk] = np.resize(by_confidence, per_class)  # repeats from the most confident on, or cuts
        copies[chunk] = np.arange(per_class) // len(members)
    if rules.in_order:
        _sort_entries(entries, copies, labels.count)
    return Selection(entries, copies, Targets(labels, entries, rules))


def _sort_entries(entries: np.ndarray, copies: np.ndarray, count: int) -> None:
    """Sort (n,) entries and the numbers of their duplicates, in place."""
    uses, done = _count_entries(entries, count), 0
    for chunk in chunk_slices(count):
        chunk_uses = uses[chunk].astype(np.int64)
        target = slice(done, done + int(chunk_uses.sum()))
        entries[target] = np.repeat(np.arange(chunk.start, chunk.stop), chunk_uses)
        copies[target] = np.arange(target.stop - done) - np.repeat(np.cumsum(chunk_uses) - chunk_uses, chunk_uses)
        done = target.stop


def _entry_dtype(count: int) -> Any:
    """Return the dtype of indices into a pool of ``count`` images."""
    return np.int32 if count <= np.iinfo(np.int32).max else np.int64


def _confident_entries(labels: Labels, confidence: float) -> np.ndarray:
    """Return the entries that reach a confidence, ascending."""
    mask = labels.confidence >= confidence
    entries = np.empty(np.count_nonzero(mask), _entry_dtype(labels.count))
    done = 0
    for chunk in chunk_slices(labels.count):
        positions = np.flatnonzero(mask[chunk])
        entries[done : done + len(positions)] = positions + chunk.start
        done += len(positions)
    return entries


def _confident_entries_by_class(labels: Labels, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the entries that reach a confidence, class after class, and the end of each class (C,) among them.

    Within a class the entries ascend. It is a counting sort chunk by chunk, so that no array of 8 bytes an image is
    made.
    """
    predictions, mask = labels.predictions, labels.confidence >= confidence
    counts = np.zeros(labels.classes, np.int64)
    for chunk in chunk_slices(labels.count):
        counts += np.bincount(predictions[chunk][mask[chunk]], minlength=labels.classes)
    ends = np.cumsum(counts)
    next_free = ends - counts
    entries = np.empty(int(ends[-1]), _entry_dtype(labels.count))
    for chunk in chunk_slices(labels.count):
        positions = np.flatnonzero(mask[chunk])
        classes = predictions[chunk][positions]
        order = np.argsort(classes, kind="stable")
        chunk_counts = np.bincount(classes, minlength=labels.classes)
        # for each position: how many of the chunk's entries belong to earlier classes
        preceding = np.repeat(np.cumsum(chunk_counts) - chunk_counts, chunk_counts)
        targets = np.repeat(next_free, chunk_counts) + np.arange(len(positions)) - preceding
        entries[targets] = positions[order] + chunk.start
        next_free += chunk_counts
    return entries, ends
