"""Listings of tables: CSV and Parquet files with paths and labels."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tutelage.data.datasets.download import MAX_REASON_LENGTH
from tutelage.data.files.listing import (
    ALL,
    LABELLED_PARTS,
    UNLABELLED,
    Entry,
    FileState,
    Listing,
    abbreviate,
    describe_classes,
    sort_classes,
)
from tutelage.errors import UserError

TABLE_SUFFIXES = (".csv", ".parquet")
COLUMNS = ("path", "label", "split")


def list_table(root: str | None) -> Listing:
    """Return the images of a CSV or Parquet table with columns ``path`` and ``label``.

    Paths are relative to the table's folder. A column ``split`` may say train, val, test or unlabelled; without it a
    fifth of each class is set aside for the test. A row without a label is unlabelled.

    Raises:
        UserError: the table cannot be read, lacks a column, or names files that do not exist.
    """
    if root is None:
        raise UserError("data=table needs data.root=FILE, a .csv or .parquet with columns path and label")
    setting, file = f"data.root={root}", Path(root).expanduser()
    rows = _read_table_rows(file, setting)
    entries = tuple(list_rows(rows, file.parent, setting))
    paths = [os.path.normpath(entry.path) for entry in entries]
    first_row = {path: number for number, path in reversed([*enumerate(paths)])}
    repeated = [entries[number].name for number, path in enumerate(paths) if first_row[path] != number]
    if repeated:
        raise UserError(f"{setting}: paths that are listed twice: {abbreviate(repeated)}")
    classes = sort_classes({label for part, _, label in rows if label and part in {"train", ALL}})
    if len(classes) < 2:  # noqa: PLR2004 - a classifier needs two classes
        raise UserError(f"{setting}: found {describe_classes(classes)} to learn from; at least 2 are needed")
    untrained = sorted({label for part, _, label in rows if label and part in {"val", "test"}} - set(classes))
    if untrained:
        raise UserError(f"{setting}: classes in val or test that no training row has: {abbreviate(untrained)}")
    return Listing(setting, file, entries, classes)


def _read_table_rows(file: Path, setting: str) -> list[tuple[str, str, str | None]]:
    """Return (part, path, label) of each row of a table."""
    columns = read_columns(file, setting)
    if "label" not in columns:
        raise UserError(f"{setting}: no column 'label' (there are {', '.join(columns)})")
    splits = columns.get("split") or [None] * len(columns["path"])
    allowed = {*LABELLED_PARTS, UNLABELLED}
    rows: list[tuple[str, str, str | None]] = []
    for name, label, split in zip(columns["path"], columns["label"], splits, strict=True):
        if "split" in columns and split not in allowed:
            raise UserError(f"{setting}: {name} has split {split!r}; allowed are {', '.join(sorted(allowed))}")
        if not label and split in {"val", "test"}:
            raise UserError(f"{setting}: {name} has split {split} but no label")
        rows.append((UNLABELLED if not label else split or ALL, str(name), label or None))
    return rows


def read_columns(file: Path, setting: str, group: str | None = None) -> dict[str, list[str | None]]:
    """Return those of the columns path, label, split and ``group`` that a table has, as texts."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    wanted = COLUMNS if group is None else (*COLUMNS, group)
    if file.suffix not in TABLE_SUFFIXES:
        raise UserError(f"{setting}: neither a .csv nor a .parquet file")
    try:
        if file.suffix == ".csv":
            types = dict.fromkeys(wanted, pa.string())
            options = csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
            table = csv.read_csv(file, convert_options=options)
        else:
            present = parquet.read_schema(file).names
            table = parquet.read_table(file, columns=[name for name in present if name in wanted])
        if "path" not in table.column_names:
            hint = "; columns are separated by commas" if any(c in str(table.column_names) for c in ";\t") else ""
            raise UserError(f"{setting}: no column 'path' (there are {', '.join(table.column_names)}){hint}")
        return {name: table[name].cast(pa.string()).to_pylist() for name in wanted if name in table.column_names}
    except FileNotFoundError:
        raise UserError(f"{setting}: no such file") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:MAX_REASON_LENGTH]
        raise UserError(f"{setting}: cannot be read as a table ({reason})") from None


def list_rows(rows: Iterable[tuple[str, str, str | None]], folder: Path, setting: str) -> Iterator[Entry]:
    """Yield an entry for each (part, path, label); raise a UserError that names the files that do not exist."""
    missing = []
    for part, name, label in rows:
        path = os.path.join(folder, os.path.expanduser(name))  # noqa: PTH111, PTH118 - many times faster than Path
        try:
            state = os.stat(path)  # noqa: PTH116
        except OSError:
            missing.append(name)
            continue
        yield Entry(part, name, label, path, FileState.of(state))
    if missing:
        names = abbreviate(missing)
        raise UserError(f"{setting}: {len(missing)} files do not exist (paths are relative to {folder}): {names}")
