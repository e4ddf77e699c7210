"""Endless streams of training images whose position follows from the optimizer step alone."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tutelage.data.loading.shared_memory import Shared
from tutelage.randomness import Key, splitmix64_finalize

PART = 1 << 16  # entries whose order is made at once; longer passes come in parts
ROUNDS = 8
MOST_INT32 = 1 << 31  # entries
ARRAYS = ("indices", "targets", "copies", "ordered")


@dataclass(frozen=True, eq=False)
class Stream:
    """A set of images shown pass after pass, each pass in a new order.

    Where images lie in shards, a pass goes shard by shard, the shards in a new order and each one's images in a new
    order, so that a pass reads a shard once. Images that lie in none are dealt out evenly among the shards.

    Attributes:
        name: labelled or pool; part of every draw's key.
        indices: (n,) of an integer type, images of the source; an image may stand in it several times.
        targets: (n,) integer classes or (n, C) float32 probabilities; or what gives those of places (B,) when it is
            asked, with ``ndim``, and can be pickled.
        batch_size: images a step.
        copies: (n,) of an integer type, which duplicate an entry is (0 for the first).
        even: a pass shows each class of ``targets`` (n,) as often as the largest, the entries of the smaller ones in
            turn.
        shuffled: each pass has an order of its own; else that of ``indices``.
        beside: what stands before the views of a batch: nothing, plain (the images un-augmented) or twin (another view
            of each).
        blocks: (S,) ascending, the first image of the source that lies in each shard; None or empty without shards.
        ordered: (m,) by their shards, the entries that do not stand in the order of the shards: those at the start
            whose images lie in none, or all; found from ``blocks``.
        ends: (S, 2) where those of each shard end in ``ordered``, and its others among the entries behind; found from
            ``blocks``.
    """

    name: str
    indices: np.ndarray
    targets: Any
    batch_size: int
    copies: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    even: bool = False
    shuffled: bool = True
    beside: str = ""
    blocks: np.ndarray | None = None
    ordered: np.ndarray | None = field(default=None, init=False)
    ends: np.ndarray | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not len(self.indices):
            raise ValueError(f"stream {self.name!r} has no images")
        if not len(self.copies):
            object.__setattr__(self, "copies", np.zeros(len(self.indices), dtype=np.int8))
        if self.blocks is not None and len(self.blocks) and self.shuffled and not self.even:
            ordered, ends = _by_shard(self.indices, self.blocks)
            object.__setattr__(self, "ordered", ordered)
            object.__setattr__(self, "ends", ends)

    def __getstate__(self) -> dict[str, Any]:
        arrays = {name: value for name in ARRAYS if isinstance(value := getattr(self, name), np.ndarray)}
        shared = self.__dict__.setdefault("_shared", {name: Shared(value) for name, value in arrays.items()})
        return {**{name: value for name, value in self.__dict__.items() if name not in shared}, "_shared": shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, **{name: shared.array for name, shared in state["_shared"].items()})

    @property
    def length(self) -> int:
        """Images that a pass shows."""
        if not self.even:
            return len(self.indices)
        counts = np.unique(self.targets, return_counts=True)[1]
        return int(len(counts) * counts.max())

    def targets_of(self, entries: np.ndarray) -> np.ndarray:
        """Return the targets of entries (B,): classes (B,) int64 or probabilities (B, C) float32."""
        found: np.ndarray = self.targets[entries]
        return found.astype(np.int64) if found.ndim == 1 else found


def _by_shard(indices: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``ordered`` and ``ends`` of a stream; that most entries stand in order saves the memory for an order."""
    shards = (np.searchsorted(blocks, indices, side="right") - 1).astype(np.int32)
    outside = np.flatnonzero(shards < 0)
    shards[outside] = splitmix64_finalize(indices[outside].astype(np.uint64)) % np.uint64(len(blocks))
    behind = shards[len(outside) :]
    in_order = (outside == np.arange(len(outside))).all() and (behind[1:] >= behind[:-1]).all()
    loose = shards[: len(outside) if in_order else len(shards)]
    ordered = np.argsort(loose, kind="stable").astype(np.int32 if len(indices) <= MOST_INT32 else np.int64)
    counts = [np.bincount(some, minlength=len(blocks)) for some in (loose, shards[len(loose) :])]
    return ordered, np.cumsum(counts, axis=1).T


