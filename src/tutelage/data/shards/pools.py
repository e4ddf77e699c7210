"""Pools of shards: WebDataset's tars, here or on the network, and Parquet files whose rows hold the images' bytes."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.config.targets import ALLOW_FLAG, list_flag_packages
from tutelage.data.files.listing import MOST_NAMED, abbreviate
from tutelage.errors import UserError

TAR, PARQUET, PIPE = ".tar", ".parquet", "pipe:"
PART_BYTES = 1 << 28  # of a Parquet file's row groups, uncompressed, that are fetched at once
REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://|pipe:")
BRACES = re.compile(r"\{[^{}]*(,|\.\.)[^{}]*\}")
IMAGE_COLUMN = "image"  # is taken where several columns hold bytes, as in Hugging Face's files


class Shard(NamedTuple):
    """A tar, or some row groups of a Parquet file.

    Attributes:
        name: what its images are called by.
        place: path or URL.
        size: bytes of the file; 0 where it is on the network.
        time: when the file was changed, in ns; 0 where it is on the network, whose files do not change.
        column: of a Parquet file, the path of the bytes; empty: a tar.
        first: the first row group.
        end: the row group behind the last.
        row: the number of the first row in the file.
    """

    name: str
    place: str
    size: int
    time: int
    column: str = ""
    first: int = 0
    end: int = 0
    row: int = 0

    @property
    def is_remote(self) -> bool:
        """Whether it comes through a network or a command."""
        return is_remote(self.place)


def is_remote(place: str) -> bool:
    """Return whether what ``data.unlabelled`` says is no path here."""
    return REMOTE.match(place) is not None


def placed(given: str) -> str:
    """Return what ``data.unlabelled`` says in such a way that it can be found from any folder."""
    return given if is_remote(given) else os.path.abspath(os.path.expanduser(given))  # noqa: PTH100, PTH111


def find_shards(given: str) -> tuple[Shard, ...] | None:
    """Return the shards that ``data.unlabelled`` names; None where it names a folder or a list of image files.

    Shards are a ``.tar`` or a Parquet file with a column of bytes, a folder of them, a pattern (``*``, ``{000..012}``),
    or URLs of tars, also with braces (``https:``, ``pipe:COMMAND`` and what else the library webdataset opens).

    Raises:
        UserError: files are missing, of another kind or unreadable; or a command is not allowed.
    """
    where = f"data.unlabelled={given}"
    if is_remote(given):
        if given.startswith(PIPE) and PIPE[:-1] not in list_flag_packages():
            told = "a command is run only where you allow it, also when a stored run is looked at"
            raise UserError(f"{where}: {told}: add {ALLOW_FLAG} {PIPE[:-1]}")
        return tuple(Shard(place.rpartition("/")[2], place, 0, 0) for place in _expanded(given, where))
    paths = _paths(os.path.expanduser(given), where)  # noqa: PTH111
    if paths is None:
        return None
    wrong = [path for path in paths if Path(path).suffix not in {TAR, PARQUET}]
    if wrong:
        raise UserError(f"{where}: shards are {TAR} or {PARQUET} files, not {abbreviate(wrong)}; unpack or rename them")
    top = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120
    shards: list[Shard] = []
    for path in paths:
        try:
            state = os.stat(path)  # noqa: PTH116
        except OSError as error:
            raise UserError(f"{where}: {path} cannot be read ({error.strerror}); mend or leave it out") from None
        whole = Shard(os.path.relpath(path, top or "."), path, state.st_size, state.st_mtime_ns)
        shards += [whole] if path.endswith(TAR) else _parts(whole, where)
    return tuple(shards)


def _paths(given: str, where: str) -> list[str] | None:
    """Return the files of shards that a path or a pattern names; None where it names none such."""
    place = Path(given)
    if place.is_dir():
        found = [str(path) for path in sorted(place.iterdir()) if path.suffix in {TAR, PARQUET}]
        return found or None
    if place.suffix == TAR:
        return [given] if place.exists() else _matching(given, where)
    if place.suffix == PARQUET and place.is_file():
        return [given] if _column(_schema(given, where), where) else None
    return _matching(given, where) if BRACES.search(given) or glob.has_magic(given) else None


def _matching(pattern: str, where: str) -> list[str]:
    """Return the files that a pattern names.

    Raises:
        UserError: there is none, or one that stands in braces is missing.
    """
    found, missing = [], []
    for name in _expanded(pattern, where):
        some = sorted(glob.glob(name)) if glob.has_magic(name) else [name] * os.path.exists(name)  # noqa: PTH110, PTH207
        found += some
        missing += [] if some else [name]
    if missing:
        raise UserError(f"{where}: no such file: {abbreviate(missing)}")
    return found


def _expanded(pattern: str, where: str) -> list[str]:
    """Return what a pattern with braces stands for, as webdataset writes such patterns."""
    if not BRACES.search(pattern):
        return [pattern]
    try:
        from braceexpand import braceexpand
    except ImportError:
        raise needs_library(where) from None
    try:
        return list(braceexpand(pattern))
    except ValueError:
        raise UserError(f"{where}: its braces do not match; write {{000..012}}") from None


def needs_library(where: str) -> UserError:
    """Return the error of a pool for which webdataset is missing."""
    return UserError(f"{where}: needs the library 'webdataset': pip install 'tutelage[webdataset]'")


def _schema(path: str, where: str) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{where}: cannot be read as Parquet ({' '.join(str(error).split())[:160]})") from None


def _column(schema: Any, where: str) -> str | None:
    """Return the path of the column that holds images' bytes; None where the table is a list of paths, or holds none.

    Raises:
        UserError: several columns may be meant.
    """
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    found: dict[str, str] = {}
    for column in schema:
        if holds_bytes(column.type):
            found[column.name] = column.name
        elif pa.types.is_struct(column.type) and any(p.name == "bytes" and holds_bytes(p.type) for p in column.type):
            found[column.name] = f"{column.name}.bytes"
    if "path" in schema.names or not found:
        return None
    if len(found) > 1 and IMAGE_COLUMN not in found:
        told = f"several columns hold bytes ({abbreviate(list(found))}); call the one with the images {IMAGE_COLUMN!r}"
        raise UserError(f"{where}: {told}")
    return found.get(IMAGE_COLUMN) or next(iter(found.values()))


def _parts(whole: Shard, where: str) -> Sequence[Shard]:
    """Return a Parquet file as shards of whole row groups, each of about ``PART_BYTES`` or of one group."""
    from pyarrow import parquet

    schema = _schema(whole.place, where)
    column = _column(schema, where)
    if column is None:
        told = f"{whole.place} has no column of bytes (there are {', '.join(schema.names[:MOST_NAMED])})"
        raise UserError(f"{where}: {told}; a list of paths is given as a single file")
    about = parquet.read_metadata(whole.place)
    shards: list[Shard] = []
    first = row = rows = size = 0
    for number in range(about.num_row_groups):
        group = about.row_group(number)
        rows, size = rows + group.num_rows, size + group.total_byte_size
        if size >= PART_BYTES or number == about.num_row_groups - 1:
            shards.append(whole._replace(column=column, first=first, end=number + 1, row=row))
            first, row, rows, size = number + 1, row + rows, 0, 0
    return shards
