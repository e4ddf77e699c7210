"""What a label is worth: test accuracy over the number of labels, a line a strategy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.report.gains import FEWEST, LEVEL, REFERENCES, TEST, Interval, paired
from tutelage.report.jobs import TESTED, Job, grouped, named

BAND_FROM = 3  # runs: Student's t of two is thirteen times their deviation
LABEL_KEYS = ("data.labels_per_class", "data.labels")
TOLD = (
    "Test accuracy over the number of labels in all, those held out for validation counted. Lines join the means over "
    f"seeds; a band is the {LEVEL:.0%} interval of the mean (Student's t) where there are {BAND_FROM} or more."
)


@dataclass(frozen=True)
class Point:
    """What some runs with the same number of labels gave: their accuracies (N,), as shares."""

    labels: int
    accuracies: tuple[float, ...]

    @property
    def interval(self) -> Interval:
        """The mean and its 95 % interval, which is the mean alone where runs are too few to have one worth drawing."""
        values = np.array(self.accuracies)
        return paired(values) if len(values) >= BAND_FROM else Interval(*[float(values.mean())] * 3)


@dataclass(frozen=True)
class Line:
    """Points of one strategy, by rising number of labels; a plain one is what the others are compared with."""

    name: str
    points: Sequence[Point]
    plain: bool = False


def label_key(keys: Sequence[str]) -> str | None:
    """Return the key by which a sweep varied the label budget; None where it did not."""
    return next((key for key in LABEL_KEYS if key in keys), None)


def budget(job: Job) -> int:
    """Return how many labels a run used in all, those that it held out for validation too."""
    held = (e["validation_images"] for e in job.record["stages"] if e.get("validation") == "inside")
    return int(sum(job.record["data"]["labelled"]) + max(held, default=0))


def budgets(key: str, jobs: Sequence[Job]) -> dict[str, int]:
    """Return the number of labels that each value of ``key`` stands for: the mean over its runs."""
    members = grouped([key], jobs).items()
    return {value: round(float(np.mean([budget(job) for job in runs]))) for (value,), runs in members}


def lines(keys: Sequence[str], jobs: Sequence[Job]) -> list[Line]:
    """Return a line for each choice but that of the label budget; empty where the budget was not varied.

    Where nothing but the budget was varied, and the runs have a control, it is a line too.
    """
    key = label_key(keys)
    if key is None:
        return []
    others = [one for one in keys if one != key]
    found = [
        Line(
            named(others, members[0]) or str(members[0].network["name"]),
            _points(members, key, {id(job): value for job in members if (value := TESTED.of(job)) is not None}),
            bool(others) and set(chosen) <= set(REFERENCES),
        )
        for chosen, members in grouped(others, jobs).items()
    ]
    if not others:
        control = _points(jobs, key, _controls(jobs))
        found += [Line("control", control, plain=True)] if control else []
    return [line for line in found if line.points]


def _controls(jobs: Sequence[Job]) -> dict[int, float]:
    """Return the test accuracy of each run's control, where it has exactly one."""
    found = {}
    for job in jobs:
        controls = [e["result"][TEST] for e in job.record["stages"] if e.get("control") and TEST in e["result"]]
        if len(controls) == 1:
            found[id(job)] = controls[0]
    return found


def _points(jobs: Sequence[Job], key: str, values: Mapping[int, float]) -> list[Point]:
    """Return the points of a line, given each run's accuracy by ``id``."""
    counts = budgets(key, jobs)
    by_count: dict[int, list[float]] = {}
    for job in jobs:
        if id(job) in values:
            by_count.setdefault(counts[job.chosen[key]], []).append(values[id(job)])
    return [Point(count, tuple(by_count[count])) for count in sorted(by_count)]


def table(shown: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table below the picture: a row a number of labels, a column a line."""
    rows = []
    for count in sorted({point.labels for line in shown for point in line.points}):
        points = [next((p for p in line.points if p.labels == count), None) for line in shown]
        runs = sorted({len(point.accuracies) for point in points if point is not None})
        rows.append([f"{count:,}", "-".join(map(str, dict.fromkeys([runs[0], runs[-1]]))), *map(_cell, points)])
    return ["labels", "runs", *(line.name for line in shown)], rows


def _cell(point: Point | None) -> str:
    if point is None:
        return "-"
    told = f"{100 * np.mean(point.accuracies):.1f} %"
    return f"{told} +- {100 * np.std(point.accuracies, ddof=1):.1f}" if len(point.accuracies) >= FEWEST else told