class SampleIndices(NamedTuple):
    """What a step shows of a stream: for each image its pass, its entry and which copy it is, (B,) int64 each."""

    passes: np.ndarray
    entries: np.ndarray
    copies: np.ndarray


class StreamSampler:
    """What a stream shows at each step."""

    def __init__(self, stream: Stream, key: Key) -> None:
        self._stream = stream
        self._length = stream.length
        self._parts = lru_cache(maxsize=2)(lambda pass_: _parts(stream, self._length, key, pass_))
        self._order = lru_cache(maxsize=2)(lambda pass_, part: self._made(key, pass_, part))

    def at(self, step: int) -> SampleIndices:
        """Return what the batch of ``step`` (from 0) shows."""
        size = self._stream.batch_size
        passes, places = np.divmod(np.arange(step * size, (step + 1) * size), self._length)
        pieces = []
        for pass_ in np.unique(passes):  # places of a pass, and of a part of it, follow one another
            ends, _ = self._parts(int(pass_))
            own = places[passes == pass_]
            parts = np.searchsorted(ends, own, side="right")
            for part in np.unique(parts):
                entries, copies = self._order(int(pass_), int(part))
                within = own[parts == part] - (ends[part - 1] if part else 0)
                pieces.append((entries[within], copies[within]))
        entries, copies = (np.concatenate(piece) for piece in zip(*pieces, strict=True))
        return SampleIndices(passes, entries, copies)

    def _made(self, key: Key, pass_: int, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the entries (P,) int64 of a part of a pass, in the pass's order, and which duplicate each is."""
        stream = self._stream
        if stream.even:
            return _evened(stream.targets, key, pass_)
        if stream.ends is None:
            entries = _order(stream, key, pass_, part)
        else:
            entries = _within(stream, key, pass_, int(self._parts(pass_)[1][part]))
        return entries, stream.copies[entries].astype(np.int64)


def _parts(stream: Stream, length: int, key: Key, pass_: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where the parts of a pass end, (P,) int64, and which shard each is: a pass is made part by part."""
    if stream.ends is not None:
        shards = key.generator("order of shards", pass_=pass_).permutation(len(stream.ends))
        sizes = np.diff(stream.ends.sum(axis=1), prepend=0)
        return np.cumsum(sizes[shards]), shards
    part = length if stream.even else min(length, PART)
    ends = np.minimum(np.arange(part, length + part, part), length)
    return ends, np.arange(len(ends))


def _within(stream: Stream, key: Key, pass_: int, shard: int) -> np.ndarray:
    """Return the entries of a shard in the order of a pass."""
    assert stream.ordered is not None  # noqa: S101 - there are shards
    assert stream.ends is not None  # noqa: S101
    (loose, behind), (loose_end, behind_end) = stream.ends[shard - 1] if shard else (0, 0), stream.ends[shard]
    others = np.arange(behind, behind_end) + len(stream.ordered)
    entries = np.concatenate([stream.ordered[loose:loose_end].astype(np.int64), others])
    return key.generator("order within shard", pass_=pass_, index=shard).permutation(entries)


def _order(stream: Stream, key: Key, pass_: int, part: int) -> np.ndarray:
    """Return the entries of a part of a pass, in the pass's order.

    A short pass is shuffled whole. Of a long one only the part is made, so that no process holds an order of all: each
    place has an entry by itself.
    """
    count = len(stream.indices)
    if not stream.shuffled:
        return np.arange(part * PART, min(count, (part + 1) * PART))
    generator = key.generator("order", pass_=pass_)
    if count <= PART:
        return generator.permutation(count)
    keys = generator.integers(0, 1 << 64, size=ROUNDS, dtype=np.uint64)
    return permuted(np.arange(part * PART, min(count, (part + 1) * PART)), count, keys)


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
            left, right = right, left ^ (splitmix64_finalize(right + key) & mask)
        found[beyond] = left << half | right
        beyond = found >= count
    return found.astype(np.int64)


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
