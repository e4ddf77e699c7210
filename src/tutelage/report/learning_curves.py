"""The curves of a run's training: loss, accuracy and learning rate over optimizer steps."""

import csv
from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.report.templating import Chart, Line
from tutelage.runs import RunFolder, train_entries

Rows = Sequence[Mapping[str, float]]  # of metrics.csv
LOSS_CAPTION = "One line a stage, each from its own first step; losses of different methods cannot be compared."
ACCURACY_CAPTION = "On augmented labelled images."
VALIDATION_CAPTION = " Dashed: validation, on images as they are."
LEARNING_RATE = "lr"


def read_tables(record: Mapping[str, Any], folders: Mapping[str, RunFolder]) -> dict[str, Rows]:
    """Return the rows of ``metrics.csv`` of each training stage."""
    tables: dict[str, Rows] = {}
    for entry in train_entries(record):
        with folders[entry["name"]].metrics_file.open() as file:
            tables[entry["name"]] = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return tables


def make_curves(tables: Mapping[str, Rows]) -> list[Chart]:
    """Return the charts of loss and accuracy, and of the learning rate where it was recorded."""
    dashed = VALIDATION_CAPTION if _has(tables, "val/loss") else ""
    charts = [
        Chart("Loss", LOSS_CAPTION + dashed, "optimizer step", _make_lines(tables, "loss")),
        Chart("Accuracy", ACCURACY_CAPTION + dashed, "optimizer step", _make_lines(tables, "accuracy"), is_share=True),
    ]
    if _has(tables, LEARNING_RATE):
        lines = [
            Line(name, *_read_points(rows, LEARNING_RATE), color=number)
            for number, (name, rows) in enumerate(tables.items())
        ]
        charts.append(
            Chart(
                "Learning rate",
                "Of each step, as the schedule has it.",
                "optimizer step",
                lines,
                height=180,
                is_wide=True,
            )
        )
    return [chart for chart in charts if chart.lines]


def _has(tables: Mapping[str, Rows], key: str) -> bool:
    return any(key in row for rows in tables.values() for row in rows)


def _make_lines(tables: Mapping[str, Rows], metric: str) -> list[Line]:
    """Return for each stage the line of a metric in training, and that on validation; without values there is none."""
    lines = []
    for number, (name, rows) in enumerate(tables.items()):
        for prefix, label, is_dashed in (("train", name, False), ("val", f"{name}, validation", True)):
            steps, values = _read_points(rows, f"{prefix}/{metric}")
            if steps:  # a stage without labels has no accuracy
                lines.append(Line(label, steps, values, color=number, is_dashed=is_dashed))
    return lines


def _read_points(rows: Rows, key: str) -> tuple[list[float], list[float]]:
    points = [(row["step"], row[key]) for row in rows if key in row]
    return [step for step, _ in points], [value for _, value in points]
