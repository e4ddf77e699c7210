"""Endless streams of training images whose position follows from the optimizer step alone."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from tutelage.randomness import Key


@dataclass(frozen=True, eq=False)
class Stream:
    """A set of images shown pass after pass, each pass in a new order.

    Attributes:
        name: labelled or pool; part of every draw's key.
        indices: (n,) int64, images of the source; an image may stand in it several times.
        targets: (n,) int64 classes or (n, C) float32 probabilities.
        batch_size: images a step.
        copies: (n,) int64, which duplicate an entry is (0 for the first).
        even: a pass shows each class of ``targets`` (n,) as often as the largest, the entries of the smaller ones in
            turn.
    """

    name: str
    indices: np.ndarray
    targets: np.ndarray
    batch_size: int
    copies: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    even: bool = False

    def __post_init__(self) -> None:
        if not len(self.indices):
            raise ValueError(f"stream {self.name!r} has no images")
        if not len(self.copies):
            object.__setattr__(self, "copies", np.zeros(len(self.indices), dtype=np.int64))

    @property
    def length(self) -> int:
        """Images that a pass shows."""
        if not self.even:
            return len(self.indices)
        counts = np.unique(self.targets, return_counts=True)[1]
        return int(len(counts) * counts.max())


class Draws:
    """What a stream shows at each step."""

    def __init__(self, stream: Stream, key: Key) -> None:
        self._stream = stream
        self._length = stream.length
        self._order = lru_cache(maxsize=2)(
            lambda pass_: _evened(stream.targets, key, pass_) if stream.even else _shuffled(stream, key, pass_)
        )

    def at(self, step: int) -> Iterator[tuple[int, int, int]]:
        """Yield (pass, entry, copy) for each image of the batch of ``step`` (from 0)."""
        first = step * self._stream.batch_size
        for position in range(first, first + self._stream.batch_size):
            pass_, place = divmod(position, self._length)
            entries, copies = self._order(pass_)
            yield pass_, int(entries[place]), int(copies[place])


def _shuffled(stream: Stream, key: Key, pass_: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all entries in the order of a pass, and which duplicate each is."""
    entries = key.generator("order", pass_=pass_).permutation(len(stream.indices))
    return entries, stream.copies[entries]


def _evened(labels: np.ndarray, key: Key, pass_: int) -> tuple[np.ndarray, np.ndarray]:
    """Return entries in the order of a pass that shows each class equally often, and how often each was shown before.

    A class goes through its own entries round after round, each round in a new order; a pass takes up where the one
    before stopped, so that over many passes no entry comes more often than another of its class.
    """
    classes, counts = np.unique(labels, return_counts=True)
    most = int(counts.max())
    entries, copies = [], []
    for c, count in zip(classes, counts, strict=True):
        members = np.flatnonzero(labels == c)
        first, last = pass_ * most, (pass_ + 1) * most
        rounds = range(first // count, -(-last // count))
        orders = [key.generator("order within class", pass_=turn, index=int(c)).permutation(members) for turn in rounds]
        taken = slice(first - rounds.start * count, last - rounds.start * count)
        entries.append(np.concatenate(orders)[taken])
        copies.append(np.repeat(np.arange(len(rounds)), count)[taken])
    order = key.generator("order", pass_=pass_).permutation(most * len(classes))
    return np.concatenate(entries)[order], np.concatenate(copies)[order]
