"""What a label is worth: test accuracy over the number of labels, one line per strategy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.report import templating
from tutelage.report.folds import average_folds
from tutelage.report.gains import MIN_RUNS, REFERENCES, TEST_ACCURACY, estimate_mean, estimate_share
from tutelage.report.jobs import TEST_MEASURE, Job, format_settings, group_jobs
from tutelage.terminal.intervals import CONFIDENCE_LEVEL, NO_VALUE, Interval, format_accuracy, format_percent

MIN_BAND_RUNS = 3  # for two runs Student's t quantile is 12.7, and the band would hide the lines
LABEL_KEYS = ("data.labels_per_class", "data.labels")
CAPTION = (
    "Test accuracy over the total number of labels, those held out for validation included; the axis is logarithmic. "
    f"Each line joins means over seeds; its band is the {CONFIDENCE_LEVEL:.0%} interval of the mean (Student's t), "
    f"drawn for {MIN_BAND_RUNS} seeds or more. What others are compared with is grey."
)
CHART_HEIGHT = 380  # CSS pixels


@dataclass(frozen=True)
class Point:
    """The runs of one line at one number of labels: their accuracies (N,), between 0 and 1, folds taken together."""

    label_count: int
    accuracies: tuple[float, ...]

    @property
    def interval(self) -> Interval:
        """The mean and its 95 % interval; with fewer than ``MIN_BAND_RUNS`` runs, all three are the mean."""
        values = np.array(self.accuracies)
        return estimate_mean(values) if len(values) >= MIN_BAND_RUNS else Interval(*[float(values.mean())] * 3)


@dataclass(frozen=True)
class Line:
    """The points of one strategy, by rising number of labels; other lines are compared with a reference."""

    name: str
    points: Sequence[Point]
    is_reference: bool = False


def find_label_key(keys: Sequence[str]) -> str | None:
    """Return the key by which a sweep varied the label budget; None if it did not."""
    return next((key for key in LABEL_KEYS if key in keys), None)


def count_labels(job: Job) -> int:
    """Return how many labels a run used in total, those that it held out for validation included."""
    held_out = (e["validation_images"] for e in job.record["stages"] if e.get("validation") == "inside")
    return int(sum(job.record["data"]["labelled"]) + max(held_out, default=0))


def average_label_counts(key: str, jobs: Sequence[Job]) -> dict[str, int]:
    """Return the number of labels that each value of ``key`` stands for: the rounded mean over its runs."""
    groups = group_jobs([key], jobs).items()
    return {value: round(float(np.mean([count_labels(job) for job in members]))) for (value,), members in groups}


def build_lines(keys: Sequence[str], jobs: Sequence[Job]) -> list[Line]:
    """Return a line for each setting of the other keys; empty if the label budget was not varied.

    If only the budget was varied and the runs have a control, the control is a line too.
    """
    label_key = find_label_key(keys)
    if label_key is None:
        return []
    other_keys = [key for key in keys if key != label_key]
    lines = []
    for settings, members in group_jobs(other_keys, jobs).items():
        accuracies = {id(job): value for job in members if (value := TEST_MEASURE.read(job)) is not None}
        name = format_settings(other_keys, members[0]) or str(members[0].network["name"])
        is_reference = bool(other_keys) and set(settings) <= set(REFERENCES)
        lines.append(Line(name, _build_points(members, label_key, accuracies), is_reference))
    if not other_keys:
        lines.append(Line("control", _build_points(jobs, label_key, _read_controls(jobs)), is_reference=True))
    return [line for line in lines if line.points]


def _read_controls(jobs: Sequence[Job]) -> dict[int, float]:
    """Return the test accuracy of each run's control by the run's ``id``; only of runs with exactly one control."""
    accuracies = {}
    for job in jobs:
        results = [entry["result"] for entry in job.record["stages"] if entry.get("control")]
        controls = [result[TEST_ACCURACY] for result in results if TEST_ACCURACY in result]
        if len(controls) == 1:
            accuracies[id(job)] = controls[0]
    return accuracies


def _build_points(jobs: Sequence[Job], label_key: str, accuracies: Mapping[int, float]) -> list[Point]:
    """Return the points of a line from each run's accuracy, which ``accuracies`` has by the run's ``id``."""
    counts = average_label_counts(label_key, jobs)
    by_count: dict[int, list[Job]] = {}
    for job in jobs:
        if id(job) in accuracies:
            by_count.setdefault(counts[job.settings[label_key]], []).append(job)
    return [Point(count, tuple(average_folds(by_count[count], accuracies))) for count in sorted(by_count)]


def chart_lines(lines: Sequence[Line]) -> templating.Chart:
    """Return the chart of the lines, with their bands."""
    return templating.Chart(
        "What a label is worth",
        CAPTION,
        "labels in total",
        [_chart_line(line, number) for line, number in zip(lines, _number_colours(lines), strict=True)],
        is_share=True,
        has_log_x=True,
        x_ticks=sorted({point.label_count for line in lines for point in line.points}),
        height=CHART_HEIGHT,
        is_wide=True,
    )


def _number_colours(lines: Sequence[Line]) -> list[int]:
    """Return the number of each line's colour; references are grey and take none."""
    return [sum(not line.is_reference for line in lines[:place]) for place in range(len(lines))]


def _chart_line(line: Line, color: int) -> templating.Line:
    counts, intervals = [point.label_count for point in line.points], [point.interval for point in line.points]
    means = [interval.value for interval in intervals]
    lows, highs = [interval.low for interval in intervals], [min(1.0, interval.high) for interval in intervals]
    low, high = (None, None) if lows == means == highs else (lows, highs)
    return templating.Line(line.name, counts, means, low, high, color=color, is_reference=line.is_reference)


def tabulate_lines(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the terminal's table: a row per number of labels, a column per line."""
    rows = [[f"{count:,}", runs, *map(_format_point, points)] for count, runs, points in _list_rows(lines)]
    return ["labels", "runs", *(line.name for line in lines)], rows


def build_table(lines: Sequence[Line]) -> templating.Table:
    """Return the table below the chart: means with their intervals."""
    names = ["labels", "runs", *(line.name for line in lines)]
    rows: list[list[templating.Cell]] = [
        [f"{count:,}", runs, *map(_build_cell, points)] for count, runs, points in _list_rows(lines)
    ]
    return templating.Table("Test accuracy by labels", [templating.Column(name) for name in names], rows)


def _list_rows(lines: Sequence[Line]) -> list[tuple[int, str, list[Point | None]]]:
    """Return for each number of labels: the number, how many runs a point has, and each line's point."""
    rows = []
    for count in sorted({point.label_count for line in lines for point in line.points}):
        points = [next((point for point in line.points if point.label_count == count), None) for line in lines]
        runs = sorted({len(point.accuracies) for point in points if point is not None})
        rows.append((count, "-".join(map(str, dict.fromkeys([runs[0], runs[-1]]))), points))
    return rows


def _build_cell(point: Point | None) -> templating.Value:
    if point is None:
        return templating.Value(NO_VALUE, None)
    values = np.array(point.accuracies)
    text = format_accuracy(estimate_share(values)) if len(values) >= MIN_RUNS else format_percent(values[0])
    return templating.Value(text, float(values.mean()))


def _format_point(point: Point | None) -> str:
    if point is None:
        return NO_VALUE
    mean = f"{100 * np.mean(point.accuracies):.1f} %"
    return f"{mean} +- {100 * np.std(point.accuracies, ddof=1):.1f}" if len(point.accuracies) >= MIN_RUNS else mean
