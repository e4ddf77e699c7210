"""Pools of shards: WebDataset's tars, here or on the network, and Parquet files whose rows hold the images' bytes."""

import glob
import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.config.allowed_folder import list_flag_packages
from tutelage.config.targets import ALLOW_FLAG
from tutelage.data.files.listing import FileState, require_regular
from tutelage.data.files.names import MAX_NAMED, abbreviate, printable
from tutelage.errors import UserError, quote_error

TAR, PARQUET, PIPE = ".tar", ".parquet", "pipe:"
PART_BYTES = 1 << 28  # uncompressed, of a Parquet file's row groups that make one shard
REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://|pipe:")
MAX_NAMES = 100_000  # that braces stand for; webdataset's largest public pools have tens of thousands
RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?\}")
BRACES = re.compile(r"\{[^{}]*(,|\.\.)[^{}]*\}")
IMAGE_COLUMN = "image"  # the one that is read if several columns hold bytes, as in Hugging Face's files


class Shard(NamedTuple):
    """A tar, or some row groups of a Parquet file.

    Attributes:
        name: the name that begins the names of its images.
        location: path or URL.
        state: what identifies the content at its location without reading it: of a file its ``FileState``, of a URL
            what the server says of it (see ``validators``), empty if nothing is known.
        column: of a Parquet file, the path of the column with the images' bytes; empty for a tar.
        first_group: the first row group.
        end_group: the row group after the last.
        first_row: the number of the first row in the file.
    """

    name: str
    location: str
    state: tuple[int | str, ...] = ()
    column: str = ""
    first_group: int = 0
    end_group: int = 0
    first_row: int = 0

    @property
    def is_remote(self) -> bool:
        """Whether it comes through a network or a command."""
        return is_remote(self.location)


def is_remote(location: str) -> bool:
    """Return whether a location is a URL or a command, not a path on this machine."""
    return REMOTE.match(location) is not None


def absolute_pool(unlabelled: str) -> str:
    """Return ``data.unlabelled`` as an absolute path, so that it is right in any folder; a URL or command unchanged."""
    if is_remote(unlabelled):
        return unlabelled
    return os.path.abspath(os.path.expanduser(unlabelled))  # noqa: PTH100, PTH111


def find_shards(location: str, setting: str | None = None) -> tuple[Shard, ...] | None:
    """Return the shards that a location names; None if it names a folder or a list of image files.

    Shards are a ``.tar`` or a Parquet file with a column of bytes, a folder of them, a pattern (``*``, ``{000..012}``),
    or URLs of tars, also with braces (``https:``, ``pipe:COMMAND`` and what else the library webdataset opens).

    Args:
        location: what the user typed.
        setting: the same for messages; None where it is ``data.unlabelled``.

    Raises:
        UserError: files are missing, of another kind or unreadable; or a command is not allowed.
    """
    setting = setting or f"data.unlabelled={printable(location)}"
    if is_remote(location):
        if location.startswith(PIPE) and PIPE[:-1] not in list_flag_packages():
            rule = "a command is run only where you allow it, also for the config of a stored run"
            raise UserError(f"{setting}: {rule}: add {ALLOW_FLAG} {PIPE[:-1]}")
        return tuple(Shard(url.rpartition("/")[2], url) for url in _expand_braces(location, setting))
    paths = _find_files(os.path.expanduser(location), setting)  # noqa: PTH111
    if paths is None:
        return None
    other = [path for path in paths if Path(path).suffix not in {TAR, PARQUET}]
    if other:
        raise UserError(
            f"{setting}: shards are {TAR} or {PARQUET} files, not {abbreviate(other)}; unpack or rename them"
        )
    top = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120
    shards: list[Shard] = []
    for path in paths:
        try:
            state = os.stat(path)  # noqa: PTH116
        except OSError as error:
            raise UserError(
                f"{setting}: {printable(path)} cannot be read ({error.strerror}); repair it or leave it out"
            ) from None
        require_regular(path, state)
        whole = Shard(printable(os.path.relpath(path, top or ".")), path, FileState.of(state))
        shards += [whole] if path.endswith(TAR) else _split_parquet(whole, setting)
    return tuple(shards)


