"""What a sweep gave: one table and one page over all its runs."""

import html
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tutelage.config import SHIFTS, SweeperConfig
from tutelage.report import label_efficiency, page, pictures, searches
from tutelage.report.curves import read_curve
from tutelage.report.gains import gains, measures
from tutelage.report.jobs import (
    LOSS,
    MEASURES,
    MEASURES_TOLD,
    SEED,
    TESTED,
    Job,
    crossed,
    finished_jobs,
    grouped,
    is_number,
    named,
    short,
)
from tutelage.report.pairs import against_plain
from tutelage.runs import last_fit
from tutelage.storage import digest
from tutelage.sweeps.folder import Outcome
from tutelage.terminal.table import print_whole

HASH_LENGTH = 6
PARTIAL_TOLD = "{} runs with shortened schedules decided which trials went on to the whole one; they are not listed."


def compare(outcomes: Sequence[Outcome], command: str, search: SweeperConfig | None = None) -> None:
    """Print one table over the runs of a sweep, and write a page with its pictures.

    Runs that differ in their seed alone make one row: the mean, and the standard deviation where there are several.

    Args:
        outcomes: what became of each job.
        command: what was typed; another command has another page.
        search: how it looked for the best without seeing the test set; None where it did not.
    """
    whole = [outcome for outcome in outcomes if not outcome.partial]
    partial = [outcome for outcome in outcomes if outcome.partial]
    jobs, keys, missing = finished_jobs(whole, tested=search is None)
    missing += finished_jobs(partial)[2]
    objective = searches.objective_of(search)
    if jobs:
        head, rows = _rows(keys, jobs, objective)
        _print(head, rows, len(keys))
    for line in missing:
        print(line)
    if not jobs:
        return
    noted = _noted(keys, jobs, command, search) + ([PARTIAL_TOLD.format(len(partial))] if partial else [])
    networks, lines = _networks(keys, jobs), label_efficiency.lines(keys, jobs)
    if networks is not None and not lines:
        print()
        _print(*networks, len(keys) + 1)
    if lines:
        print()
        _print(*label_efficiency.table(lines), 1)
    bought = [*against_plain(keys, jobs), *_bought(keys, jobs)]
    for line in [*bought, *noted]:
        print(line)
    folder = jobs[0].folder.path.parent / f"sweep-{digest(command)[:HASH_LENGTH]}"
    asked = crossed(whole)
    shown = [
        *searches.pictures_of(keys, jobs, asked, objective, folder),
        *(_over_x(keys, jobs, folder) if asked else []),
        *(_shifts(keys, jobs, folder) if search is None else []),
        *_templates(jobs),
    ]
    title = jobs[0].folder.path.parent.name
    body = (
        f"<p class=note><code>{html.escape(command)}</code></p>{_labels_worth(lines, bought, folder)}"
        f"{page.table(head, rows)}{page.notes(noted)}"
        f"{page.notes([MEASURES_TOLD, *missing])}"
        f"{page.table(*networks) if networks else ''}{'' if lines else page.notes(bought)}{page.figures(shown)}"
        f"<h2>The runs</h2><ul>{_links(keys, jobs, folder)}</ul>"
    )
    page.write(folder / "index.html", title, title, body)
    print(f"report: {folder / 'index.html'}")


def _noted(keys: Sequence[str], jobs: Sequence[Job], command: str, search: SweeperConfig | None) -> list[str]:
    """Return what a search found, and the command that trains it in full; nothing of a sweep that is none."""
    if search is None:
        return []
    best = searches.ranked(keys, jobs, search.objective)[0]
    value, count = searches.mean(best, search.objective), len(best)
    if math.isnan(value):
        return [f"no run has {search.objective}, so that none is the best"]
    setting, told = named(keys, best[0]) or "the only setting", searches.told(value, search.objective)
    return [
        f"best by {search.objective}: {setting} ({told}, {f'a mean of {count} runs' if count > 1 else '1 run'})",
        f"in full, and then on the test set: {searches.command_for(best[0], command, search)}",
    ]


def _labels_worth(lines: Sequence[label_efficiency.Line], bought: Sequence[str], folder: Path) -> str:
    """Return the first part of the page of a sweep over label budgets: one picture, its table, what was bought."""
    if not lines:
        return ""
    drawn = {line.name: [(point.labels, point.interval) for point in line.points] for line in lines}
    figure = pictures.label_curves(drawn, plain=[line.name for line in lines if line.plain])
    shown = page.picture(folder / "labels.png", figure, "What a label is worth", label_efficiency.TOLD)
    return (
        f"{page.figures([shown])}{page.table(*label_efficiency.table(lines))}{page.notes(bought)}<h2>All measures</h2>"
    )


def _links(keys: Sequence[str], jobs: Sequence[Job], folder: Path) -> str:
    return "".join(
        f'<li><a href="{html.escape(os.path.relpath(_page_of(job), folder))}">'
        f"{html.escape(named([*keys, SEED], job) or job.folder.path.name)}</a></li>"
        for job in jobs
    )


def _page_of(job: Job) -> Path:
    """Return a run's report; where it has none, as before it meets the test set, its folder."""
    file = job.folder.report / "index.html"
    return file if file.exists() else job.folder.path


