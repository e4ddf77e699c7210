"""Endless streams of training images whose position follows from the optimizer step alone."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tutelage.data.shared import Shared
from tutelage.randomness import Key

PART = 1 << 16  # entries whose order is made at once; longer passes come in parts
ROUNDS = 8
ARRAYS = ("indices", "targets", "copies")


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
        shuffled: each pass has an order of its own; else that of ``indices``.
    """

    name: str
    indices: np.ndarray
    targets: np.ndarray
    batch_size: int
    copies: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    even: bool = False
    shuffled: bool = True

    def __post_init__(self) -> None:
        if not len(self.indices):
            raise ValueError(f"stream {self.name!r} has no images")
        if not len(self.copies):
            object.__setattr__(self, "copies", np.zeros(len(self.indices), dtype=np.int64))

    def __getstate__(self) -> dict[str, Any]:
        shared = self.__dict__.setdefault("_shared", {name: Shared(getattr(self, name)) for name in ARRAYS})
        return {**{name: value for name, value in self.__dict__.items() if name not in ARRAYS}, "_shared": shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, **{name: shared.array for name, shared in state["_shared"].items()})

    @property
    def length(self) -> int:
        """Images that a pass shows."""
        if not self.even:
            return len(self.indices)
        counts = np.unique(self.targets, return_counts=True)[1]
        return int(len(counts) * counts.max())


class Shows(NamedTuple):
    """What a step shows of a stream: for each image its pass, its entry and which copy it is, (B,) int64 each."""

    passes: np.ndarray
    entries: np.ndarray
    copies: np.ndarray


class Draws:
    """What a stream shows at each step."""

    def __init__(self, stream: Stream, key: Key) -> None:
        self._stream = stream
        self._length = stream.length
        self._part = self._length if stream.even else min(self._length, PART)
        self._order = lru_cache(maxsize=2)(
            lambda pass_, part: _evened(stream.targets, key, pass_) if stream.even else _order(stream, key, pass_, part)
        )

    def at(self, step: int) -> Shows:
        """Return what the batch of ``step`` (from 0) shows."""
        size = self._stream.batch_size
        passes, places = np.divmod(np.arange(step * size, (step + 1) * size), self._length)
        parts, within = np.divmod(places, self._part)
        starts = np.flatnonzero(np.diff(parts + passes * (self._length + 1), prepend=-1))  # of runs within one part
        pieces = []
        for first, last in zip(starts, [*starts[1:], size], strict=True):
            entries, copies = self._order(int(passes[first]), int(parts[first]))
            pieces.append((entries[within[first:last]], copies[within[first:last]]))
        entries, copies = (np.concatenate(piece) for piece in zip(*pieces, strict=True))
        return Shows(passes, entries, copies)


def _order(stream: Stream, key: Key, pass_: int, part: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the entries of a part of a pass, in the pass's order, and which duplicate each is.

    A short pass is shuffled whole. Of a long one only the part is made, so that no process holds an order of all: each
    place has an entry by itself.
    """
    count, generator = len(stream.indices), key.generator("order", pass_=pass_)
    if not stream.shuffled:
        entries = np.arange(part * PART, min(count, (part + 1) * PART))
    elif count <= PART:
        entries = generator.permutation(count)
    else:
        keys = generator.integers(0, 1 << 64, size=ROUNDS, dtype=np.uint64)
        entries = permuted(np.arange(part * PART, min(count, (part + 1) * PART)), count, keys)
    return entries, stream.copies[entries]


def permuted(places: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    """Return where a permutation of 0 to ``count`` - 1 takes some places, (N,) int64, without the rest of it.

    A Feistel network (Luby and Rackoff 1988) permutes the next larger power of four; what it takes beyond ``count`` it
    takes further, until it comes back below (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
        places: (N,) int64 from 0 to ``count`` - 1.
        count: how many are permuted.
        keys: (R,) uint64, one for each round.
    """
    half = np.uint64(((count - 1).bit_length() + 1) // 2)
    mask = (np.uint64(1) << half) - np.uint64(1)
    found = places.astype(np.uint64)
    beyond = np.ones(len(places), dtype=bool)
    while beyond.any():
        left, right = found[beyond] >> half, found[beyond] & mask
        for key in keys:
            left, right = right, left ^ (_scattered(right + key) & mask)
        found[beyond] = left << half | right
        beyond = found >= count
    return found.astype(np.int64)


def _scattered(words: np.ndarray) -> np.ndarray:
    """Return words (N,) uint64 each of whose bits depends on all bits of what came in: the end of splitmix64."""
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


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