def _find_files(pattern: str, setting: str) -> list[str] | None:
    """Return the shard files that a path or a pattern names; None if it names no shards."""
    path = Path(pattern)
    if path.is_dir():
        files = [str(child) for child in sorted(path.iterdir()) if child.suffix in {TAR, PARQUET}]
        return files or None
    if path.suffix == TAR:
        return [pattern] if path.exists() else _match_files(pattern, setting)
    if path.suffix == PARQUET and path.is_file():
        return [pattern] if _find_image_column(_read_schema(pattern, setting), setting) else None
    return _match_files(pattern, setting) if BRACES.search(pattern) or glob.has_magic(pattern) else None


def _match_files(pattern: str, setting: str) -> list[str]:
    """Return the files that a pattern names.

    Raises:
        UserError: there is none, or one that the braces name is missing.
    """
    files, missing = [], []
    for name in _expand_braces(pattern, setting):
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name] * os.path.exists(name)  # noqa: PTH110, PTH207
        files += matches
        missing += [] if matches else [name]
    if missing:
        raise UserError(f"{setting}: no such file: {abbreviate(missing)}")
    return files


def _expand_braces(pattern: str, setting: str) -> list[str]:
    """Return the names that a pattern with braces stands for, as in WebDataset."""
    if not BRACES.search(pattern):
        return [pattern]
    try:
        from braceexpand import braceexpand
    except ImportError:
        raise missing_library_error(setting) from None
    ranges = [[int(number or 1) for number in each] for each in RANGE.findall(pattern)]
    is_long = any(abs(end - start) >= MAX_NAMES * max(1, step) for start, end, step in ranges)
    try:
        names = [] if is_long else list(islice(braceexpand(pattern), MAX_NAMES + 1))
    except ValueError:
        raise UserError(f"{setting}: its braces do not match; write {{000..012}}") from None
    if is_long or len(names) > MAX_NAMES:
        raise UserError(f"{setting}: its braces stand for more than {MAX_NAMES:,} files; name fewer")
    return names


def missing_library_error(subject: str) -> UserError:
    """Return the error of a pool for which webdataset is not installed."""
    return UserError(f"{subject}: needs the library 'webdataset': pip install 'tutelage[webdataset]'")


def _read_schema(path: str, setting: str) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        reason = quote_error(error)
        raise UserError(f"{setting}: cannot be read as Parquet ({reason})") from None


def _find_image_column(schema: Any, setting: str) -> str | None:
    """Return the path of the column with images' bytes; None if there is none, or if the table is a list of paths.

    Raises:
        UserError: several columns may hold the images.
    """
    import pyarrow as pa

    def is_bytes(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    paths: dict[str, str] = {}
    for column in schema:
        if is_bytes(column.type):
            paths[column.name] = column.name
        elif pa.types.is_struct(column.type) and any(
            field.name == "bytes" and is_bytes(field.type) for field in column.type
        ):
            paths[column.name] = f"{column.name}.bytes"
    if "path" in schema.names or not paths:
        return None
    if len(paths) > 1 and IMAGE_COLUMN not in paths:
        names = abbreviate(list(paths))
        raise UserError(f"{setting}: several columns hold bytes ({names}); name the one with images {IMAGE_COLUMN!r}")
    return paths.get(IMAGE_COLUMN) or next(iter(paths.values()))


def _split_parquet(whole: Shard, setting: str) -> Sequence[Shard]:
    """Return a Parquet file as shards of whole row groups, each of about ``PART_BYTES`` or of one group."""
    from pyarrow import parquet

    schema = _read_schema(whole.location, setting)
    column = _find_image_column(schema, setting)
    if column is None:
        present = ", ".join(map(printable, schema.names[:MAX_NAMED]))
        raise UserError(
            f"{setting}: {printable(whole.location)} has no column of bytes (there are {present}); "
            "to use a list of paths, name that file alone"
        )
    metadata = parquet.read_metadata(whole.location)
    shards: list[Shard] = []
    first_group = first_row = rows = size = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows, size = rows + group.num_rows, size + group.total_byte_size
        if size >= PART_BYTES or number == metadata.num_row_groups - 1:
            shards.append(
                whole._replace(column=column, first_group=first_group, end_group=number + 1, first_row=first_row)
            )
            first_group, first_row, rows, size = number + 1, first_row + rows, 0, 0
    return shards
