"""What a round of pseudo-labels is like: a table for people, and numbers and examples for the report."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.data.pseudo_labels.labels import Labels
from tutelage.data.pseudo_labels.selection import Selection, pieces
from tutelage.data.source import UNKNOWN, Source
from tutelage.storage import write_json, write_whole

TABLE, ROUND = "pseudo_labels.parquet", "round.json"
BINS = 20  # of confidence, from 0 to 1
GROUP = 1 << 16  # rows of the table that are written at once
EXAMPLES = 24  # of changed labels and of confident errors


def write_table(folder: Path, source: Source, pool: np.ndarray, labels: Labels, chosen: Selection) -> None:
    """Write one row a pool image for people: name, label, confidence, margin, whether and how often it is used.

    The rows come in the pool's order, written a part after another. ``truth`` is null where the source does not know
    it; no training reads it.
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
    classes, times = np.array([*source.classes, None], dtype=object), chosen.times(labels.count)  # UNKNOWN is the last

    def put(file: Any) -> None:
        with pq.ParquetWriter(file, schema) as table:
            for first, answers, confidence, margin in _groups(labels):
                part = slice(first, first + len(answers))
                columns = [
                    pool[part],
                    [source.names[index] for index in pool[part].tolist()],
                    classes[answers],
                    confidence,
                    margin,
                    times[part] > 0,
                    times[part],
                    classes[source.labels[pool[part]]],
                ]
                arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
                table.write_table(pa.Table.from_arrays(arrays, schema=schema))

    write_whole(folder / TABLE, put)


def _groups(labels: Labels) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the first entry, answers, confidences and margins (n,) of pool images in a row, many at a time."""
    held: list[tuple[np.ndarray, ...]] = []
    first = rows = 0
    for _, probabilities in labels.parts():
        second, most = np.partition(probabilities, -2, axis=1)[:, -2:].T
        held.append((probabilities.argmax(axis=1), most, most - second))
        rows += len(probabilities)
        if rows >= GROUP or first + rows == labels.count:
            answers, confidence, margin = (np.concatenate(column) for column in zip(*held, strict=True))
            yield first, answers, confidence, margin
            first, rows, held = first + rows, 0, []


def write_summary(
    folder: Path, source: Source, pool: np.ndarray, labels: Labels, chosen: Selection, before: Labels | None
) -> dict[str, float]:
    """Write what the report shows of a round, and return what the ledger says of it.

    Truth, where the source knows it, only measures: how many answers were right at which confidence, and of those kept.

    Args:
        folder: the stage's.
        source: the dataset.
        pool: (N,) indices into it.
        labels: of the pool.
        chosen: of the labels.
        before: the labels of the round before.
    """
    told = _Round(len(source.classes))
    times = chosen.times(labels.count)
    for some in pieces(labels.count):
        truth = source.labels[pool[some]]
        earlier = None if before is None else before.answers[some]
        told.add(pool[some], labels.answers[some].astype(np.int64), labels.certainty[some], truth, times[some], earlier)
    content = {"classes": list(source.classes), "images": labels.count, **told.content(before is not None)}
    write_json(folder / ROUND, content)
    return told.result(labels.count, before is not None)


class _Round:
    """Counts, and the most confident examples, of some pool images after others."""

    def __init__(self, classes: int) -> None:
        self._answered, self._kept, self._shown = (np.zeros(classes, np.int64) for _ in range(3))
        self._histogram, self._known, self._right = (np.zeros(BINS, np.int64) for _ in range(3))
        self._kept_known, self._kept_right, self._changed = 0, 0, 0
        self._changes: list[dict[str, Any]] = []
        self._errors: list[dict[str, Any]] = []

    def add(
        self,
        indices: np.ndarray,
        answers: np.ndarray,
        certainty: np.ndarray,
        truth: np.ndarray,
        times: np.ndarray,
        before: np.ndarray | None,
    ) -> None:
        """Count some images: arrays (n,) of their index, answer, certainty, true class, uses, and answer before."""
        classes, kept, known, right = len(self._answered), times > 0, truth != UNKNOWN, answers == truth
        self._answered += np.bincount(answers, minlength=classes)
        self._kept += np.bincount(answers[kept], minlength=classes)
        self._shown += np.bincount(answers, weights=times, minlength=classes).astype(np.int64)
        bins = np.minimum((certainty * BINS).astype(np.int64), BINS - 1)
        self._histogram += np.bincount(bins, minlength=BINS)
        self._known += np.bincount(bins[known], minlength=BINS)
        self._right += np.bincount(bins[right], minlength=BINS)
        self._kept_known += int((kept & known).sum())
        self._kept_right += int((kept & right).sum())
        wrong = known & ~right
        self._errors = _most_confident(
            self._errors, wrong, index=indices, label=answers, confidence=certainty, truth=truth
        )
        if before is not None:
            changed = before != answers
            self._changed += int(changed.sum())
            self._changes = _most_confident(
                self._changes, changed, index=indices, before=before, after=answers, confidence=certainty, truth=truth
            )

    def content(self, compared: bool) -> dict[str, Any]:
        """Return what the report is made from."""
        return {
            "answered_per_class": self._answered.tolist(),
            "kept_per_class": self._kept.tolist(),
            "shown_per_class": self._shown.tolist(),
            "edges": [number / BINS for number in range(BINS + 1)],
            "histogram": self._histogram.tolist(),
            "known": self._known.tolist(),
            "right": self._right.tolist(),
            "changed": self._changed if compared else None,
            "changed_examples": self._changes,
            "confident_errors": self._errors,
        }

    def result(self, images: int, compared: bool) -> dict[str, float]:
        """Return how many images were kept and shown, the share of them that is right, and how many answers changed."""
        result = {
            "pool/images": float(images),
            "pool/kept": float(self._kept.sum()),
            "pool/shown": float(self._shown.sum()),
        }
        if self._kept_known:
            result["pool/right"] = round(self._kept_right / self._kept_known, 6)
        if compared:
            result["pool/changed"] = round(self._changed / images, 6)
        return result


def _most_confident(found: list[dict[str, Any]], these: np.ndarray, **told: np.ndarray) -> list[dict[str, Any]]:
    """Return the most confident examples of those found before and of some images (n,) where ``these`` is true."""
    places = np.flatnonzero(these)
    places = places[np.argsort(-told["confidence"][places], kind="stable")[:EXAMPLES]]
    columns = [values[places].tolist() for values in told.values()]
    found = found + [dict(zip(told, row, strict=True)) for row in zip(*columns, strict=True)]
    return sorted(found, key=lambda example: -example["confidence"])[:EXAMPLES]
