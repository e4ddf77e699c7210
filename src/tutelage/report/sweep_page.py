"""The page of a sweep: what its settings are worth, each of its runs, and charts and pictures that compare them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tutelage.errors import UserError
from tutelage.report import label_efficiency
from tutelage.report.ensembles import Ensemble
from tutelage.report.folds import pool_folds
from tutelage.report.gains import MIN_RUNS, estimate_mean, estimate_share, measure_overlap
from tutelage.report.jobs import (
    FOLD,
    OTHER_OBJECTIVES,
    SEED,
    TEST_MEASURE,
    VALIDATION_MEASURE,
    Job,
    Measure,
    are_numbers,
    format_settings,
    shorten_key,
    to_number,
)
from tutelage.report.networks import Network, list_metrics, name_metric
from tutelage.report.sweep_charts import ALL, chart_curves, chart_measures, chart_shifts
from tutelage.report.sweep_results import SweepResults
from tutelage.report.templating import Cell, Column, Drawing, Link, Links, Number, Table, Tile, Value, write_page
from tutelage.runs import weights_files
from tutelage.terminal.intervals import (
    CONFIDENCE_LEVEL,
    NO_VALUE,
    Interval,
    format_accuracy,
    format_percent,
    wilson_interval,
)
from tutelage.terminal.time_left import format_duration

SEARCHABLE_ROWS = 8  # tables of more can be searched
MAX_LINKS = 8  # to the runs of one row
MAX_WARNINGS = 4
MAX_VALUES = 8  # of a key that are listed
WEIGHTS_NOTE = (
    "One image per class. Bright pixels raise the class's score where the weight is red and lower it where it is blue; "
    "white is zero."
)
ENSEMBLES_NOTE = (
    "The mean of the probabilities that the networks of several seeds give each test image, beside one network alone. "
    f"In brackets Wilson's {CONFIDENCE_LEVEL:.0%} interval over the test images."
)
PLANE = 2  # keys
DATE_LENGTH, COMMIT_LENGTH = 10, 10  # characters
PERCEPTRON = "tutelage.models.Perceptron"
MEANS_NOTE = (
    f"Means over the runs of a row, in brackets the {CONFIDENCE_LEVEL:.0%} interval of the mean (Student's t over the "
    "runs)."
)
SINGLE_NOTE = " A single run's test accuracy has Wilson's interval over the test images."
TIMES_NOTE = (
    "MB stored: all that is needed to predict. Training: the seconds of all stages of a run, without its control. "
    "ms per image: prediction, reading included. Times are those of the machine that ran the sweep; on another one, "
    "only their ratios say something."
)
MAP_CAPTION = (
    "Each cell: the mean over the runs at this point, +- their standard deviation, and their number; the stronger the "
    "colour, the better, and the best has a frame."
)
CLOUDS_CAPTION = (
    "One panel per key, one dot per run: the objective at the value that was drawn. Lists and words have one row per "
    "member: dots are the runs that had it, the stroke is their mean."
)


def write_sweep_page(sweep: SweepResults, networks: Sequence[Network]) -> Path:
    """Write the page of a sweep and return its file; of a sweep over label budgets also the picture of its lines."""
    file = sweep.folder / "index.html"
    lines = sweep.label_lines
    if lines:
        _write_label_picture(lines, sweep.folder / "labels.png")
    write_page(
        file,
        "sweep.html.j2",
        has_charts=True,
        kind="A sweep" if sweep.search is None else "A search, which has not seen the test set",
        heading=sweep.jobs[0].folder.path.parent.name,
        command=sweep.command,
        numbers=_list_numbers(sweep),
        warnings=_shorten_failures(sweep.failures),
        failures=sweep.failures if len(sweep.failures) > MAX_WARNINGS else [],
        varied={key: _describe_values(values) for key, values in sweep.varied.items()},
        labels=label_efficiency.chart_lines(lines) if lines else None,
        label_table=label_efficiency.build_table(lines) if lines else None,
        gains=sweep.gains,
        best=sweep.best,
        objective=sweep.objective,
        search_notes=sweep.search_notes,
        searches=_draw_search(sweep),
        weights=_show_weights(sweep.jobs),
        weights_note=WEIGHTS_NOTE,
        settings=_tabulate_settings(sweep),
        notes=[MEANS_NOTE + (SINGLE_NOTE if sweep.search is None else ""), TIMES_NOTE, *sweep.data_notes],
        networks=_tabulate_networks(sweep.keys, networks),
        ensembles=_tabulate_ensembles(sweep.ensembles),
        ensembles_note=ENSEMBLES_NOTE,
        curves=chart_curves(sweep),
        charts=[*chart_measures(sweep), *chart_shifts(sweep)],
        runs=_tabulate_runs(sweep),
        facts=_list_facts(sweep),
    )
    return file


def _list_numbers(sweep: SweepResults) -> list[Number]:
    """Return the numbers that the page begins with: the best setting's, how many runs there are, what they took."""
    best, is_only, numbers = sweep.groups[0], len(sweep.groups) == 1, []
    measure = {**OTHER_OBJECTIVES, "val/accuracy": VALIDATION_MEASURE}[sweep.objective]
    if measure.read_all(best):
        value, interval = _split_mean(measure, best)
        settings = format_settings(sweep.keys, best[0])
        numbers.append(
            Number(*((measure.name, value, interval) if is_only else (f"best {measure.name}", value, settings)))
        )
    if TEST_MEASURE.read_all(best) and (numbers or is_only):
        numbers.append(Number("test accuracy" if is_only else "its test accuracy", *_split_mean(TEST_MEASURE, best)))
    failed = sweep.job_count - len(sweep.jobs)
    without = f"; {failed} without a result" if failed else ""
    numbers.append(Number("runs finished", str(len(sweep.jobs)), f"of {sweep.job_count}{without}"))
    counts = sorted({len(members) for members in sweep.groups})
    each = f"{'-'.join(map(str, dict.fromkeys([counts[0], counts[-1]])))} runs each" if counts[-1] > 1 else "1 run each"
    numbers.append(Number("settings", str(len(sweep.groups)), each))
    seconds = sum(entry["seconds"] for job in sweep.jobs for entry in job.record["stages"])
    numbers.append(Number("trained for", format_duration(seconds), "all runs together, on this machine"))
    return numbers


