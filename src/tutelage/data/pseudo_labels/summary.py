"""Summary of a round of pseudo-labels: a table for people, and counts and examples for the report."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.data.pseudo_labels.labels import Labels
from tutelage.data.pseudo_labels.selection import Selection, chunk_slices
from tutelage.data.source import UNKNOWN, Source
from tutelage.storage import write_json, write_whole

TABLE, ROUND = "pseudo_labels.parquet", "round.json"
BINS = 20  # of confidence, from 0 to 1
GROUP = 1 << 16  # rows of the table that are written at once
EXAMPLES = 24  # of changed labels and of confident errors


def write_table(folder: Path, source: Source, pool: np.ndarray, labels: Labels, selection: Selection) -> None:
    """Write one row a pool image for people: name, label, confidence, margin, whether and how often it is used.

    The rows are in the pool's order, written some at a time. ``truth`` is null if the source does not know it; no
    training reads it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {
            "index": pa.int64(),
            "name": pa.string(),
            "label": pa.string(),
            "confidence": pa.float32(),
            "margin": pa.float32(),
            "kept": pa.bool_(),
            "copies": pa.int64(),
            "truth": pa.string(),
        }.items()
    )
    class_names = np.array([*source.classes, None], dtype=object)  # UNKNOWN is the last
    uses = selection.count_uses(labels.count)

    def write_groups(file: Any) -> None:
        with pq.ParquetWriter(file, schema) as table:
            for first, predictions, confidence, margin in _group_rows(labels):
                rows = slice(first, first + len(predictions))
                columns = [
                    pool[rows],
                    [source.names[index] for index in pool[rows].tolist()],
                    class_names[predictions],
                    confidence,
                    margin,
                    uses[rows] > 0,
                    uses[rows],
                    class_names[source.labels[pool[rows]]],
                ]
                arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
                table.write_table(pa.Table.from_arrays(arrays, schema=schema))

    write_whole(folder / TABLE, write_groups)


def _group_rows(labels: Labels) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the first entry, predictions, confidences and margins (n,) of consecutive pool images, many at a time."""
    pending: list[tuple[np.ndarray, ...]] = []
    first = rows = 0
    for _, probabilities in labels.chunks():
        second, largest = np.partition(probabilities, -2, axis=1)[:, -2:].T
        pending.append((probabilities.argmax(axis=1), largest, largest - second))
        rows += len(probabilities)
        if rows >= GROUP or first + rows == labels.count:
            predictions, confidence, margin = (np.concatenate(column) for column in zip(*pending, strict=True))
            yield first, predictions, confidence, margin
            first, rows, pending = first + rows, 0, []


def write_summary(
    folder: Path, source: Source, pool: np.ndarray, labels: Labels, selection: Selection, before: Labels | None
) -> dict[str, float]:
    """Write the counts and examples of a round for the report, and return the stage's result.

    True labels, if the source knows them, only measure: how many predictions are right at each confidence, and among
    the selected images.

    Args:
        folder: the stage's.
        source: the dataset.
        pool: (N,) indices into it.
        labels: of the pool.
        selection: from the labels.
        before: the labels of the previous round; None in the first.
    """
    counts = _RoundCounts(len(source.classes))
    uses = selection.count_uses(labels.count)
    for chunk in chunk_slices(labels.count):
        truth = source.labels[pool[chunk]]
        previous = None if before is None else before.predictions[chunk]
        predictions = labels.predictions[chunk].astype(np.int64)
        counts.add(pool[chunk], predictions, labels.confidence[chunk], truth, uses[chunk], previous)
    content = {"classes": list(source.classes), "images": labels.count, **counts.content(before is not None)}
    write_json(folder / ROUND, content)
    return counts.result(labels.count, before is not None)


class _RoundCounts:
    """Counts over pool images, chunk by chunk, and the most confident examples among them."""

    def __init__(self, classes: int) -> None:
        self._predicted, self._selected, self._shown = (np.zeros(classes, np.int64) for _ in range(3))
        self._histogram, self._known, self._right = (np.zeros(BINS, np.int64) for _ in range(3))
        self._known_selected, self._right_selected, self._changed = 0, 0, 0
        self._changes: list[dict[str, Any]] = []
        self._errors: list[dict[str, Any]] = []

    def add(
        self,
        indices: np.ndarray,
        predictions: np.ndarray,
        confidence: np.ndarray,
        truth: np.ndarray,
        uses: np.ndarray,
        previous: np.ndarray | None,
    ) -> None:
        """Count some images: arrays (n,) of index, prediction, confidence, true class, uses, previous prediction."""
        classes, selected, known, right = len(self._predicted), uses > 0, truth != UNKNOWN, predictions == truth
        self._predicted += np.bincount(predictions, minlength=classes)
        self._selected += np.bincount(predictions[selected], minlength=classes)
        self._shown += np.bincount(predictions, weights=uses, minlength=classes).astype(np.int64)
        bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        self._histogram += np.bincount(bins, minlength=BINS)
        self._known += np.bincount(bins[known], minlength=BINS)
        self._right += np.bincount(bins[right], minlength=BINS)
        self._known_selected += int((selected & known).sum())
        self._right_selected += int((selected & right).sum())
        columns = {"index": indices, "label": predictions, "confidence": confidence, "truth": truth}
        self._errors = _most_confident(self._errors, known & ~right, columns)
        if previous is not None:
            changed = previous != predictions
            self._changed += int(changed.sum())
            columns = {
                "index": indices,
                "before": previous,
                "after": predictions,
                "confidence": confidence,
                "truth": truth,
            }
            self._changes = _most_confident(self._changes, changed, columns)

    def content(self, has_previous: bool) -> dict[str, Any]:
        """Return the counts and examples that the report shows."""
        return {
            "answered_per_class": self._predicted.tolist(),
            "kept_per_class": self._selected.tolist(),
            "shown_per_class": self._shown.tolist(),
            "edges": [number / BINS for number in range(BINS + 1)],
            "histogram": self._histogram.tolist(),
            "known": self._known.tolist(),
            "right": self._right.tolist(),
            "changed": self._changed if has_previous else None,
            "changed_examples": self._changes,
            "confident_errors": self._errors,
        }

    def result(self, images: int, has_previous: bool) -> dict[str, float]:
        """Return how many images are selected and shown, the fractions that are right and that changed."""
        result = {
            "pool/images": float(images),
            "pool/kept": float(self._selected.sum()),
            "pool/shown": float(self._shown.sum()),
        }
        if self._known_selected:
            result["pool/right"] = round(self._right_selected / self._known_selected, 6)
        if has_previous:
            result["pool/changed"] = round(self._changed / images, 6)
        return result


def _most_confident(
    examples: list[dict[str, Any]], mask: np.ndarray, columns: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Return the most confident of some examples and of the images (n,) of ``columns`` for which ``mask`` is true."""
    positions = np.flatnonzero(mask)
    positions = positions[np.argsort(-columns["confidence"][positions], kind="stable")[:EXAMPLES]]
    rows = zip(*(values[positions].tolist() for values in columns.values()), strict=True)
    examples = examples + [dict(zip(columns, row, strict=True)) for row in rows]
    return sorted(examples, key=lambda example: -example["confidence"])[:EXAMPLES]
