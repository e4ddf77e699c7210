"""The images of a pool of shards, each read when it is used."""

import os
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.files.decoding import FilePicture, open_picture
from tutelage.data.fitting import fit_image, fit_picture
from tutelage.data.shards.cache import is_read_in_place, open_shard, require_unchanged
from tutelage.data.shards.index import Pool, image_name
from tutelage.errors import UserError

if TYPE_CHECKING:
    from tutelage.augmentation import Picture

MAX_OPEN = 8  # shards that a process has open, and whose rows it holds


class _PoolIndex:
    """The positions of a pool's images by their numbers; the rows of a few shards at a time are in memory."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._ends = np.cumsum(pool.counts)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in {"_read_rows", "_open"}}

    def __len__(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def _read_rows(self) -> Any:
        return lru_cache(MAX_OPEN)(self._pool.read_rows)

    def _find(self, index: int) -> tuple[int, tuple[int, int, int]]:
        """Return the number of an image's shard, and its offset, size and position there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - int(self._ends[shard]) + int(self._pool.counts[shard])
        return shard, self._read_rows(shard)[row].item()


class ShardNames(_PoolIndex, Sequence[str]):
    """The names of the images, each made when it is used."""

    def __getitem__(self, index: Any) -> Any:
        shard, (_, _, position) = self._find(int(index))
        return image_name(self._pool.shards[shard], position)


class ShardImages(_PoolIndex):
    """The images; a process reads an image's bytes out of its shard (see ``open_shard``) and decodes only these."""

    def __init__(self, pool: Pool, config: DataConfig) -> None:
        super().__init__(pool)
        self._config = config

    def __getitem__(self, index: int) -> np.ndarray:
        return fit_image(self._open_picture(index).read(), self._config)

    def picture(self, index: int) -> "Picture":
        """Return the image that crops are cut from, not decoded yet (see ``data.fit``).

        Raises:
            UserError: the shard cannot be read any more, or has changed.
        """
        return fit_picture(self._open_picture(index), self._config)

    def _open_picture(self, index: int) -> FilePicture:
        """Return the whole image as it is stored, not decoded yet.

        Raises:
            UserError: the shard cannot be read any more, or has changed.
        """
        number, (offset, size, position) = self._find(index)
        config, shard = self._config, self._pool.shards[number]
        name, file = image_name(shard, position), self._open(number)
        try:
            content = os.pread(file.fileno(), size, offset)
            if is_read_in_place(shard):
                require_unchanged(shard, os.fstat(file.fileno()))
        except OSError as error:
            raise UserError(f"{name}: cannot be read ({error.strerror}); make it readable, and start again") from None
        return open_picture(BytesIO(content), name, config.channels, config.background, config.max_pixels, config.white)

    @cached_property
    def _open(self) -> Callable[[int], IO[bytes]]:
        return lru_cache(MAX_OPEN)(lambda shard: open_shard(self._pool.shards[shard]))
