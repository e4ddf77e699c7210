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
    """

    name: str
    indices: np.ndarray
    targets: np.ndarray
    batch_size: int
    copies: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def __post_init__(self) -> None:
        if not len(self.indices):
            raise ValueError(f"stream {self.name!r} has no images")
        if not len(self.copies):
            object.__setattr__(self, "copies", np.zeros(len(self.indices), dtype=np.int64))


class Draws:
    """What a stream shows at each step."""

    def __init__(self, stream: Stream, key: Key) -> None:
        self._stream = stream
        self._order = lru_cache(maxsize=2)(
            lambda pass_: key.generator("order", pass_=pass_).permutation(len(stream.indices))
        )

    def at(self, step: int) -> Iterator[tuple[int, int]]:
        """Yield (pass, entry) for each image of the batch of ``step`` (from 0)."""
        stream = self._stream
        first = step * stream.batch_size
        for position in range(first, first + stream.batch_size):
            pass_, place = divmod(position, len(stream.indices))
            yield pass_, int(self._order(pass_)[place])
