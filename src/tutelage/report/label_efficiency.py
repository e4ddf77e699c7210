"""What a label is worth: test accuracy over the number of labels, one line per strategy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.report.folds import average_folds
from tutelage.report.gains import MIN_RUNS, REFERENCES, TEST_ACCURACY, estimate_mean
from tutelage.report.jobs import TEST_MEASURE, Job, format_settings, group_jobs
from tutelage.terminal.intervals import CONFIDENCE_LEVEL, Interval

MIN_BAND_RUNS = 3  # for two runs Student's t quantile is 12.7, and the band would hide the lines
LABEL_KEYS = ("data.labels_per_class", "data.labels")
CAPTION = (
    "Test accuracy (y) over the total number of labels (x, logarithmic), those held out for validation included. Each "
    f"line joins means over seeds; its band is the {CONFIDENCE_LEVEL:.0%} interval of the mean (Student's t), drawn "
    f"for {MIN_BAND_RUNS} seeds or more."
)


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


def tabulate_lines(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table below the picture: a row per number of labels, a column per line."""
    rows = []
    for count in sorted({point.label_count for line in lines for point in line.points}):
        points = [next((point for point in line.points if point.label_count == count), None) for line in lines]
        runs = sorted({len(point.accuracies) for point in points if point is not None})
        run_range = "-".join(map(str, dict.fromkeys([runs[0], runs[-1]])))
        rows.append([f"{count:,}", run_range, *map(_format_point, points)])
    return ["labels", "runs", *(line.name for line in lines)], rows


def _format_point(point: Point | None) -> str:
    if point is None:
        return "-"
    mean = f"{100 * np.mean(point.accuracies):.1f} %"
    return f"{mean} +- {100 * np.std(point.accuracies, ddof=1):.1f}" if len(point.accuracies) >= MIN_RUNS else mean
