"""Shards as files in which each image has an offset: tars in place, others fetched whole into a small cache.

The library webdataset reads tars as streams, from the first byte on; a resumed run needs images in the middle of one.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any

from tutelage.data.datasets.download import MAX_REASON_LENGTH, cache_folder
from tutelage.data.shards.pools import Shard, missing_library_error
from tutelage.errors import UserError
from tutelage.storage import BLOCK, PARTIAL_PREFIX, digest, write_whole

CACHE_NAME = "shards"  # below our cache folder
MAX_CACHED = 16  # shards in the cache; 8 workers that prepare 2 batches each use so many at once
KEY_LENGTH = 32
LOCK_SUFFIX = ".lock"
STALE_SECONDS = 3600.0  # a partial file that did not grow for so long belongs to no process any more
LOCK_DIGITS = 2  # digits of a key that choose its lock: 256 files, however many shards there are


def shard_key(shard: Shard, *more: int) -> str:
    """Return a digest that identifies a shard without reading it: of its location, state and row groups."""
    # os.path.abspath is 10 times as fast as Path
    location = shard.location if shard.is_remote else os.path.abspath(shard.location)  # noqa: PTH100
    return digest([location, *shard[2:], *more])[:KEY_LENGTH]


def open_shard(shard: Shard) -> IO[bytes]:
    """Return a file of a shard in which its images are at their offsets.

    A tar on this machine is opened in place. What comes through a network, and row groups of a Parquet file, are
    written to the cache, whole or not at all; of several processes one writes and the others wait. The cache keeps the
    ``MAX_CACHED`` shards that were opened last; a process that has one open can go on reading it.

    Raises:
        UserError: it cannot be read or fetched, or the cache cannot be written.
    """
    if not shard.is_remote and not shard.column:
        return _open_tar(Path(shard.location))
    from filelock import FileLock

    folder, key = cache_folder(CACHE_NAME), shard_key(shard)
    path = folder / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key[:LOCK_DIGITS]}{LOCK_SUFFIX}"):
            while True:
                with suppress(FileNotFoundError):  # not fetched yet, or removed just now for newer ones
                    file = path.open("rb")
                    os.utime(file.fileno())
                    return file
                write_whole(path, lambda out: _write_shard(shard, out))
                _remove_oldest(folder)
    except OSError as error:
        reason, hint = error.strerror or error, "make room, or let XDG_CACHE_HOME name another folder"
        raise UserError(f"{folder}: the shard {shard.name} cannot be stored there ({reason}): {hint}") from None


def _open_tar(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); make it readable, or leave it out") from None


def _remove_oldest(folder: Path) -> None:
    """Remove all but the newest shards, and the partial files of killed processes."""
    cached, now = [], time.time()
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process may remove it first
            changed = path.stat().st_mtime
            if not path.name.startswith(PARTIAL_PREFIX):
                cached += [] if path.suffix == LOCK_SUFFIX else [(changed, path)]
            elif now - changed > STALE_SECONDS:
                path.unlink()
    for _, path in sorted(cached)[:-MAX_CACHED]:
        path.unlink(missing_ok=True)


def _write_shard(shard: Shard, out: IO[bytes]) -> None:
    """Write the content of a shard, fetched from the network or read from a Parquet file."""
    if shard.column:
        for _, images in read_parquet_images(shard):
            for image in images:
                out.write(image.as_buffer())
        return
    try:
        from webdataset.gopen import gopen
    except ImportError:
        raise missing_library_error(shard.location) from None
    try:
        with closing(gopen(shard.location, "rb")) as stream:
            shutil.copyfileobj(stream, _OutputFile(out), BLOCK)
    except (_WriteFailed, UserError) as error:
        raise error.__cause__ or error from None
    except Exception as error:  # webdataset raises errors of many kinds
        reason = " ".join(str(error).split())[:MAX_REASON_LENGTH]
        raise UserError(f"{shard.location}: cannot be fetched ({reason}); start again once it is available") from None


class _WriteFailed(Exception):  # noqa: N818 - names the event
    """Writing here failed, not reading from the other end; the cause is the OSError."""


class _OutputFile:
    """A file whose errors can be told apart from those of the stream that is copied into it."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out

    def write(self, block: bytes) -> int:
        try:
            return self._out.write(block)
        except OSError as error:
            raise _WriteFailed from error


def read_parquet_images(shard: Shard) -> Iterator[tuple[int, Any]]:
    """Yield chunks of the column of encoded images, each with the number in the file of its first row.

    A row without an image has empty bytes.

    Raises:
        UserError: the file cannot be read.
    """
    import pyarrow as pa
    from pyarrow import parquet

    row = shard.first_row
    try:
        with parquet.ParquetFile(shard.location) as file:
            for group in range(shard.first_group, shard.end_group):
                column = file.read_row_group(group, columns=[shard.column]).column(0)
                for chunk in column.chunks:
                    images = chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk
                    yield row, images.fill_null(b"")
                    row += len(images)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:MAX_REASON_LENGTH]
        raise UserError(f"{shard.location}: cannot be read as Parquet ({reason}); repair it or leave it out") from None
