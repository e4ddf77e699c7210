"""Which pool images a student trains on, and what it is told of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.data.loading.shared_memory import Shared
from tutelage.data.pseudo_labels.labels import Labels

AT_ONCE = 1 << 20  # entries that are looked at together: what is made of them on the way stays small


@dataclass(frozen=True)
class Rules:
    """What is selected (Xie et al. 2020, section 2 and appendix A.2), and what students are told.

    Attributes:
        confidence: answers below it are dropped.
        balance: each class that was answered comes equally often.
        per_class: how often, under ``balance``; None for the mean over all classes.
        hard: targets are the answered classes; else probabilities.
        temperature: T of soft targets p^(1/T), renormalised; above 1 they are softer.
        in_order: entries ascend, duplicates side by side, as a pool wants it that is read shard by shard.
    """

    confidence: float = 0.0
    balance: bool = True
    per_class: int | None = None
    hard: bool = False
    temperature: float = 1.0
    in_order: bool = False


class Targets:
    """What a student is told of the images of a selection: (n, C) float32, made from the labels when it is asked for.

    Attributes:
        ndim: 2, as of the array that it stands for.
        shape: (n, C).
    """

    ndim = 2

    def __init__(self, labels: Labels, entries: np.ndarray, rules: Rules) -> None:
        self._labels, self._entries, self._rules = labels.bare(), Shared(entries), rules
        self.shape = (len(entries), labels.classes)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, places: Any) -> np.ndarray:
        """Return the targets (B, C) float32 at some places (B,) of the selection."""
        probabilities = self._labels[self._entries.array[places]]
        if self._rules.hard:
            hard = np.zeros_like(probabilities)
            np.put_along_axis(hard, probabilities.argmax(axis=1)[:, None], 1.0, axis=1)
            return hard
        if self._rules.temperature != 1.0:
            probabilities **= 1 / self._rules.temperature
            probabilities /= probabilities.sum(axis=1, keepdims=True)
        return probabilities

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return all targets; for pictures and small selections."""
        return np.asarray(self[np.arange(len(self))], dtype=dtype)


@dataclass(frozen=True)
class Selection:
    """Which pool images a student trains on.

    Attributes:
        entries: (n,) of the smallest signed integers that fit, positions in the pool; one that is duplicated stands
            here several times.
        copies: (n,) of the smallest integers that fit, which duplicate an entry is.
        targets: (n, C) float32 probabilities, or what gives them for places (B,) when it is asked.
    """

    entries: np.ndarray
    copies: np.ndarray
    targets: Targets | np.ndarray

    def times(self, count: int) -> np.ndarray:
        """Return how often each of ``count`` pool images is shown in a pass, (count,) uint32."""
        return _times(self.entries, count)


def _times(entries: np.ndarray, count: int) -> np.ndarray:
    times = np.zeros(count, dtype=np.uint32)
    for some in pieces(len(entries)):
        np.add.at(times, entries[some], 1)
    return times


def pieces(count: int) -> Iterator[slice]:
    """Yield slices that cover ``count`` things, ``AT_ONCE`` each."""
    for first in range(0, count, AT_ONCE):
        yield slice(first, min(count, first + AT_ONCE))


def select(labels: Labels, rules: Rules) -> Selection:
    """Return the pool images to train on (Xie et al. 2020, section 2 and appendix A.2).

    Answers below ``confidence`` are dropped. With ``balance`` each class that was answered gets the same number: its
    most confident images, or all of them with duplicates, from the most confident on, where there are fewer. Among
    equals the earlier one comes first.

    The same for the same labels and rules, and lean: for N pool images some 15 bytes each.
    """
    if not rules.balance:
        entries = _kept(labels, rules.confidence)
        return Selection(entries, np.zeros(len(entries), np.uint8), Targets(labels, entries, rules))
    kept, ends = _by_class(labels, rules.confidence)
    each = rules.per_class or max(1, round(len(kept) / labels.classes))
    answered = np.flatnonzero(np.diff(ends, prepend=0))
    entries = np.empty(len(answered) * each, kept.dtype)
    fewest = int(np.diff(ends, prepend=0)[answered].min(initial=each))
    copies = np.empty(len(entries), np.min_scalar_type(-(-each // max(1, fewest))))
    for turn, c in enumerate(answered.tolist()):
        members = kept[ends[c - 1] if c else 0 : ends[c]]
        by_certainty = members[np.argsort(-labels.certainty[members], kind="stable")]
        part = slice(turn * each, (turn + 1) * each)
        entries[part] = np.resize(by_certainty, each)  # repeats from the most certain on, or cuts
        copies[part] = np.arange(each) // len(members)
    if rules.in_order:
        _put_in_order(entries, copies, labels.count)
    return Selection(entries, copies, Targets(labels, entries, rules))


def _put_in_order(entries: np.ndarray, copies: np.ndarray, count: int) -> None:
    """Sort (n,) entries and the numbers of their duplicates, in place."""
    times, done = _times(entries, count), 0
    for some in pieces(count):
        here = times[some].astype(np.int64)
        part = slice(done, done + int(here.sum()))
        entries[part] = np.repeat(np.arange(some.start, some.stop), here)
        copies[part] = np.arange(part.stop - done) - np.repeat(np.cumsum(here) - here, here)
        done = part.stop


def _integers(count: int) -> Any:
    """Return the type of positions in a pool of ``count``."""
    return np.int32 if count <= np.iinfo(np.int32).max else np.int64


def _kept(labels: Labels, confidence: float) -> np.ndarray:
    """Return the entries whose answers reach a confidence, in their order."""
    sure = labels.certainty >= confidence
    kept = np.empty(np.count_nonzero(sure), _integers(labels.count))
    done = 0
    for some in pieces(labels.count):
        found = np.flatnonzero(sure[some])
        kept[done : done + len(found)] = found + some.start
        done += len(found)
    return kept


def _by_class(labels: Labels, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the entries whose answers reach a confidence, class after class, and where each class ends (C,).

    Within a class they are in their order. It is a counting sort in pieces, so that no array of 8 bytes an image is
    made.
    """
    answers, sure = labels.answers, labels.certainty >= confidence
    counts = np.zeros(labels.classes, np.int64)
    for some in pieces(labels.count):
        counts += np.bincount(answers[some][sure[some]], minlength=labels.classes)
    ends = np.cumsum(counts)
    next_free = ends - counts
    kept = np.empty(int(ends[-1]), _integers(labels.count))
    for some in pieces(labels.count):
        found = np.flatnonzero(sure[some])
        of_class = answers[some][found]
        order = np.argsort(of_class, kind="stable")
        here = np.bincount(of_class, minlength=labels.classes)
        before = np.repeat(np.cumsum(here) - here, here)  # of each: how many of other classes stand before its own
        kept[np.repeat(next_free, here) + np.arange(len(found)) - before] = found[order] + some.start
        next_free += here
    return kept, ends
