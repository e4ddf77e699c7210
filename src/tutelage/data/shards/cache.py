"""Shards as files in which each image has an offset: tars in place, all else fetched whole into a small cache."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any

from tutelage.data.datasets.download import cache_folder
from tutelage.data.shards.pools import Shard, needs_library
from tutelage.errors import UserError
from tutelage.storage import BLOCK, PARTIAL_PREFIX, digest, write_whole

CACHE = "shards"  # below our cache folder
KEPT = 16  # shards in the cache; so many are under way where 8 workers prepare 2 batches each
KEY_LENGTH = 32
LOCK = ".lock"
STALE_SECONDS = 3600.0  # a part that did not grow for so long belongs to nobody
LOCKS = 2  # digits of a key that choose its lock: 256 files, however many shards there are


def key_of(shard: Shard, *more: int) -> str:
    """Return what a shard is known by, as far as can be told without reading it."""
    place = shard.place if shard.is_remote else os.path.abspath(shard.place)  # noqa: PTH100 - 10 times as fast as Path
    return digest([place, *shard[2:], *more])[:KEY_LENGTH]


def opened(shard: Shard) -> IO[bytes]:
    """Return a file of a shard in which its images lie at their offsets.

    A tar that lies here is opened in place. What comes through a network, and row groups of a Parquet file, are written
    to the cache, whole or not at all; of several processes one does, and the others wait for it. The cache keeps the
    ``KEPT`` shards that were opened last; who holds one open may go on reading it.

    Raises:
        UserError: it cannot be read or fetched, or the cache cannot be written.
    """
    if not shard.is_remote and not shard.column:
        return _open(Path(shard.place))
    from filelock import FileLock

    folder, key = cache_folder(CACHE), key_of(shard)
    file = folder / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key[:LOCKS]}{LOCK}"):
            while True:
                with suppress(FileNotFoundError):  # not there yet, or removed in this instant for newer ones
                    found = file.open("rb")
                    os.utime(found.fileno())
                    return found
                write_whole(file, lambda out: _fetch(shard, out))
                _bound(folder)
    except OSError as error:
        reason, way_out = error.strerror or error, "make room, or let XDG_CACHE_HOME name another folder"
        raise UserError(f"{folder}: the shard {shard.name} cannot be kept there ({reason}): {way_out}") from None


def _open(file: Path) -> IO[bytes]:
    try:
        return file.open("rb")
    except OSError as error:
        raise UserError(f"{file}: cannot be opened ({error.strerror}); put that right, or leave it out") from None


def _bound(folder: Path) -> None:
    """Remove all but the newest shards, and what killed processes began to write."""
    found, now = [], time.time()
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # another process removes too
            changed = file.stat().st_mtime
            if not file.name.startswith(PARTIAL_PREFIX):
                found += [] if file.suffix == LOCK else [(changed, file)]
            elif now - changed > STALE_SECONDS:
                file.unlink()
    for _, file in sorted(found)[:-KEPT]:
        file.unlink(missing_ok=True)


def _fetch(shard: Shard, out: IO[bytes]) -> None:
    """Write the content of a shard."""
    if shard.column:
        for _, images in parquet_images(shard):
            for image in images:
                out.write(image.as_buffer())
        return
    try:
        from webdataset.gopen import gopen
    except ImportError:
        raise needs_library(shard.place) from None
    try:
        with closing(gopen(shard.place, "rb")) as source:
            shutil.copyfileobj(source, _Writing(out), BLOCK)
    except (_CannotWrite, UserError) as error:
        raise error.__cause__ or error from None
    except Exception as error:  # the library's, of whatever kind
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{shard.place}: cannot be fetched ({reason}); start again when it is there") from None


class _CannotWrite(Exception):  # noqa: N818 - what it is
    """What went wrong lies here, not at the other end."""


class _Writing:
    """A file whose errors can be told from those of what is read."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out

    def write(self, part: bytes) -> int:
        try:
            return self._out.write(part)
        except OSError as error:
            raise _CannotWrite from error


def parquet_images(shard: Shard) -> Iterator[tuple[int, Any]]:
    """Yield parts of the column of bytes, each with the number in the file of its first row; empty where there is none.

    Raises:
        UserError: the file cannot be read.
    """
    import pyarrow as pa
    from pyarrow import parquet

    row = shard.row
    try:
        with parquet.ParquetFile(shard.place) as file:
            for number in range(shard.first, shard.end):
                column = file.read_row_group(number, columns=[shard.column]).column(0)
                for chunk in column.chunks:
                    images = chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk
                    yield row, images.fill_null(b"")
                    row += len(images)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{shard.place}: cannot be read as Parquet ({reason}); mend or leave it out") from None