def _split_mean(measure: Measure, jobs: Sequence[Job]) -> tuple[str, str]:
    """Return the mean of a measure over the runs of a setting, and its interval, as texts."""
    mean, bracket, interval = _describe_mean(measure, jobs).text.partition(" (")
    return mean, f"interval {interval.removesuffix(')')}" if bracket else ""


def _shorten_failures(failures: Sequence[str]) -> list[str]:
    if len(failures) <= MAX_WARNINGS:
        return list(failures)
    return [*failures[: MAX_WARNINGS - 1], f"... and {len(failures) - MAX_WARNINGS + 1} more, which stand below"]


def _describe_values(values: Sequence[str]) -> str:
    """Return the values of a key as a text: all, or of many numbers the smallest and the largest."""
    if len(values) <= MAX_VALUES:
        return ", ".join(values)
    if are_numbers(values):
        low, high = min(values, key=to_number), max(values, key=to_number)
        return f"{len(values)} values from {low} to {high}"
    return f"{', '.join(values[:MAX_VALUES])} ... ({len(values)} values)"


def _tabulate_settings(sweep: SweepResults) -> Table:
    """Return the leaderboard: a row for each setting, the best on validation first."""
    are_ranked = len(sweep.groups) > 1 and any(job.get_result(sweep.objective) is not None for job in sweep.jobs)
    rows: list[list[Cell]] = []
    for place, members in enumerate(sweep.groups, 1):
        settings = [_setting_cell(sweep, key, members[0]) for key in sweep.keys]
        measures = [_describe_mean(measure, members) for measure in sweep.measures]
        rank = [str(place)] if are_ranked else []
        rows.append([*rank, *settings, *measures, str(len(members)), _link_runs(sweep, members)])
    head = [
        *([Column("rank")] if are_ranked else []),
        *(_setting_column(sweep, key) for key in sweep.keys),
        *(Column(measure.column) for measure in sweep.measures),
        Column("runs"),
        Column("seeds" if SEED in sweep.varied and FOLD not in sweep.varied else "reports", is_text=True),
    ]
    return Table("Settings", head, rows, best="1" if are_ranked else None, is_searchable=len(rows) > SEARCHABLE_ROWS)


