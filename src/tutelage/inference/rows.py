"""Rows of labels as tables of pyarrow, and as CSV, JSON lines or Parquet."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

REASON, PATH = "reason", "path"
DECIMALS = 6  # of numbers in CSV and JSON lines: a float32 between 0.1 and 1 has no more


@dataclass(frozen=True)
class Columns:
    """Which columns the rows have.

    Attributes:
        top: classes of an image that are named, the likeliest first.
        probabilities: a column for each class.
        views: that the probabilities are the mean of, a name of ``TTA_VIEWS``.
        embed: a column of features.
    """

    top: int = 1
    probabilities: bool = False
    views: str = "one"
    embed: bool = False


def make_rows(
    names: Sequence[str],
    reasons: Sequence[str],
    probabilities: np.ndarray,
    classes: Sequence[str],
    columns: Columns,
    features: np.ndarray | None = None,
) -> pa.Table:
    """Return a row for each image: path, label, confidence, margin, what ``columns`` adds, and reason.

    The confidence is the probability of the label, the margin what it is above that of the second class. An image that
    cannot be read has its path and the reason alone; the others have no reason.

    Args:
        names: (B,) of the images.
        reasons: (B,) why they cannot be read; empty if they can.
        probabilities: (B, C) float32.
        classes: (C,) their names.
        columns: which columns there are.
        features: (B, D) float32.
    """
    is_bad = np.array([bool(reason) for reason in reasons])
    order = _rank(probabilities, min(max(2, columns.top), len(classes)))
    ranked = np.take_along_axis(probabilities, order, axis=1)
    class_names = pa.array(classes, pa.string())
    made: dict[str, pa.Array] = {PATH: pa.array(names, pa.string())}
    for place in range(columns.top):
        suffix = f"_{place + 1}" if place else ""
        made[f"label{suffix}"] = class_names.take(pa.array(order[:, place], mask=is_bad))
        made[f"confidence{suffix}"] = pa.array(ranked[:, place], mask=is_bad)
        if not place:
            made["margin"] = pa.array(ranked[:, 0] - ranked[:, 1:2].sum(axis=1), mask=is_bad)
    if columns.probabilities:
        made |= {f"probability_{name}": pa.array(probabilities[:, c], mask=is_bad) for c, name in enumerate(classes)}
    if features is not None:
        flat = pa.array(np.ascontiguousarray(features).ravel())
        made["features"] = pa.FixedSizeListArray.from_arrays(flat, features.shape[1], mask=pa.array(is_bad))
    made[REASON] = pa.array([reason or None for reason in reasons], pa.string())
    return pa.table(made)


def _rank(probabilities: np.ndarray, count: int) -> np.ndarray:
    """Return the ``count`` likeliest classes (B, count) of probabilities (B, C); of equal ones the first comes first.

    A sort of thousands of classes takes longer than a small network on a GPU.
    """
    left, order = probabilities.copy(), np.empty((len(probabilities), count), dtype=np.int64)
    for place in range(count):
        order[:, place] = left.argmax(axis=1)
        np.put_along_axis(left, order[:, place : place + 1], -1, axis=1)
    return order


def write_csv(tables: Iterable[pa.Table], out: TextIO) -> None:
    """Write rows as CSV in UTF-8, with a header and lines that end in a line feed."""
    writer, is_first = csv.writer(out, lineterminator="\n"), True
    for table in tables:
        if is_first:
            writer.writerow(table.column_names)
        writer.writerows(zip(*map(_format_column, table.columns), strict=True))
        out.flush()
        is_first = False


def _format_column(column: pa.ChunkedArray) -> Iterator[str]:
    values = column.to_pylist()
    if pa.types.is_floating(column.type):
        return ("" if value is None else f"{value:.{DECIMALS}f}" for value in values)
    return ("" if value is None else value for value in values)


def _write_csv_file(tables: Iterable[pa.Table], out: IO[bytes]) -> None:
    text = io.TextIOWrapper(out, encoding="utf-8", newline="")
    write_csv(tables, text)
    text.detach()


def _write_json_lines(tables: Iterable[pa.Table], out: IO[bytes]) -> None:
    for table in tables:
        for row in table.to_pylist():
            rounded = {name: round(v, DECIMALS) if isinstance(v, float) else v for name, v in row.items()}
            out.write(json.dumps(rounded, ensure_ascii=False).encode() + b"\n")


def _write_parquet(tables: Iterable[pa.Table], out: Any) -> None:
    writer = None
    for table in tables:
        writer = writer or pq.ParquetWriter(out, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


FORMATS: dict[str, Callable[[Iterable[pa.Table], IO[bytes]], None]] = {  # by the suffix of the file
    ".csv": _write_csv_file,
    ".parquet": _write_parquet,
    ".jsonl": _write_json_lines,
}
