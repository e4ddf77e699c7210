"""The result of a sweep: one table and one page over all its runs."""

import html
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tutelage.config import SHIFTS, SweeperConfig
from tutelage.report import label_efficiency, page, pictures, searches
from tutelage.report.curves import read_curve
from tutelage.report.ensembles import describe_ensembles
from tutelage.report.folds import (
    BY_IMAGES_NOTE,
    FOLDS_CHOSEN_NOTE,
    FOLDS_NOTE,
    describe_missing_folds,
    has_folds,
    pool_folds,
)
from tutelage.report.gains import TEST_ACCURACY, collect_accuracies, describe_gains
from tutelage.report.jobs import (
    FOLD,
    MEASURES,
    MEASURES_NOTE,
    OTHER_OBJECTIVES,
    SEED,
    TEST_MEASURE,
    Job,
    are_numbers,
    find_grid_values,
    format_settings,
    group_jobs,
    read_finished_jobs,
    shorten_key,
    to_number,
)
from tutelage.report.pairs import compare_with_references
from tutelage.runs import main_stage_name
from tutelage.storage import digest
from tutelage.sweeps.folder import Outcome
from tutelage.terminal.table import print_uncut

HASH_LENGTH = 6
PARTIAL_NOTE = (
    "{} runs with shortened schedules decided which trials went on to the full schedule; they are not listed."
)
PANELS_CAPTION = (
    "One panel per measure (y) over {} (x). Lines join means over seeds, faint dots are single runs; y is logarithmic "
    "except for percentages."
)


