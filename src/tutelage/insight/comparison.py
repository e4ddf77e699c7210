"""What a sweep gave: one table and one page over all its runs."""

import html
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.config import SHIFTS
from tutelage.insight import page, pictures
from tutelage.insight.curves import read_curve
from tutelage.insight.gains import TEST, gains, measures
from tutelage.insight.table import print_whole
from tutelage.runs import FINISHED, RunFolder, last_fit, read_record
from tutelage.storage import digest

SEED = "seed"
KILO = 1000.0
HASH_LENGTH = 6
TOLD = (
    "Means over seeds, +- their standard deviation. MB kept: what is stored to answer. s to learn: all stages of a "
    "run, its control not counted. ms an answer: the mean over the test images, reading them included."
)


@dataclass(frozen=True)
class Job:
    """A finished run of a sweep: what was chosen for it, and what it gave."""

    chosen: Mapping[str, str]
    folder: RunFolder
    record: Mapping[str, Any]

    @property
    def network(self) -> Mapping[str, Any]:
        """The ledger's entry of the network that the run is after."""
        name = last_fit(self.record)
        return next(entry for entry in self.record["stages"] if entry["name"] == name)


@dataclass(frozen=True)
class Measure:
    """Something to compare runs by; shares are drawn linearly, the rest on a logarithmic scale."""

    heading: str
    of: Callable[[Job], float | None]
    told: Callable[[float], str]
    share: bool = False


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _megabytes(job: Job) -> float | None:
    stored = job.network.get("bytes")
    return None if stored is None else stored / KILO**2


def _seconds(job: Job) -> float:
    return float(sum(entry["seconds"] for entry in job.record["stages"] if not entry.get("control")))


def _milliseconds_an_answer(job: Job) -> float | None:
    seconds, images = job.network.get("answer_seconds"), job.record.get("data", {}).get("test")
    return KILO * seconds / images if seconds and images else None


