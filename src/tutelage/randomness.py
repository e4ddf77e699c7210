"""The draw: every random choice is a function of its key, never of what came before.

A key is (seed, stage, stream, purpose) and a position in it (pass, index, copy). The first four choose a Philox key,
the last three its counter (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so that any draw of any
pass can be made again, by any process, in any order.
"""

import hashlib
import random
from dataclasses import dataclass

import numpy as np

_SEPARATOR = "\x1f"  # stands in no stage, stream or purpose
_BUFFER_USED_UP = 4  # a Philox buffer of four words with none left: the next draw computes new ones


def _philox_key(*parts: int | str) -> np.ndarray:
    """Return the 128-bit Philox key (2,) uint64 of ``parts``."""
    digest = hashlib.blake2b(_SEPARATOR.join(map(str, parts)).encode(), digest_size=16).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


@dataclass(frozen=True)
class Key:
    """Where a family of draws comes from: the run's seed, the stage and the stream of images within it."""

    seed: int
    stage: str
    stream: str = ""

    def generator(self, purpose: str, pass_: int = 0, index: int = 0, copy: int = 0) -> np.random.Generator:
        """Return the generator of one draw."""
        key = _philox_key(self.seed, self.stage, self.stream, purpose)
        return np.random.Generator(np.random.Philox(key=key, counter=[0, pass_, index, copy]))

    def torch_seed(self, purpose: str, number: int = 0, rank: int = 0) -> int:
        """Return a 63-bit seed for torch's generators: of initial weights, or of optimizer step ``number``."""
        return int(_philox_key(self.seed, self.stage, self.stream, purpose, number, rank)[0] >> np.uint64(1))


class Rekeyed:
    """One numpy and one Python generator that can be set to any draw of a family, cheaply.

    Albumentations' transforms draw from both. They are handed these two once; ``at`` then takes about 5 microseconds
    an image where new generators take about 230.
    """

    def __init__(self, key: Key, purpose: str) -> None:
        self._philox = np.random.Philox(key=_philox_key(key.seed, key.stage, key.stream, purpose))
        self._state = self._philox.state
        self.numpy = np.random.Generator(self._philox)
        self.python = random.Random()  # noqa: S311 - augmentation, not cryptography

    def at(self, pass_: int, index: int, copy: int) -> None:
        """Set both generators to the start of the draw (pass, index, copy)."""
        self._state["state"]["counter"][:] = (0, pass_, index, copy)
        self._state["buffer_pos"] = _BUFFER_USED_UP
        self._state["has_uint32"] = 0
        self._philox.state = self._state
        self.python.seed(int(self._philox.random_raw()))