@dataclass(frozen=True)
class ResultTable:
    """A table of texts; its first ``name_columns`` columns are names, aligned left on a terminal."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    name_columns: int

    def print(self) -> None:
        """Print the table."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for number, name in enumerate(self.head):
            table.add_column(name, justify="left" if number < self.name_columns else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        print_uncut(table)

    def render(self) -> str:
        """Return the table as HTML."""
        return page.render_table(self.head, self.rows)


def report_sweep(outcomes: Sequence[Outcome], command: str, search: SweeperConfig | None = None) -> None:
    """Print one table over the runs of a sweep, and write a page with its pictures.

    Runs that differ only in seed and fold make one row: the mean, and with several runs the standard deviation. The
    test accuracy is pooled over folds.

    Args:
        outcomes: how each job of the sweep ended.
        command: the command that started the sweep; another command has another page.
        search: the settings of a search, which must not see the test set; None if the sweep is not a search.
    """
    full = [outcome for outcome in outcomes if not outcome.partial]
    partial = [outcome for outcome in outcomes if outcome.partial]
    jobs, keys, failures = read_finished_jobs(full, tested=search is None)
    failures += read_finished_jobs(partial)[2]
    failures += describe_missing_folds(keys, jobs)
    objective = searches.get_objective(search)
    if jobs:
        table = _tabulate_jobs(keys, jobs, objective)
        table.print()
    for line in failures:
        print(line)
    if not jobs:
        return
    search_notes = _describe_search(keys, jobs, command, search)
    search_notes += [PARTIAL_NOTE.format(len(partial))] if partial else []
    fold_notes = [*_describe_folds(jobs), *_describe_leaks(jobs)]
    networks, lines = _tabulate_networks(keys, jobs), label_efficiency.build_lines(keys, jobs)
    second_table = ResultTable(*label_efficiency.tabulate_lines(lines), 1) if lines else networks
    if second_table is not None:
        print()
        second_table.print()
    gains = [*compare_with_references(keys, jobs), *_describe_method_gains(keys, jobs)]
    gains += describe_ensembles(keys, jobs) if search is None else []
    for line in [*gains, *search_notes, *fold_notes]:
        print(line)
    folder = jobs[0].folder.path.parent / f"sweep-{digest(command)[:HASH_LENGTH]}"
    grid = find_grid_values(full)
    shown = [
        *searches.draw_search(keys, jobs, grid, objective, folder),
        *(_draw_measures(keys, jobs, folder) if grid else []),
        *(_draw_shifts(keys, jobs, folder) if search is None else []),
        *_find_templates(jobs),
    ]
    title = jobs[0].folder.path.parent.name
    body = (
        f"<p class=note><code>{html.escape(command)}</code></p>{_render_label_efficiency(lines, gains, folder)}"
        f"{table.render()}{page.render_notes([*search_notes, MEASURES_NOTE, *fold_notes, *failures])}"
        f"{networks.render() if networks else ''}{'' if lines else page.render_notes(gains)}"
        f"{page.render_pictures(shown)}<h2>The runs</h2><ul>{_render_links(keys, jobs, folder)}</ul>"
    )
    page.write_page(folder / "index.html", title, title, body)
    print(f"report: {folder / 'index.html'}")


def _describe_folds(jobs: Sequence[Job]) -> list[str]:
    """Return notes on how the folds of a cross-validation are pooled; none without folds."""
    pooled = pool_folds(jobs)
    return [] if pooled is None else [FOLDS_NOTE, BY_IMAGES_NOTE] if pooled.has_groups else [FOLDS_NOTE]


def _describe_leaks(jobs: Sequence[Job]) -> list[str]:
    """Return a note if test images of some runs are also learned from."""
    counts = [len(job.record.get("data", {}).get("leaked", [])) for job in jobs]
    if not any(counts):
        return []
    return [
        f"Duplicates: in {sum(map(bool, counts))} of {len(jobs)} runs test images are also learned from, up to "
        f"{max(counts)} of {max(job.test_images for job in jobs)}; data.duplicates=drop learns from none of them."
    ]


def _describe_search(keys: Sequence[str], jobs: Sequence[Job], command: str, search: SweeperConfig | None) -> list[str]:
    """Return the best settings of a search and the command that trains them in full; empty if there was no search."""
    if search is None:
        return []
    best = searches.rank_groups(keys, jobs, search.objective)[0]
    value, count = searches.average_objective(best, search.objective), len(best)
    if math.isnan(value):
        return [f"no run has {search.objective}, so there is no best one"]
    settings = format_settings(keys, best[0]) or "the only setting"
    runs = f"mean of {count} runs" if count > 1 else "1 run"
    return [
        f"best by {search.objective}: {settings} ({searches.format_objective(value, search.objective)}, {runs})",
        f"to train it in full and test it: {searches.build_full_command(best[0], command, search)}",
        *([FOLDS_CHOSEN_NOTE] if has_folds(jobs) else []),
    ]


def _render_label_efficiency(lines: Sequence[label_efficiency.Line], gains: Sequence[str], folder: Path) -> str:
    """Return the first part of the page of a sweep over label budgets: one picture, its table, and the gains."""
    if not lines:
        return ""
    points = {line.name: [(point.label_count, point.interval) for point in line.points] for line in lines}
    figure = pictures.draw_label_curves(points, references=[line.name for line in lines if line.is_reference])
    picture = page.save_picture(folder / "labels.png", figure, "What a label is worth", label_efficiency.CAPTION)
    table = page.render_table(*label_efficiency.tabulate_lines(lines))
    return f"{page.render_pictures([picture])}{table}{page.render_notes(gains)}<h2>All measures</h2>"


def _render_links(keys: Sequence[str], jobs: Sequence[Job], folder: Path) -> str:
    return "".join(
        f'<li><a href="{html.escape(os.path.relpath(_find_page(job), folder))}">'
        f"{html.escape(format_settings([*keys, SEED, FOLD], job) or job.folder.path.name)}</a></li>"
        for job in jobs
    )


def _find_page(job: Job) -> Path:
    """Return a run's report; if it has none, as before it is tested, the run's folder."""
    file = job.folder.report / "index.html"
    return file if file.exists() else job.folder.path


def _tabulate_jobs(keys: Sequence[str], jobs: Sequence[Job], objective: str) -> ResultTable:
    """Return the table of all measures that at least one run has, the best settings on validation first."""
    measures = [measure for measure in MEASURES if measure.read_all(jobs)]
    if objective in OTHER_OBJECTIVES:
        measures.insert(0, OTHER_OBJECTIVES[objective])
    rows = []
    for members in searches.rank_groups(keys, jobs, objective):
        row = [*(members[0].settings.get(key, "") for key in keys), str(len(members))]
        for measure in measures:
            if measure is TEST_MEASURE and (pooled := pool_folds(members)) is not None:
                row.append(str(pooled))
                continue
            values = measure.read_all(members)
            mean = measure.format(float(np.mean(values))) if values else "-"
            has_deviation = measure.is_share and len(values) > 1
            row.append(f"{mean} +- {100 * np.std(values, ddof=1):.1f}" if has_deviation else mean)
        rows.append(row)
    head = [*(shorten_key(key) for key in keys), "runs", *(measure.heading for measure in measures)]
    return ResultTable(head, rows, len(keys))


def _tabulate_networks(keys: Sequence[str], jobs: Sequence[Job]) -> ResultTable | None:
    """Return the table of every trained network; None if each run trained only one."""
    networks: list[tuple[list[str], dict[str, str]]] = []
    groups = group_jobs(keys, jobs)
    for settings, members in groups.items():
        for name, accuracies in collect_accuracies([job.record for job in members]).items():
            texts = {key: _format_values(values, key, members) for key, values in accuracies.items()}
            networks.append(([*settings, name, str(len(members))], texts))
    metrics = list(dict.fromkeys(key for _, texts in networks for key in texts))
    if len(networks) == len(groups) or not metrics:
        return None
    head = [*(shorten_key(key) for key in keys), "network", "runs", *map(_format_metric, metrics)]
    rows = [[*names, *(texts.get(key, "-") for key in metrics)] for names, texts in networks]
    return ResultTable(head, rows, len(keys) + 1)


def _format_metric(key: str) -> str:
    """Return the heading of a metric's column: ``test``, the name of a further test set, or a task's name."""
    prefix, _, metric = key.partition("/")
    return prefix if metric == "accuracy" else metric


def _format_values(values: np.ndarray, key: str, jobs: Sequence[Job]) -> str:
    """Return the mean of a metric's values (N,) of N runs in percent and, if N > 1, their standard deviation.

    The mean of ``test`` is over test images, of which folds may have different numbers.
    """
    weights = [job.test_images for job in jobs] if key == TEST_ACCURACY and has_folds(jobs) else None
    mean = f"{np.average(values, weights=weights):.1f} %"
    return f"{mean} +- {values.std(ddof=1):.1f}" if len(values) > 1 else mean


def _describe_method_gains(keys: Sequence[str], jobs: Sequence[Job]) -> list[str]:
    """Return lines on what the method of each row gained; only with several seeds and a control."""
    lines = []
    for members in group_jobs(keys, jobs).values():
        settings = format_settings(keys, members[0])
        gains = describe_gains([job.record for job in members], str(members[0].network["name"]))
        lines += [f"{settings}: {line}" if settings else line for line in gains]
    return lines


def _draw_measures(keys: Sequence[str], jobs: Sequence[Job], folder: Path) -> list[page.Picture]:
    """Return the picture of all measures over the first numeric key of the sweep; none if no key is numeric."""
    x_key = next((key for key in keys if are_numbers(job.settings.get(key, "") for job in jobs)), None)
    if x_key is None:
        return []
    other_keys = [key for key in keys if key != x_key]
    panels = []
    for measure in MEASURES:
        if x_key in label_efficiency.LABEL_KEYS and measure is TEST_MEASURE:
            continue  # it has a picture of its own
        lines: dict[str, dict[float, list[float]]] = {}
        for job in jobs:
            if (value := measure.read(job)) is not None:
                points = lines.setdefault(format_settings(other_keys, job) or "all", {})
                points.setdefault(to_number(job.settings[x_key]), []).append(value)
        if lines:
            panels.append(pictures.Panel(measure.heading, lines, measure.is_share))
    name = shorten_key(x_key)
    figure = pictures.draw_panels(name, panels)
    return [page.save_picture(folder / "over_x.png", figure, f"Over {name}", PANELS_CAPTION.format(name))]


def _draw_shifts(keys: Sequence[str], jobs: Sequence[Job], folder: Path) -> list[page.Picture]:
    """Return a picture for each measured shift: one line per row of the table, the mean over its runs."""
    shown = []
    for shift in SHIFTS:
        lines: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
        description = ""
        for members in group_jobs(keys, jobs).values():
            curves = [(job, curve) for job in members if (curve := read_curve(job.folder, shift)) is not None]
            if curves:
                first = curves[0][1]
                description = first.description
                accuracies = np.mean([curve.accuracy[main_stage_name(job.record)] for job, curve in curves], axis=0)
                lines[format_settings(keys, members[0]) or "all"] = (first.strengths, list(accuracies))
        if lines:
            caption = (
                f"Test accuracy (y, mean over runs) over the strength of the shift (x): test images {description}."
            )
            figure = pictures.draw_shift_curves(shift, lines)
            shown.append(page.save_picture(folder / f"shift_{shift}.png", figure, f"Shift: {shift}", caption))
    return shown


def _find_templates(jobs: Sequence[Job]) -> list[page.Picture]:
    """Return the picture of the first perceptron's weights, if a run's report has one."""
    files = [file for job in jobs if (file := job.folder.report / page.TEMPLATES_FILE).is_file()]
    return [page.Picture(file, "Templates", page.TEMPLATES_CAPTION) for file in files[:1]]
