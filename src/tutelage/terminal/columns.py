"""The metrics that have a column in a run's table: which they are follows from ``run.json``. Needs no torch."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from tutelage.config import MONITORS
from tutelage.data import WITHOUT_DUPLICATES, are_uneven

VALIDATION, TEST = "val/accuracy", "test/accuracy"
TASK, OTHER_TEST_SET = re.compile(r"test/(task)-(\d+)"), re.compile(r"test-([^/]+)/accuracy")
UNEVEN_HEADINGS = {"balanced_accuracy": "balanced", "f1": "F1"}  # of metrics beside accuracy where classes are uneven


class Metric(NamedTuple):
    """A metric with a column of its own: its key in ``result``, and the column's heading."""

    key: str
    heading: str


def list_metrics(record: Mapping[str, Any], wide: bool) -> list[Metric]:
    """Return the metrics that have a column: accuracy on validation, on each task, or on each test set.

    In a wide table those that ``_uneven_metrics`` lists follow each accuracy.
    """
    keys = list(dict.fromkeys(key for entry in record["stages"] for key in entry["result"]))
    if has_tasks(record):
        tasks = sorted((key for key in keys if TASK.fullmatch(key)), key=lambda key: (len(key), key))
        return [Metric(VALIDATION, "val"), *(Metric(key, TASK.sub(r"\1 \2", key)) for key in tasks)]
    accuracies = [Metric(VALIDATION, "val"), Metric(TEST, "test")]
    accuracies += [Metric(key, match[1]) for key in keys if (match := OTHER_TEST_SET.fullmatch(key))]
    columns = []
    for accuracy in accuracies:
        columns += [accuracy, *(_uneven_metrics(record, accuracy) if wide else [])]
    return columns


def _uneven_metrics(record: Mapping[str, Any], accuracy: Metric) -> list[Metric]:
    """Return balanced accuracy and F1 on an accuracy's images where classes are uneven; else the one that selects.

    Runs of earlier versions have neither.
    """
    prefix, selecting = accuracy.key.rpartition("/")[0], read_monitor(record).rpartition("/")[2]
    counts = record.get("data", {}).get("images_per_class", {}).get(prefix.removesuffix(WITHOUT_DUPLICATES), [])
    shown = [name for name in UNEVEN_HEADINGS if are_uneven(counts) or name == selecting]
    metrics = [Metric(f"{prefix}/{name}", f"{accuracy.heading} {UNEVEN_HEADINGS[name]}") for name in shown]
    return [metric for metric in metrics if any(metric.key in entry["result"] for entry in record["stages"])]


def read_monitor(record: Mapping[str, Any]) -> str:
    """Return the metric that selected the best weights."""
    return str(record.get("identity", {}).get("callbacks", {}).get("monitor", MONITORS[0]))


def task_accuracies(result: Mapping[str, float]) -> dict[int, float]:
    """Return the accuracy on each task that a network has learned, by the task's number."""
    return {int(match[2]): value for key, value in result.items() if (match := TASK.fullmatch(key))}


def has_tasks(record: Mapping[str, Any]) -> bool:
    """Return whether a run's networks learned tasks one after another."""
    return any(task_accuracies(entry["result"]) for entry in record["stages"])
