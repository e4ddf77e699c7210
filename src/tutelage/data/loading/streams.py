"""Endless streams of training images whose position follows from the optimizer step alone."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tutelage.data.loading.shared_memory import SharedArray
from tutelage.randomness import Key, splitmix64_finalize

CHUNK = 1 << 16  # entries whose order is made at once; longer passes are made in chunks
ROUNDS = 8
MAX_INT32 = 1 << 31  # entries
ARRAYS = ("indices", "targets", "copies", "ordered")


@dataclass(frozen=True, eq=False)
class Stream:
    """An endless stream of images: pass after pass over a set, each pass in a new order.

    Where images lie in shards, a pass goes shard by shard, the shards in a new order and each one's images in a new
    order, so that a pass reads each shard once. Images outside of shards are distributed evenly among the shards.

    Attributes:
        name: labelled, pool or all; a part of the key of every draw.
        indices: (n,) of an integer type, images of the source; an image may occur several times.
        targets: (n,) integer classes or (n, C) float32 probabilities; or an object with ``ndim`` that returns those of
            entries (B,) when it is indexed, and can be pickled.
        batch_size: images in each step.
        copies: (n,) of an integer type, the number of the duplicate that an entry is (0 for the first).
        even: a pass shows each class of ``targets`` (n,) as often as the largest one, by repeating the entries of
            smaller classes in turn.
        shuffled: each pass has an order of its own; else the order of ``indices``.
        beside: images that come before the views of a batch: none, ``plain`` (the images un-augmented) or ``twin``
            (another view of each image).
        blocks: (S,) ascending, the first image of the source in each shard; None or empty without shards.
        ordered: (m,) sorted by shard, the entries that are not in the order of the shards: those at the start whose
            images are outside of shards, or all; computed from ``blocks``.
        ends: (S, 2) where the entries of each shard end in ``ordered``, and among the entries behind it; computed from
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
            ordered, ends = _sort_by_shard(self.indices, self.blocks)
            object.__setattr__(self, "ordered", ordered)
            object.__setattr__(self, "ends", ends)

    def __getstate__(self) -> dict[str, Any]:
        arrays = {name: value for name in ARRAYS if isinstance(value := getattr(self, name), np.ndarray)}
        shared = self.__dict__.setdefault("_shared", {name: SharedArray(value) for name, value in arrays.items()})
        return {**{name: value for name, value in self.__dict__.items() if name not in shared}, "_shared": shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, **{name: shared.array for name, shared in state["_shared"].items()})

    @property
    def length(self) -> int:
        """Number of images in a pass."""
        if not self.even:
            return len(self.indices)
        counts = np.unique(self.targets, return_counts=True)[1]
        return int(len(counts) * counts.max())

    def targets_of(self, entries: np.ndarray) -> np.ndarray:
        """Return the targets of entries (B,): classes (B,) int64 or probabilities (B, C) float32."""
        targets: np.ndarray = self.targets[entries]
        return targets.astype(np.int64) if targets.ndim == 1 else targets