MEASURES = (
    Measure("val", lambda job: job.record["result"].get("val/accuracy"), _percent, share=True),
    Measure("test", lambda job: job.record["result"].get(TEST), _percent, share=True),
    Measure("MB kept", _megabytes, "{:.3g}".format),
    Measure("s to learn", _seconds, "{:.3g}".format),
    Measure("ms an answer", _milliseconds_an_answer, "{:.3g}".format),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a job of a sweep: its overrides, its folder, and why it has no result, if so."""

    overrides: Sequence[str]
    path: Path | None
    reason: str = ""


def compare(outcomes: Sequence[Outcome], command: str) -> None:
    """Print one table over the runs of a sweep, and write a page with its pictures.

    Runs that differ in their seed alone make one row: the mean, and the standard deviation where there are several.

    Args:
        outcomes: what became of each job.
        command: what was typed; another command has another page.
    """
    jobs, keys, missing = _jobs(outcomes)
    if jobs:
        head, rows = _rows(keys, jobs)
        _print(head, rows, len(keys))
    for line in missing:
        print(f"no result: {line}")
    if not jobs:
        return
    networks = _networks(keys, jobs)
    if networks is not None:
        print()
        _print(*networks, len(keys) + 1)
    bought = _bought(keys, jobs)
    for line in bought:
        print(line)
    folder = jobs[0].folder.path.parent / f"sweep-{digest(command)[:HASH_LENGTH]}"
    shown = [*_over_x(keys, jobs, folder), *_shifts(keys, jobs, folder), *_templates(jobs)]
    links = "".join(
        f'<li><a href="{html.escape(os.path.relpath(job.folder.report / "index.html", folder))}">'
        f"{html.escape(_label([*keys, SEED], job) or job.folder.path.name)}</a></li>"
        for job in jobs
    )
    title = jobs[0].folder.path.parent.name
    body = (
        f"<p class=note><code>{html.escape(command)}</code></p>{page.table(head, rows)}"
        f"{page.notes([TOLD, *(f'No result: {line}' for line in missing)])}"
        f"{page.table(*networks) if networks else ''}{page.notes(bought)}{page.figures(shown)}"
        f"<h2>The runs</h2><ul>{links}</ul>"
    )
    page.write(folder / "index.html", title, title, body)
    print(f"report: {folder / 'index.html'}")


def _jobs(outcomes: Sequence[Outcome]) -> tuple[list[Job], list[str], list[str]]:
    """Return the finished runs, the keys, but for the seed, in which the jobs differ, and a line on each other job."""
    chosen = [dict(one.lstrip("+").split("=", 1) for one in run.overrides if "=" in one) for run in outcomes]
    keys = dict.fromkeys(key for run in chosen for key in run)
    varied = [key for key in keys if len({run.get(key) for run in chosen}) > 1]
    jobs, missing = [], []
    for run, outcome in zip(chosen, outcomes, strict=True):
        own = {key: run[key] for key in varied if key in run}
        record = read_record(RunFolder(outcome.path)) if outcome.path is not None else None
        if outcome.path is not None and record is not None and record["status"] == FINISHED:
            jobs.append(Job(own, RunFolder(outcome.path), record))
        else:
            missing.append(f"{' '.join(f'{key}={value}' for key, value in own.items())}: {outcome.reason}")
    return jobs, [key for key in varied if key != SEED], missing


def _grouped(keys: Sequence[str], jobs: Sequence[Job]) -> dict[tuple[str, ...], list[Job]]:
    """Return the runs by their values at ``keys``."""
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.chosen.get(key, "") for key in keys), []).append(job)
    return groups


def _values(jobs: Sequence[Job], measure: Measure) -> list[float]:
    return [value for job in jobs if (value := measure.of(job)) is not None]


def _rows(keys: Sequence[str], jobs: Sequence[Job]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table; measures that no run has are left out."""
    groups = _grouped(keys, jobs)
    measures = [measure for measure in MEASURES if _values(jobs, measure)]
    head = [*(key.rpartition(".")[2] for key in keys), "runs", *(measure.heading for measure in measures)]
    rows = []
    for chosen, members in groups.items():
        row = [*chosen, str(len(members))]
        for measure in measures:
            values = _values(members, measure)
            told = measure.told(float(np.mean(values))) if values else "-"
            row.append(f"{told} +- {100 * np.std(values, ddof=1):.1f}" if measure.share and len(values) > 1 else told)
        rows.append(row)
    return head, rows


def _networks(keys: Sequence[str], jobs: Sequence[Job]) -> tuple[list[str], list[list[str]]] | None:
    """Return the head and the rows of a table of every trained network; None where each run trained one."""
    rows: list[tuple[list[str], dict[str, np.ndarray]]] = []
    for chosen, members in _grouped(keys, jobs).items():
        for name, found in measures([job.record for job in members]).items():
            rows.append(([*chosen, name, str(len(members))], found))
    if len(rows) == len(_grouped(keys, jobs)):
        return None
    shown = list(dict.fromkeys(key for _, found in rows for key in found))
    head = [*(key.rpartition(".")[2] for key in keys), "network", "runs", *(_heading(key) for key in shown)]
    return head, [[*named, *(_spread(found.get(key)) for key in shown)] for named, found in rows]


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
    for members in _grouped(keys, jobs).values():
        named = _label(keys, members[0])
        method = str(members[0].network["name"])
        bought = gains([job.record for job in members], method)
        lines += [f"{named}: {line}" if named else line for line in bought]
    return lines


def _print(head: Sequence[str], rows: Sequence[Sequence[str]], names: int) -> None:
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(head):
        shown.add_column(name, justify="left" if number < names else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    print_whole(shown)


def _label(keys: Sequence[str], job: Job) -> str:
    return " ".join(
        job.chosen[key] if "." not in key and key != SEED else f"{key.rpartition('.')[2]} {job.chosen[key]}"
        for key in keys
        if key in job.chosen
    )


def _over_x(keys: Sequence[str], jobs: Sequence[Job], folder: Path) -> list[page.Picture]:
    """Return the picture of all measures over the first number that the sweep varied; none where there is none."""
    x = next((key for key in keys if all(_is_number(job.chosen.get(key, "")) for job in jobs)), None)
    if x is None:
        return []
    others = [key for key in keys if key != x]
    shown = []
    for measure in MEASURES:
        lines: dict[str, dict[float, list[float]]] = {}
        for job in jobs:
            if (value := measure.of(job)) is not None:
                points = lines.setdefault(_label(others, job) or "all", {})
                points.setdefault(float(job.chosen[x]), []).append(value)
        if lines:
            shown.append(pictures.Panel(measure.heading, lines, measure.share))
    told = "Lines join the means over seeds; faint dots are single runs. Scales that are no share are logarithmic."
    name = x.rpartition(".")[2]
    return [page.picture(folder / "over_x.png", pictures.panels(name, shown), f"Over {name}", told)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shifts(keys: Sequence[str], jobs: Sequence[Job], folder: Path) -> list[page.Picture]:
    """Return a picture for each shift that was measured: one line a row of the table, the mean over its runs."""
    shown = []
    for shift in SHIFTS:
        lines: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
        told = ""
        for members in _grouped(keys, jobs).values():
            found = [(job, one) for job in members if (one := read_curve(job.folder, shift)) is not None]
            if found:
                told = f"The test images, {found[0][1].told}."
                accuracies = np.mean([one.accuracy[last_fit(job.record)] for job, one in found], axis=0)
                lines[_label(keys, members[0]) or "all"] = (found[0][1].strengths, list(accuracies))
        if lines:
            figure = pictures.shift_curves(shift, lines)
            shown.append(page.picture(folder / f"shift_{shift}.png", figure, f"Shift: {shift}", told))
    return shown


def _templates(jobs: Sequence[Job]) -> list[page.Picture]:
    """Return the first perceptron's templates, where a run drew them."""
    drawn = [file for job in jobs if (file := job.folder.report / page.TEMPLATES).is_file()]
    return [page.Picture(file, "Templates", page.TEMPLATES_TOLD) for file in drawn[:1]]
