"""Shards as files in which each image has an offset: tars in place, others fetched whole into a small cache.

The library webdataset reads tars as streams, from the first byte on; a resumed run needs images in the middle of one.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any

from tutelage.data.files.listing import FileState
from tutelage.data.files.names import printable
from tutelage.data.shards.pools import Shard, missing_library_error
from tutelage.errors import UserError, quote_error
from tutelage.storage import BLOCK, PARTIAL_PREFIX, cache_folder, digest, remove_old_partials, write_whole

CACHE_NAME = "shards"  # below our cache folder
MAX_CACHED = 16  # shards in the cache; 8 workers that prepare 2 batches each use so many at once
KEY_LENGTH = 32
LOCK_SUFFIX = ".lock"
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
        UserError: it cannot be read or fetched, has changed since it was found, or the cache cannot be written.
    """
    if is_read_in_place(shard):
        return _open_tar(shard)
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
        name = printable(str(folder))
        raise UserError(f"{name}: the shard {shard.name} cannot be stored there ({reason}): {hint}") from None


def is_read_in_place(shard: Shard) -> bool:
    """Return whether a shard is a tar on this machine, which needs no copy."""
    return not shard.is_remote and not shard.column


def require_unchanged(shard: Shard, state: os.stat_result) -> None:
    """Raise a UserError unless a file on this machine is as it was when the shard was found."""
    if shard.state and shard.state != FileState.of(state):
        raise UserError(f"{printable(shard.location)}: has changed since the run began; start it again")


def _open_tar(shard: Shard) -> IO[bytes]:
    try:
        file = Path(shard.location).open("rb")  # noqa: SIM115 - it is returned
    except OSError as error:
        name = printable(shard.location)
        raise UserError(f"{name}: cannot be opened ({error.strerror}); make it readable, or leave it out") from None
    try:
        require_unchanged(shard, os.fstat(file.fileno()))
    except UserError:
        file.close()
        raise
    return file


def _remove_oldest(folder: Path) -> None:
    """Remove all but the newest shards, and the partial files of killed processes."""
    remove_old_partials(folder)
    cached = []
    for path in folder.iterdir():
        if path.suffix != LOCK_SUFFIX and not path.name.startswith(PARTIAL_PREFIX):
            with suppress(FileNotFoundError):  # another process may remove it first
                cached.append((path.stat().st_mtime, path))
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
        raise missing_library_error(printable(shard.location)) from None
    try:
        with closing(gopen(shard.location, "rb")) as stream:
            shutil.copyfileobj(stream, _OutputFile(out), BLOCK)
    except (_WriteFailed, UserError) as error:
        raise error.__cause__ or error from None
    except Exception as error:  # webdataset raises errors of many kinds
        reason = quote_error(error)
        name = printable(shard.location)
        raise UserError(f"{name}: cannot be fetched ({reason}); start again once it is available") from None


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
        UserError: the file cannot be read, or has changed since it was found.
    """
    import pyarrow as pa
    from pyarrow import parquet

    row = shard.first_row
    try:
        require_unchanged(shard, os.stat(shard.location))  # noqa: PTH116 - as find_shards does
        with parquet.ParquetFile(shard.location) as file:
            for group in range(shard.first_group, shard.end_group):
                column = file.read_row_group(group, columns=[shard.column]).column(0)
                for chunk in column.chunks:
                    images = chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk
                    yield row, images.fill_null(b"")
                    row += len(images)
    except (OSError, pa.ArrowException) as error:
        reason = quote_error(error)
        name = printable(shard.location)
        raise UserError(f"{name}: cannot be read as Parquet ({reason}); repair it or leave it out") from None
