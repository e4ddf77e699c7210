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
_BLOCK = 16  # numbers fetched at once; most views need fewer
_FLOAT_BITS = 53
_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's step


def _philox_key(*parts: int | str) -> np.ndarray:
    """Return the 128-bit Philox key (2,) uint64 of ``parts``."""
    digest = hashlib.blake2b(_SEPARATOR.join(map(str, parts)).encode(), digest_size=16).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


@dataclass(frozen=True)
class Key:
    """The key of a family of draws: the run's seed, the stage and the stream of images within it."""

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


def splitmix64_finalize(words: np.ndarray) -> np.ndarray:
    """Return uint64 words, each of whose bits depends on all bits of the input word, by SplitMix64's last function.

    Steele et al. 2014, "Fast splittable pseudorandom number generators", with Stafford's constants (Mix13).
    """
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    finalized: np.ndarray = words ^ (words >> np.uint64(31))
    return finalized


class Numbers:
    """The random numbers of many draws of a family at once.

    Each draw has a stream of SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators") of its
    own, whose n-th number follows from the stream's seed and n alone. In numpy that takes a quarter of the time of
    setting a Philox generator draw by draw.
    """

    def __init__(self, key: Key, purpose: str) -> None:
        self._key = _philox_key(key.seed, key.stage, key.stream, purpose)

    def draw(self, draws: np.ndarray, count: int) -> np.ndarray:
        """Return the first numbers (B, ``count``) float64 in [0, 1) of draws (B, 3) int64: pass, index, copy."""
        seeds = np.full(len(draws), self._key[0])
        for words in (self._key[1], *draws.T.astype(np.uint64)):
            seeds = splitmix64_finalize((seeds ^ words) + _GAMMA)
        return (generate_splitmix64(seeds, count) >> np.uint64(64 - _FLOAT_BITS)) * 2.0**-_FLOAT_BITS


def generate_splitmix64(seeds: np.ndarray, count: int) -> np.ndarray:
    """Return the first ``count`` words (B, ``count``) uint64 of SplitMix64 from seeds (B,) uint64."""
    return splitmix64_finalize(seeds[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GAMMA)


class _Random(random.Random):
    """Python's ``random`` over a numpy generator: all of its distributions, from that generator's numbers.

    Seeding Python's own generator would take longer than drawing all the numbers that most views need.
    """

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator
        self._block: list[float] = []
        super().__init__(0)

    def clear(self) -> None:
        """Drop the numbers that are left from the previous draw."""
        self._block.clear()
        self.gauss_next = None

    def random(self) -> float:
        """Return a number in [0, 1)."""
        if not self._block:
            self._block = self._generator.random(_BLOCK).tolist()
        return self._block.pop()

    def getrandbits(self, k: int, /) -> int:
        """Return an integer of ``k`` random bits."""
        if k <= _FLOAT_BITS:
            return int(self.random() * (1 << k))
        return int.from_bytes(self._generator.bytes(-(-k // 8)), "little") >> (-k % 8)


class SeekableGenerators:
    """One numpy and one Python generator that can be set to any draw of a family, cheaply.

    Albumentations' transforms draw from both. They get these two once; ``seek`` then takes one or two microseconds an
    image, where their ``set_random_seed`` takes about 230.
    """

    def __init__(self, key: Key, purpose: str) -> None:
        self._philox = np.random.Philox(key=_philox_key(key.seed, key.stage, key.stream, purpose))
        self._state = self._philox.state
        self._counter = self._state["state"]["counter"]
        self._counter[:] = 0
        self._state["buffer_pos"] = _BUFFER_USED_UP
        self._state["has_uint32"] = 0
        self.numpy = np.random.Generator(self._philox)
        self.python = _Random(self.numpy)

    def seek(self, pass_: int, index: int, copy: int) -> None:
        """Set both generators to the start of the draw (pass, index, copy)."""
        self._counter[1:] = pass_, index, copy
        self._philox.state = self._state
        self.python.clear()