def _setting_column(sweep: SweepResults, key: str) -> Column:
    return Column(shorten_key(key), is_text=not are_numbers(sweep.varied[key]))


def _setting_cell(sweep: SweepResults, key: str, job: Job) -> Cell:
    text = job.settings.get(key, "")
    return Value(text, to_number(text)) if text and are_numbers(sweep.varied[key]) else text


def _describe_mean(measure: Measure, jobs: Sequence[Job]) -> Value:
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
    """Return the way from a folder to a run's report; if it has none, as before it is tested, to the run's folder."""
    file = job.folder.report / "index.html"
    return Path(os.path.relpath(file if file.exists() else job.folder.path, folder)).as_posix()


def _tabulate_runs(sweep: SweepResults) -> Table:
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


def _tabulate_networks(keys: Sequence[str], networks: Sequence[Network]) -> Table | None:
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


def _tabulate_ensembles(ensembles: Mapping[str, Ensemble]) -> Table | None:
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


def _write_label_picture(lines: Sequence[label_efficiency.Line], file: Path) -> None:
    """Write the lines as a picture for slides and documents."""
    from tutelage.report import pictures

    points = {line.name: [(point.label_count, point.interval) for point in line.points] for line in lines}
    figure = pictures.draw_label_curves(points, references=[line.name for line in lines if line.is_reference])
    pictures.save_figure(figure, file)


def _draw_search(sweep: SweepResults) -> list[Drawing]:
    """Return a map of a grid over two numeric keys, or the objective over what was drawn; none for other sweeps."""
    scored, objective = [job for job in sweep.jobs if job.get_result(sweep.objective) is not None], sweep.objective
    is_plane = len(sweep.grid) == PLANE and all(map(are_numbers, sweep.grid.values()))
    if not scored or not sweep.keys or (sweep.grid and not is_plane):
        return []
    from tutelage.report import search_pictures
    from tutelage.report.vector import encode_figure

    if not sweep.grid:
        figure = search_pictures.draw_clouds(sweep.keys, scored, objective)
        heading, caption = f"{objective} over what was drawn", CLOUDS_CAPTION
    else:
        figure = search_pictures.draw_grid_map(sweep.grid, scored, objective)
        heading, caption = f"{objective} over {' and '.join(map(shorten_key, sweep.keys))}", MAP_CAPTION
    alt = f"{heading}; the table of settings has the numbers"
    return [Drawing(heading, caption, encode_figure(figure), alt, is_wide=not sweep.grid)]


def _show_weights(jobs: Sequence[Job]) -> list[Tile]:
    """Return the weights of the first perceptron as images; none without a perceptron."""
    job = next((job for job in jobs if job.network.get("model", {}).get("_target_") == PERCEPTRON), None)
    if job is None:
        return []
    from tutelage.models import load_classifier
    from tutelage.report.weight_images import make_weight_tiles

    try:
        return make_weight_tiles(load_classifier(weights_files(job.folder, job.record)[str(job.network["name"])]))
    except UserError:  # the weights are gone
        return []


def _list_facts(sweep: SweepResults) -> dict[str, str]:
    """Return how the runs were made, for the small print; of several versions, all."""
    records = [job.record for job in sweep.jobs]
    dates = sorted(
        {record[key][:DATE_LENGTH] for record in records for key in ("started", "finished") if record.get(key)}
    )
    versions = [
        f"{record['version']} ({str(record.get('git'))[:COMMIT_LENGTH]})" for record in records if "version" in record
    ]
    packages = [
        ", ".join(
            [f"Python {record['python']}", *(f"{name} {version}" for name, version in record["packages"].items())]
        )
        for record in records
        if "packages" in record
    ]
    facts = {
        "trained": " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]])),
        "by tutelage": "; ".join(dict.fromkeys(versions)),
        "with": "; ".join(dict.fromkeys(packages)),
        "command": sweep.command,
    }
    return {name: text for name, text in facts.items() if text}