def _sort_by_shard(indices: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``ordered`` and ``ends`` of a stream; entries that are in the order of the shards need no memory."""
    shards = (np.searchsorted(blocks, indices, side="right") - 1).astype(np.int32)
    outside = np.flatnonzero(shards < 0)
    shards[outside] = splitmix64_finalize(indices[outside].astype(np.uint64)) % np.uint64(len(blocks))
    inside = shards[len(outside) :]
    is_in_order = (outside == np.arange(len(outside))).all() and (inside[1:] >= inside[:-1]).all()
    unordered = shards[: len(outside) if is_in_order else len(shards)]
    ordered = np.argsort(unordered, kind="stable").astype(np.int32 if len(indices) <= MAX_INT32 else np.int64)
    counts = [np.bincount(some, minlength=len(blocks)) for some in (unordered, shards[len(unordered) :])]
    return ordered, np.cumsum(counts, axis=1).T


class SampleIndices(NamedTuple):
    """The images of a step: for each its pass, its entry in the stream, and the number of the copy, (B,) int64 each."""

    passes: np.ndarray
    entries: np.ndarray
    copies: np.ndarray


class StreamSampler:
    """Returns the images of each step of a stream: a function of the key and the step alone.

    It stands in for torch's samplers, whose position is the number of batches drawn so far.
    """

    def __init__(self, stream: Stream, key: Key) -> None:
        self._stream = stream
        self._length = stream.length
        self._chunks = lru_cache(maxsize=2)(lambda pass_: _cut_pass(stream, self._length, key, pass_))
        self._order = lru_cache(maxsize=2)(lambda pass_, chunk: self._make_chunk(key, pass_, chunk))

    def at(self, step: int) -> SampleIndices:
        """Return the images of the batch of ``step`` (from 0)."""
        size = self._stream.batch_size
        passes, positions = np.divmod(np.arange(step * size, (step + 1) * size), self._length)
        pieces = []
        for pass_ in np.unique(passes):  # positions in a pass, and in a chunk of it, are consecutive
            ends, _ = self._chunks(int(pass_))
            in_pass = positions[passes == pass_]
            chunks = np.searchsorted(ends, in_pass, side="right")
            for chunk in np.unique(chunks):
                entries, copies = self._order(int(pass_), int(chunk))
                in_chunk = in_pass[chunks == chunk] - (ends[chunk - 1] if chunk else 0)
                pieces.append((entries[in_chunk], copies[in_chunk]))
        entries, copies = (np.concatenate(piece) for piece in zip(*pieces, strict=True))
        return SampleIndices(passes, entries, copies)

    def _make_chunk(self, key: Key, pass_: int, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the entries (P,) int64 of a chunk of a pass, in the pass's order, and the number of each copy."""
        stream = self._stream
        if stream.even:
            return _balance_classes(stream.targets, key, pass_)
        if stream.ends is None:
            entries = _shuffle_chunk(stream, key, pass_, chunk)
        else:
            _, shards = self._chunks(pass_)  # a chunk is a shard
            entries = _shuffle_shard(stream, key, pass_, int(shards[chunk]))
        return entries, stream.copies[entries].astype(np.int64)


def _cut_pass(stream: Stream, length: int, key: Key, pass_: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where the chunks of a pass end, (P,) int64, and the shard that each is: a pass is made chunk by chunk."""
    if stream.ends is not None:
        shards = key.generator("order of shards", pass_=pass_).permutation(len(stream.ends))
        sizes = np.diff(stream.ends.sum(axis=1), prepend=0)
        return np.cumsum(sizes[shards]), shards
    size = length if stream.even else min(length, CHUNK)
    ends = np.minimum(np.arange(size, length + size, size), length)
    return ends, np.arange(len(ends))


def _shuffle_shard(stream: Stream, key: Key, pass_: int, shard: int) -> np.ndarray:
    """Return the entries of a shard in the order of a pass."""
    if stream.ordered is None or stream.ends is None:
        raise ValueError(f"stream {stream.name!r} has no shards")
    (first, first_behind), (end, end_behind) = stream.ends[shard - 1] if shard else (0, 0), stream.ends[shard]
    behind = np.arange(first_behind, end_behind) + len(stream.ordered)
    entries = np.concatenate([stream.ordered[first:end].astype(np.int64), behind])
    return key.generator("order within shard", pass_=pass_, index=shard).permutation(entries)


def _shuffle_chunk(stream: Stream, key: Key, pass_: int, chunk: int) -> np.ndarray:
    """Return the entries of a chunk of a pass, in the pass's order.

    A short pass is shuffled whole. Of a long one only the chunk is computed, so that no process holds the order of all
    entries.
    """
    count = len(stream.indices)
    if not stream.shuffled:
        return np.arange(chunk * CHUNK, min(count, (chunk + 1) * CHUNK))
    generator = key.generator("order", pass_=pass_)
    if count <= CHUNK:
        return generator.permutation(count)
    keys = generator.integers(0, 1 << 64, size=ROUNDS, dtype=np.uint64)
    return permute(np.arange(chunk * CHUNK, min(count, (chunk + 1) * CHUNK)), count, keys)


def permute(values: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    """Return the images of some values under a permutation of 0 to ``count`` - 1, (N,) int64, without the rest of it.

    A Feistel network (Luby and Rackoff 1988) permutes the numbers below the next larger power of four; a result of
    ``count`` or more is permuted again until it is smaller (Black and Rogaway 2002, "Ciphers with arbitrary finite
    domains").

    Args:
        values: (N,) int64 from 0 to ``count`` - 1.
        count: size of the permutation.
        keys: (R,) uint64, one for each round.
    """
    half = np.uint64(((count - 1).bit_length() + 1) // 2)
    mask = (np.uint64(1) << half) - np.uint64(1)
    permuted = values.astype(np.uint64)
    too_large = np.ones(len(values), dtype=bool)
    while too_large.any():
        left, right = permuted[too_large] >> half, permuted[too_large] & mask
        for key in keys:
            left, right = right, left ^ (splitmix64_finalize(right + key) & mask)
        permuted[too_large] = left << half | right
        too_large = permuted >= count
    return permuted.astype(np.int64)


def _balance_classes(labels: np.ndarray, key: Key, pass_: int) -> tuple[np.ndarray, np.ndarray]:
    """Return entries in the order of a pass with equally many of each class, and the number of each copy.

    A class repeats its entries round after round, each round in a new order. A pass continues where the one before
    stopped, so that over many passes all entries of a class come equally often.
    """
    classes, counts = np.unique(labels, return_counts=True)
    largest = int(counts.max())
    entries, copies = [], []
    for c, count in zip(classes, counts, strict=True):
        members = np.flatnonzero(labels == c)
        first, last = pass_ * largest, (pass_ + 1) * largest
        rounds = range(first // count, -(-last // count))
        orders = [key.generator("order within class", pass_=turn, index=int(c)).permutation(members) for turn in rounds]
        in_pass = slice(first - rounds.start * count, last - rounds.start * count)
        entries.append(np.concatenate(orders)[in_pass])
        copies.append(np.repeat(np.arange(len(rounds)), count)[in_pass])
    order = key.generator("order", pass_=pass_).permutation(largest * len(classes))
    return np.concatenate(entries)[order], np.concatenate(copies)[order]
