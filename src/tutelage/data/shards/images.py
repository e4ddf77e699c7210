"""The images of a pool of shards, read when they are asked for."""

import os
from collections.abc import Sequence
from functools import cached_property, lru_cache
from io import BytesIO
from typing import IO, Any

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.files.decoding import FilePicture, picture
from tutelage.data.shards.cache import opened
from tutelage.data.shards.index import Pool, name_in
from tutelage.data.source import resized
from tutelage.errors import UserError

OPEN = 8  # shards that a process holds open


class _Placed:
    """What finds the image of a number: its shard, and where it lies there. Of few shards at a time this is held."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._ends = np.cumsum(pool.counts)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in {"_rows", "_opened"}}

    def __len__(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def _rows(self) -> Any:
        return lru_cache(OPEN)(self._pool.rows)

    def _find(self, index: int) -> tuple[int, tuple[int, int, int]]:
        """Return the number of an image's shard, and its offset, size and place there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        within = index - int(self._ends[shard]) + int(self._pool.counts[shard])
        return shard, self._rows(shard)[within].item()


class ShardNames(_Placed, Sequence[str]):
    """The names of the images, made when they are asked for."""

    def __getitem__(self, index: Any) -> Any:
        shard, (_, _, place) = self._find(int(index))
        return name_in(self._pool.shards[shard], place)


class ShardImages(_Placed):
    """The images; a process reads a shard's bytes where they lie (see ``opened``) and decodes what it is asked for."""

    def __init__(self, pool: Pool, config: DataConfig) -> None:
        super().__init__(pool)
        self._config = config

    def __getitem__(self, index: int) -> np.ndarray:
        return resized(self.picture(index).read(), self._config.image_size)

    def picture(self, index: int) -> FilePicture:
        """Return the whole image as it is stored, decoded when it is known how much of it.

        Raises:
            UserError: the shard cannot be read any more, or is another than it was.
        """
        number, (offset, size, place) = self._find(index)
        config, name = self._config, name_in(self._pool.shards[number], place)
        file: IO[bytes] = self._opened(number)
        try:
            content = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise UserError(f"{name}: cannot be read ({error.strerror}); put that right, and start again") from None
        return picture(BytesIO(content), name, config.channels, config.background, config.max_pixels)

    @cached_property
    def _opened(self) -> Any:
        return lru_cache(OPEN)(lambda number: opened(self._pool.shards[number]))
