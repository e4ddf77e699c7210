"""The label store: a teacher's probabilities for the pool, and what was made of them."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tutelage.data.source import UNKNOWN, Source
from tutelage.storage import write_checked, write_whole

PROBABILITIES = "probabilities.npy"
TABLE = "pseudo_labels.parquet"


@dataclass(frozen=True)
class Selection:
    """Which pool images a student trains on.

    Attributes:
        entries: (n,) int64, positions in the pool; one that is duplicated stands here several times.
        copies: (n,) int64, which duplicate an entry is.
        targets: (n, C) float32 probabilities.
    """

    entries: np.ndarray
    copies: np.ndarray
    targets: np.ndarray


def write_probabilities(folder: Path, probabilities: np.ndarray) -> None:
    """Write a teacher's probabilities (N, C) for the pool as float16, whole or absent."""
    write_checked(folder / PROBABILITIES, lambda file: np.save(file, probabilities.astype(np.float16)))


def read_probabilities(folder: Path) -> np.ndarray:
    """Return the stored probabilities (N, C) as float32, each row summing to one again."""
    stored: np.ndarray = np.load(folder / PROBABILITIES, allow_pickle=False).astype(np.float32)
    stored /= stored.sum(axis=1, keepdims=True)
    return stored


def write_table(folder: Path, source: Source, pool: np.ndarray, probabilities: np.ndarray, chosen: Selection) -> None:
    """Write one row a pool image for people: name, label, confidence, margin, whether and how often it is used.

    ``truth`` is null where the source does not know it; no training reads it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    ordered = np.sort(probabilities, axis=1)
    times_used = np.bincount(chosen.entries, minlength=len(pool))
    classes = np.array(source.classes, dtype=object)
    truth = [None if label == UNKNOWN else source.classes[label] for label in source.labels[pool]]
    table = pa.table(
        {
            "index": pool,
            "name": [source.names[int(i)] for i in pool],
            "label": pa.array(classes[probabilities.argmax(axis=1)], pa.string()),
            "confidence": ordered[:, -1],
            "margin": ordered[:, -1] - ordered[:, -2],
            "kept": times_used > 0,
            "copies": times_used,
            "truth": pa.array(truth, pa.string()),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_whole(folder / TABLE, lambda file: file.write(buffer.getvalue()))


def quality(source: Source, pool: np.ndarray, probabilities: np.ndarray, chosen: Selection) -> dict[str, float]:
    """Return how many pseudo-labels were kept and, where truth is known, the share of them that are right."""
    kept = np.unique(chosen.entries)
    truth = source.labels[pool[kept]]
    known = truth != UNKNOWN
    result = {"pool/images": float(len(pool)), "pool/kept": float(len(kept)), "pool/shown": float(len(chosen.entries))}
    if known.any():
        right = probabilities[kept].argmax(axis=1)[known] == truth[known]
        result["pool/right"] = round(float(right.mean()), 6)
    return result
