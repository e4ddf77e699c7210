"""The charts of a sweep's page: curves of its runs, measures over a number that was varied, shifts."""

import csv
import math
from collections.abc import Sequence

import numpy as np

from tutelage.config import MINIMIZED_OBJECTIVES, SHIFTS
from tutelage.report.curves import chart_shift, read_curve
from tutelage.report.jobs import (
    FOLD,
    PERCENT_SIGN,
    SEED,
    TEST_MEASURE,
    Job,
    Measure,
    are_numbers,
    format_settings,
    shorten_key,
    to_number,
)
from tutelage.report.label_efficiency import LABEL_KEYS
from tutelage.report.sweep_results import SweepResults
from tutelage.report.templating import Chart, Line
from tutelage.runs import main_stage_name, stage_folders

MAX_LINES = 24  # of a chart
MAX_POINTS = 300  # of a run's curve
MAX_TICKS = 12  # values that are named on an axis
MIN_LOG_RANGE = 20  # ratio of the largest to the smallest value from which on an axis is logarithmic
ALL = "all runs"  # the only line of a chart
CURVE_KEYS = {"val/accuracy": "Validation accuracy", "train/accuracy": "Accuracy on augmented training images"}


def chart_curves(sweep: SweepResults) -> list[Chart]:
    """Return the chart of the runs' learning curves; none if no run has any."""
    chosen = _choose_runs(sweep)
    shown = {id(job) for job in chosen}
    has_validation = any(job.get_result("val/accuracy") is not None for job in chosen)
    key, lines = "val/accuracy" if has_validation else "train/accuracy", []
    for color, members in enumerate(sweep.groups):
        curves = [(job, *_read_metric(job, key)) for job in members if id(job) in shown]
        for number, (job, steps, values) in enumerate(curve for curve in curves if curve[1]):
            # one entry in the legend for the runs of a setting; where there is no other setting, one for each
            name = format_settings(sweep.keys, job) if number == 0 else ""
            name = name if sweep.keys else format_settings([SEED, FOLD], job) or ALL
            lines.append(Line(name, steps, values, color=color if sweep.keys else number))
    if not lines:
        return []
    part = (
        f"the {len(lines)} runs with the best {sweep.objective}"
        if sweep.has_objective
        else f"{len(lines)} runs, some of each"
    )
    which = ALL if len(chosen) == len(sweep.jobs) else f"{part} of {len(sweep.jobs)}"
    caption = (
        f"{CURVE_KEYS[key]} over optimizer steps, of {which}: a line for each run"
        f"{', a colour for each setting' if sweep.keys else ''}. Of several stages, that of the final network."
    )
    return [Chart("Learning curves", caption, "optimizer step", lines, is_share=True, is_wide=True, height=360)]


def _choose_runs(sweep: SweepResults) -> list[Job]:
    """Return the runs with the best objective; of those without, one of each setting, then a second of each ..."""
    sign = 1 if sweep.objective in MINIMIZED_OBJECTIVES else -1

    def sort_key(numbered: tuple[int, Job]) -> tuple[float, int]:
        value = numbered[1].get_result(sweep.objective)
        return (math.inf if value is None else sign * value), numbered[0]

    numbered = [(number, job) for members in sweep.groups for number, job in enumerate(members)]
    return [job for _, job in sorted(numbered, key=sort_key)[:MAX_LINES]]


def _read_metric(job: Job, key: str) -> tuple[list[float], list[float]]:
    """Return the steps and the values of a metric of a run's final network; few of them where there are many."""
    stage = stage_folders(job.folder, job.record)[main_stage_name(job.record)]
    try:
        with stage.metrics_file.open() as file:
            points = [(float(row["step"]), float(row[key])) for row in csv.DictReader(file) if row.get(key)]
    except (OSError, ValueError, KeyError):  # a table that is gone or damaged
        return [], []
    places = np.unique(np.linspace(0, len(points) - 1, min(len(points), MAX_POINTS)).round().astype(int))
    return [points[place][0] for place in places], [points[place][1] for place in places]


def chart_measures(sweep: SweepResults) -> list[Chart]:
    """Return a chart of each measure over the first key that is a number; none without one, or without a grid."""
    keys = [key for key in sweep.keys if are_numbers(job.settings.get(key, "") for job in sweep.jobs)]
    if not sweep.grid or not keys:
        return []
    # with several budgets, the test accuracy over them has a chart of its own
    measures = [each for each in sweep.measures if each is not TEST_MEASURE or keys[0] not in LABEL_KEYS]
    return [chart for measure in measures for chart in _chart_measure(sweep, measure, keys[0])]


def _chart_measure(sweep: SweepResults, measure: Measure, x_key: str) -> list[Chart]:
    """Return the chart of a measure: a line of means for each setting of the other keys, and a dot for each run."""
    other_keys = [key for key in sweep.keys if key != x_key]
    points: dict[str, list[tuple[float, float]]] = {}
    for job in (job for members in sweep.groups for job in members):
        if (value := measure.read(job)) is not None:
            name = format_settings(other_keys, job) or ALL
            points.setdefault(name, []).append((to_number(job.settings[x_key]), value))
    lines = []
    for color, (name, pairs) in enumerate(list(points.items())[:MAX_LINES]):
        xs = sorted({x for x, _ in pairs})
        lines.append(Line(name, xs, [float(np.mean([y for x, y in pairs if x == each])) for each in xs], color=color))
        if len(pairs) > len(xs):
            pairs.sort()
            lines.append(Line("", [x for x, _ in pairs], [y for _, y in pairs], color=color, is_dots=True))
    ticks = sorted({x for pairs in points.values() for x, _ in pairs})
    values = [y for pairs in points.values() for _, y in pairs]
    if min(values) == max(values):
        return []  # such as the size of networks that differ only in how they were trained
    unit = f", {PERCENT_SIGN}" if all(job.settings[x_key].endswith(PERCENT_SIGN) for job in sweep.jobs) else ""
    shown = f" Of {len(points)} lines, the best {MAX_LINES}." if len(points) > MAX_LINES else ""
    times = f" Times are those of {measure.basis}." if measure.basis else ""
    name = shorten_key(x_key)
    return [
        Chart(
            f"{measure.name[:1].upper()}{measure.name[1:]} over {name}",
            f"Lines join means over seeds; faint dots are single runs.{shown}{times}",
            f"{name}{unit}",
            lines,
            is_share=measure.is_share,
            has_log_x=_spans_much(ticks),
            has_log_y=measure.is_cost and _spans_much(values),
            x_ticks=ticks if len(ticks) <= MAX_TICKS else None,
            height=260,
        )
    ]


def _spans_much(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= MIN_LOG_RANGE


def chart_shifts(sweep: SweepResults) -> list[Chart]:
    """Return a chart for each measured shift: a line for each setting, the mean over its runs; none for a search."""
    charts = []
    for shift in SHIFTS if sweep.search is None else ():
        accuracy, first = {}, None
        for members in sweep.groups:
            curves = [(job, curve) for job in members if (curve := read_curve(job.folder, shift)) is not None]
            if curves:
                first = first or curves[0][1]
                means = np.mean([curve.accuracy[main_stage_name(job.record)] for job, curve in curves], axis=0)
                accuracy[format_settings(sweep.keys, members[0]) or ALL] = means.tolist()
        if first is not None:
            charts.append(
                chart_shift(shift, first.description, first.strengths, dict(list(accuracy.items())[:MAX_LINES]))
            )
    return charts
