"""The tables of a sweep's page: its settings, its runs, its networks, and what their seeds are as one."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from tutelage.report.ensembles import Ensemble
from tutelage.report.folds import pool_folds
from tutelage.report.gains import MIN_RUNS, estimate_mean, estimate_share, measure_overlap
from tutelage.report.jobs import (
    FOLD,
    SEED,
    TEST_MEASURE,
    Job,
    Measure,
    are_numbers,
    format_settings,
    shorten_key,
    to_number,
)
from tutelage.report.networks import Network, list_metrics, name_metric
from tutelage.report.sweep_charts import ALL
from tutelage.report.sweep_results import SweepResults
from tutelage.report.templating import Cell, Column, Link, Links, Table, Value
from tutelage.terminal.intervals import (
    NO_VALUE,
    Interval,
    format_accuracy,
    format_percent,
    wilson_interval,
)

SEARCHABLE_ROWS = 8  # tables of more can be searched
MAX_LINKS = 8  # to the runs of one row


def tabulate_settings(sweep: SweepResults) -> Table:
    """Return the leaderboard: a row for each setting, the best on validation first."""
    is_ranked = sweep.has_objective and len(sweep.groups) > 1
    rows: list[list[Cell]] = []
    for place, members in enumerate(sweep.groups, 1):
        settings = [_setting_cell(sweep, key, members[0]) for key in sweep.keys]
        measures = [describe_mean(measure, members) for measure in sweep.measures]
        rank = [str(place)] if is_ranked else []
        rows.append([*rank, *settings, *measures, str(len(members)), _link_runs(sweep, members)])
    head = [
        *([Column("rank")] if is_ranked else []),
        *(_setting_column(sweep, key) for key in sweep.keys),
        *(Column(measure.column) for measure in sweep.measures),
        Column("runs"),
        Column("seeds" if SEED in sweep.varied and FOLD not in sweep.varied else "reports", is_text=True),
    ]
    return Table("Settings", head, rows, best="1" if is_ranked else None, is_searchable=len(rows) > SEARCHABLE_ROWS)


def _setting_column(sweep: SweepResults, key: str) -> Column:
    return Column(shorten_key(key), is_text=not are_numbers(sweep.varied[key]))


def _setting_cell(sweep: SweepResults, key: str, job: Job) -> Cell:
    text = job.settings.get(key, "")
    return Value(text, to_number(text)) if text and are_numbers(sweep.varied[key]) else text


def describe_mean(measure: Measure, jobs: Sequence[Job]) -> Value:
    """Return the mean of a measure over the runs of a setting; of a result with its interval."""
    if measure is TEST_MEASURE and (pooled := pool_folds(jobs)) is not None:
        return Value(str(pooled), pooled.interval.value)
    values = np.array(measure.read_all(jobs))
    if not len(values):
        return Value(NO_VALUE, None)
    interval = None if measure.is_cost else _estimate(measure, values, jobs)
    mean = float(values.mean())
    if interval is None:
        return Value(measure.format(mean), mean)
    if measure.is_share:
        return Value(format_accuracy(interval), mean)
    value, low, high = map(measure.format, interval)
    return Value(f"{value} ({low} to {high})", mean)


def _estimate(measure: Measure, values: np.ndarray, jobs: Sequence[Job]) -> Interval | None:
    """Return the mean of a result over runs with its interval; None where one run says nothing of the spread."""
    if len(values) >= MIN_RUNS:
        estimate = estimate_share if measure.is_share else estimate_mean
        return estimate(values, measure_overlap([job.record for job in jobs]))
    images = jobs[0].test_images
    return wilson_interval(values[0] * images, images) if measure is TEST_MEASURE and images else None


def _link_runs(sweep: SweepResults, jobs: Sequence[Job]) -> Links:
    """Return links to the runs of a setting, named by what they differ in."""
    links = []
    for job in jobs[:MAX_LINKS]:
        name = format_settings([SEED, FOLD], job) if FOLD in sweep.varied else job.settings.get(SEED, "")
        links.append(Link(name or "report", _find_page(job, sweep.folder)))
    return Links(links, f"and {len(jobs) - MAX_LINKS} more" if len(jobs) > MAX_LINKS else "")


def _find_page(job: Job, folder: Path) -> str:
    """Return the address, from a folder, of a run's report; without one, as before a test, that of the run's folder."""
    file = job.folder.report / "index.html"
    way = Path(os.path.relpath(file if file.exists() else job.folder.path, folder))
    return quote(os.fsencode(way.as_posix()))  # in an address # and % mean something else


def tabulate_runs(sweep: SweepResults) -> Table:
    """Return the table of all runs, in the leaderboard's order."""
    keys = [*sweep.keys, *(key for key in (SEED, FOLD) if key in sweep.varied)]
    rows: list[list[Cell]] = []
    for job in (job for members in sweep.groups for job in members):
        measured = [(measure, measure.read(job)) for measure in sweep.measures]
        results = [Value(NO_VALUE if value is None else measure.format(value), value) for measure, value in measured]
        name = job.folder.path.name.rpartition("-")[2]
        settings = [_setting_cell(sweep, key, job) for key in keys]
        rows.append([Link(name, _find_page(job, sweep.folder)), *settings, *results])
    head = [
        Column("run", is_text=True),
        *(_setting_column(sweep, key) for key in keys),
        *(Column(measure.column) for measure in sweep.measures),
    ]
    return Table("Runs", head, rows, is_searchable=len(rows) > SEARCHABLE_ROWS)


def tabulate_networks(keys: Sequence[str], networks: Sequence[Network]) -> Table | None:
    """Return the table of every trained network; None if there are none to compare."""
    if not networks:
        return None
    metrics = list_metrics(networks)
    head = [
        *(Column(shorten_key(key), is_text=True) for key in keys),
        Column("network", is_text=True),
        *(Column(name_metric(metric)) for metric in metrics),
        Column("runs"),
    ]
    rows: list[list[Cell]] = [
        [*each.settings, each.name, *(_describe_metric(each, metric) for metric in metrics), str(len(each.jobs))]
        for each in networks
    ]
    return Table("Networks", head, rows, is_searchable=len(rows) > SEARCHABLE_ROWS)


def _describe_metric(network: Network, metric: str) -> Value:
    """Return the mean of a metric over a network's runs and, unless it is taken over folds, its interval."""
    if metric not in network.accuracies:
        return Value(NO_VALUE, None)
    mean, shares = network.average(metric), network.accuracies[metric] / 100
    if len(shares) < MIN_RUNS or network.is_pooled(metric):
        return Value(f"{mean:.1f} %", mean)
    overlap = measure_overlap([job.record for job in network.jobs])
    return Value(format_accuracy(estimate_share(shares, overlap)), mean)


def tabulate_ensembles(ensembles: Mapping[str, Ensemble]) -> Table | None:
    """Return the table of what several seeds are as one; None if there are none."""
    if not ensembles:
        return None
    rows: list[list[Cell]] = [
        [
            settings or ALL,
            str(len(each.accuracies)),
            format_percent(float(np.mean(each.accuracies))),
            format_accuracy(each.interval),
        ]
        for settings, each in ensembles.items()
    ]
    head = [Column("setting", is_text=True), Column("seeds"), Column("one alone, on average"), Column("all as one")]
    return Table("Several seeds as one", head, rows)
