"""The page of a sweep: what its settings are worth, each of its runs, and charts and pictures that compare them."""

from collections.abc import Sequence
from pathlib import Path

from tutelage.report import label_efficiency
from tutelage.report.jobs import (
    OTHER_OBJECTIVES,
    TEST_MEASURE,
    VALIDATION_MEASURE,
    Job,
    Measure,
    are_numbers,
    format_settings,
    shorten_key,
    to_number,
)
from tutelage.report.networks import Network
from tutelage.report.sweep_charts import chart_curves, chart_measures, chart_shifts
from tutelage.report.sweep_results import SweepResults
from tutelage.report.sweep_tables import (
    describe_mean,
    tabulate_ensembles,
    tabulate_networks,
    tabulate_runs,
    tabulate_settings,
)
from tutelage.report.templating import Drawing, Number, write_page
from tutelage.terminal.intervals import CONFIDENCE_LEVEL
from tutelage.terminal.time_left import format_duration

MAX_WARNINGS = 4
MAX_VALUES = 8  # of a key that are listed
ENSEMBLES_NOTE = (
    "The mean of the probabilities that the networks of several seeds give each test image, beside one network alone. "
    f"In brackets Wilson's {CONFIDENCE_LEVEL:.0%} interval over the test images."
)
PLANE = 2  # keys
DATE_LENGTH, COMMIT_LENGTH = 10, 10  # characters
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
        settings=tabulate_settings(sweep),
        notes=[MEANS_NOTE + (SINGLE_NOTE if sweep.search is None else ""), TIMES_NOTE, *sweep.data_notes],
        networks=tabulate_networks(sweep.keys, networks),
        ensembles=tabulate_ensembles(sweep.ensembles),
        ensembles_note=ENSEMBLES_NOTE,
        curves=chart_curves(sweep),
        charts=[*chart_measures(sweep), *chart_shifts(sweep)],
        runs=tabulate_runs(sweep),
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
    mean, bracket, interval = describe_mean(measure, jobs).text.partition(" (")
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
