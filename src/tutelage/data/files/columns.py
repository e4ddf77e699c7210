"""The columns of CSV and Parquet files, as texts, and classes that have a column each (one-hot)."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.data.files.listing import require_regular
from tutelage.data.files.names import abbreviate, printable
from tutelage.errors import UserError, quote_error

TABLE_SUFFIXES = (".csv", ".parquet")
PATH = "path"  # the column that each table has
SEPARATORS = ",;\t"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
HEADER_BYTES = 1 << 20  # of a CSV file, among which is its header
ONES, ZEROS = ("1", "1.0", "true"), ("0", "0.0", "false", None)  # as texts; also what booleans become
ROWS_AT_ONCE = 4096  # as Python's texts, of a column of paths that is read row by row
COLUMNS_AT_ONCE = 64  # in memory, of those that may be a class each
NONE, SEVERAL = -1, -2  # of a row's one-hot columns are 1


@dataclass(frozen=True)
class Columns:
    """A table whose columns are read when they are asked for.

    Attributes:
        setting: what the user typed to name the table, for messages.
        names: of the columns, without blanks about them.
        read: returns the columns at some positions, each a ChunkedArray of pyarrow, in a list.
    """

    setting: str
    names: tuple[str, ...]
    read: Callable[[Sequence[int]], list[Any]]

    def find(self, name: str) -> int | None:
        """Return the position of the column of a name, in any case; None if there is none.

        Raises:
            UserError: there are several.
        """
        found = [number for number, own in enumerate(self.names) if own.casefold() == name.casefold()]
        exact = [number for number in found if self.names[number] == name]
        positions = exact or found
        if len(positions) > 1:
            raise UserError(
                f"{self.setting}: {len(positions)} columns are called {name!r}; rename or remove all but one"
            )
        return positions[0] if positions else None

    def texts(self, wanted: Sequence[str]) -> dict[str, list[str | None]]:
        """Return those of the wanted columns that there are, as texts; None for an empty cell.

        Empty rows at the end are left out.

        Bytes of a path that are not UTF-8 become surrogates (PEP 383), as the file system has them.

        Raises:
            UserError: there is no column ``path``, a path is empty, or a cell is no text.
        """
        positions = {name: number for name in wanted if (number := self.find(name)) is not None}
        if PATH in wanted and PATH not in positions:
            raise self._no_path_column()
        with _errors_as_user_errors(self.setting):
            distinct = list(dict.fromkeys(positions.values()))
            arrays = dict(zip(distinct, self.read(distinct), strict=True))
            texts = {
                name: (_as_paths if name.casefold() == PATH else _as_texts)(arrays[number])
                for name, number in positions.items()
            }
        count = max((row for column in texts.values() for row, text in enumerate(column, 1) if text), default=0)
        texts = {name: column[:count] for name, column in texts.items()}
        empty = [row for row, path in enumerate(texts.get(PATH, []), 2) if path is None or not path.strip()]
        if empty:
            raise self._no_path(empty[0])
        return texts

    def paths(self) -> Iterator[str]:
        """Yield the column ``path``, of which few are texts at a time; empty rows at the end are left out.

        Raises:
            UserError: there is no such column, or a path is empty.
        """
        number = self.find(PATH)
        if number is None:
            raise self._no_path_column()
        with _errors_as_user_errors(self.setting):
            (column,) = self.read([number])
            rows = chain.from_iterable(
                _as_paths(column.slice(start, ROWS_AT_ONCE)) for start in range(0, len(column), ROWS_AT_ONCE)
            )
            empty = None  # the first row without a path
            for row, path in enumerate(rows, 2):
                if path is None or not path.strip():
                    empty = empty or row
                elif empty is not None:
                    raise self._no_path(empty)
                else:
                    yield path

    def _no_path_column(self) -> UserError:
        return UserError(f"{self.setting}: no column 'path' (there are {self.describe()}); rename that of the files")

    def _no_path(self, row: int) -> UserError:
        return UserError(f"{self.setting}: row {row} has no path (row 1 is the header)")

    def describe(self) -> str:
        """Return the names of the first columns, and how many more there are."""
        return abbreviate(self.names)

    def one_hot(self, excluded: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
        """Return the names of the columns that hold 0 and 1 alone, and for each row (N,) which of them is 1.

        Where it is no single one, that is ``NONE`` or ``SEVERAL``. An empty cell is 0.

        Args:
            excluded: names of columns that are something else.
        """
        taken = set(map(self.find, excluded))
        others = [number for number, name in enumerate(self.names) if name and number not in taken]
        names: list[str] = []
        which = np.empty(0, dtype=np.int64)
        for first in range(0, len(others), COLUMNS_AT_ONCE):
            numbers = others[first : first + COLUMNS_AT_ONCE]
            with _errors_as_user_errors(self.setting):
                flags = map(_as_flags, self.read(numbers))
                for number, is_one in zip(numbers, flags, strict=True):
                    if is_one is not None:
                        which = which if names else np.full(len(is_one), NONE)
                        which[is_one] = np.where(which[is_one] == NONE, len(names), SEVERAL)
                        names.append(self.names[number])
        return tuple(names), which


def open_columns(file: Path, setting: str) -> Columns:
    """Return the columns of a CSV file (RFC 4180, separated by commas, semicolons or tabs) or of a Parquet file.

    Raises:
        UserError: it is neither, cannot be read, or has no rows.
    """
    if file.suffix.lower() not in TABLE_SUFFIXES:
        raise UserError(f"{setting}: neither a .csv nor a .parquet file")
    try:
        require_regular(str(file), file.stat())
    except FileNotFoundError:
        raise UserError(f"{setting}: no such file") from None
    except OSError as error:
        raise UserError(f"{setting}: cannot be read ({error.strerror})") from None
    with _errors_as_user_errors(setting):
        return _open_csv(file, setting) if file.suffix.lower() == ".csv" else _open_parquet(file, setting)


def read_columns(file: Path, setting: str, wanted: Sequence[str]) -> dict[str, list[str | None]]:
    """Return those of the wanted columns that a CSV or Parquet file has, as texts (see ``Columns.texts``)."""
    return open_columns(file, setting).texts(wanted)


@contextmanager
def _errors_as_user_errors(setting: str) -> Iterator[None]:
    """Raise the errors of libraries and of the file system as a UserError of one line."""
    import pyarrow as pa

    try:
        yield
    except (OSError, ValueError, LookupError, csv.Error, pa.ArrowException) as error:
        reason = printable(quote_error(error))
        hint = "; save it as CSV in UTF-8" if "invalid UTF8" in reason else ""
        raise UserError(f"{setting}: cannot be read as a table ({reason}){hint}") from None


def _open_parquet(file: Path, setting: str) -> Columns:
    from pyarrow import parquet

    table = parquet.ParquetFile(file)
    names = table.schema_arrow.names
    if not table.metadata.num_rows:
        raise UserError(f"{setting}: no rows (the columns are {abbreviate(names)})")

    def read(positions: Sequence[int]) -> list[Any]:
        columns = table.read(columns=[names[position] for position in positions])
        return [columns[names[position]] for position in positions]

    return Columns(setting, tuple(name.strip() for name in names), read)


def _open_csv(file: Path, setting: str) -> Columns:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    with file.open("rb") as opened:
        head = opened.read(HEADER_BYTES)
    content = file.read_bytes().decode("utf-16").encode() if head.startswith(UTF_16_MARKS) else None
    text = (head if content is None else content[:HEADER_BYTES]).decode("utf-8-sig", errors="surrogateescape")
    names, separator, has_rows = _read_header(text)
    if not has_rows:
        raise UserError(f"{setting}: no rows" + (f" (the columns are {abbreviate(names)})" if names else ""))
    numbers = [str(number) for number in range(len(names))]  # names that differ
    is_path = [name.casefold() == PATH for name in names]
    kinds = {number: pa.binary() if path else pa.string() for number, path in zip(numbers, is_path, strict=True)}
    head_lines = text[: len(text) - len(text.lstrip("\r\n"))].splitlines()  # empty
    reading = arrow_csv.ReadOptions(column_names=numbers, skip_rows=len(head_lines), skip_rows_after_names=1)
    parsing = arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True)

    def read(positions: Sequence[int]) -> list[Any]:
        wanted = [numbers[position] for position in positions]
        converting = arrow_csv.ConvertOptions(
            column_types=kinds, include_columns=wanted, strings_can_be_null=True, null_values=[""]
        )
        source = file if content is None else pa.BufferReader(content)
        return list(arrow_csv.read_csv(source, reading, parsing, converting).columns)

    return Columns(setting, names, read)


def _read_header(text: str) -> tuple[tuple[str, ...], str, bool]:
    """Return the names of the columns, what separates them, and whether there is a row below them.

    The separator is the one that makes a column ``path``, or else the most columns.
    """
    headers: dict[str, tuple[tuple[str, ...], bool]] = {}
    for separator in SEPARATORS:
        rows = (row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row)
        names = tuple(name.strip() for name in next(rows, ()))
        headers[separator] = names, next(rows, None) is not None

    def rank(separator: str) -> tuple[bool, int]:
        names, _ = headers[separator]
        return PATH in map(str.casefold, names), len(names)

    separator = max(SEPARATORS, key=rank)
    return headers[separator][0], separator, headers[separator][1]


def _as_texts(array: Any) -> list[str | None]:
    """Return a column as texts."""
    import pyarrow as pa

    texts: list[str | None] = array.cast(pa.string()).to_pylist()
    return texts


def _as_paths(array: Any) -> list[str | None]:
    """Return a column of paths as texts; bytes that are not UTF-8 become surrogates."""
    import pyarrow as pa

    if not (pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type)):
        return _as_texts(array)
    return [path and path.decode(errors="surrogateescape") for path in array.to_pylist()]


def _as_flags(array: Any) -> np.ndarray | None:
    """Return a column (N,) of 0 and 1, as numbers or texts, as booleans; None if it holds anything else or nothing."""
    import pyarrow as pa
    from pyarrow import compute

    is_bytes = pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type)
    if is_bytes or pa.types.is_nested(array.type) or array.null_count == len(array):
        return None
    texts = compute.utf8_trim_whitespace(array.cast(pa.string()))
    is_one = compute.is_in(texts, pa.array(ONES)).to_numpy()
    is_zero = compute.is_in(texts, pa.array(ZEROS)).to_numpy()
    return np.asarray(is_one) if (is_one | is_zero).all() else None