def _rows(keys: Sequence[str], jobs: Sequence[Job], objective: str) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table, the best on validation first; measures that none has are left out."""
    measures = [compute_metrics for compute_metrics in MEASURES if compute_metrics.values(jobs)]
    if objective == "val/loss":
        measures.insert(0, LOSS)
    head = [*(short(key) for key in keys), "runs", *(compute_metrics.heading for compute_metrics in measures)]
    rows = []
    for members in searches.ranked(keys, jobs, objective):
        row = [*(members[0].chosen.get(key, "") for key in keys), str(len(members))]
        for compute_metrics in measures:
            values = compute_metrics.values(members)
            told = compute_metrics.told(float(np.mean(values))) if values else "-"
            row.append(
                f"{told} +- {100 * np.std(values, ddof=1):.1f}" if compute_metrics.share and len(values) > 1 else told
            )
        rows.append(row)
    return head, rows


def _networks(keys: Sequence[str], jobs: Sequence[Job]) -> tuple[list[str], list[list[str]]] | None:
    """Return the head and the rows of a table of every trained network; None where each run trained one."""
    rows: list[tuple[list[str], dict[str, np.ndarray]]] = []
    for chosen, members in grouped(keys, jobs).items():
        for name, found in measures([job.record for job in members]).items():
            rows.append(([*chosen, name, str(len(members))], found))
    if len(rows) == len(grouped(keys, jobs)):
        return None
    shown = list(dict.fromkeys(key for _, found in rows for key in found))
    if not shown:
        return None
    head = [*(short(key) for key in keys), "network", "runs", *(_heading(key) for key in shown)]
    return head, [[*row, *(_spread(found.get(key)) for key in shown)] for row, found in rows]


def _heading(key: str) -> str:
    """Return what heads a column: test, the name of a further test set, or a task's."""
    part, _, what = key.partition("/")
    return part if what == "accuracy" else what


def _spread(values: np.ndarray | None) -> str:
    if values is None:
        return "-"
    told = f"{values.mean():.1f} %"
    return f"{told} +- {values.std(ddof=1):.1f}" if len(values) > 1 else told


def _bought(keys: Sequence[str], jobs: Sequence[Job]) -> list[str]:
    """Return a line on what the method of each row bought, where there are several seeds and a control."""
    lines = []
    for members in grouped(keys, jobs).values():
        row = named(keys, members[0])
        method = str(members[0].network["name"])
        bought = gains([job.record for job in members], method)
        lines += [f"{row}: {line}" if row else line for line in bought]
    return lines


def _print(head: Sequence[str], rows: Sequence[Sequence[str]], names: int) -> None:
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(head):
        shown.add_column(name, justify="left" if number < names else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    print_whole(shown)


def _over_x(keys: Sequence[str], jobs: Sequence[Job], folder: Path) -> list[page.Picture]:
    """Return the picture of all measures over the first number that the sweep varied; none where there is none."""
    x = next((key for key in keys if all(is_number(job.chosen.get(key, "")) for job in jobs)), None)
    if x is None:
        return []
    others = [key for key in keys if key != x]
    shown = []
    for compute_metrics in MEASURES:
        if x in label_efficiency.LABEL_KEYS and compute_metrics is TESTED:
            continue  # it has a picture of its own
        lines: dict[str, dict[float, list[float]]] = {}
        for job in jobs:
            if (value := compute_metrics.of(job)) is not None:
                points = lines.setdefault(named(others, job) or "all", {})
                points.setdefault(float(job.chosen[x]), []).append(value)
        if lines:
            shown.append(pictures.Panel(compute_metrics.heading, lines, compute_metrics.share))
    told = "Lines join the means over seeds; faint dots are single runs. Scales that are no share are logarithmic."
    name = short(x)
    return [page.picture(folder / "over_x.png", pictures.panels(name, shown), f"Over {name}", told)]


def _shifts(keys: Sequence[str], jobs: Sequence[Job], folder: Path) -> list[page.Picture]:
    """Return a picture for each shift that was measured: one line a row of the table, the mean over its runs."""
    shown = []
    for shift in SHIFTS:
        lines: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
        told = ""
        for members in grouped(keys, jobs).values():
            found = [(job, one) for job in members if (one := read_curve(job.folder, shift)) is not None]
            if found:
                told = f"The test images, {found[0][1].told}."
                accuracies = np.mean([one.accuracy[last_fit(job.record)] for job, one in found], axis=0)
                lines[named(keys, members[0]) or "all"] = (found[0][1].strengths, list(accuracies))
        if lines:
            figure = pictures.shift_curves(shift, lines)
            shown.append(page.picture(folder / f"shift_{shift}.png", figure, f"Shift: {shift}", told))
    return shown


def _templates(jobs: Sequence[Job]) -> list[page.Picture]:
    """Return the first perceptron's templates, where a run drew them."""
    drawn = [file for job in jobs if (file := job.folder.report / page.TEMPLATES).is_file()]
    return [page.Picture(file, "Templates", page.TEMPLATES_TOLD) for file in drawn[:1]]
