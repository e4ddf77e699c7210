"""The table of a list of runs: on a terminal as many columns as fit, elsewhere always the same ones."""

import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from tutelage.runs.summary import RunSummary
from tutelage.storage import format_size
from tutelage.terminal.intervals import NO_VALUE, Interval, format_percent, wilson_interval

HEAD = ("age", "status", "labels", "strategy", "network", "result", "interval", "size", "run")
LEFT = ("status", "strategy", "network", "run")  # columns that are aligned left
DROPPED_FIRST = (
    "network",
    "strategy",
    "size",
    "labels",
    "interval",
)  # where there is no room
GAP, INDENT = "  ", "    "
VARIOUS = "various"  # where runs of an experiment differ
MOST_ROWS, MOST_OF_EXPERIMENT = 40, 8  # on a terminal; beyond that, an experiment of so many runs becomes one row
UNITS = ((365 * 86400, "y"), (86400, "d"), (3600, "h"), (60, "min"))  # of ages, from the longest

Row = tuple[str, ...]


def format_rows(runs: Sequence[RunSummary]) -> list[Row]:
    """Return the cells of each run, in the order of ``HEAD``."""
    now = time.time()
    return [(*_format_cells(run, now), escape_path(run.path)) for run in runs]


def _format_cells(run: RunSummary, now: float) -> Row:
    """Return the cells of a run but that of its folder."""
    accuracy, name = find_accuracy(run), "" if run.test_accuracy is not None else "val "
    ends = find_interval(run)
    return (
        format_age(run.started, now),
        run.status,
        NO_VALUE if run.labels is None else f"{run.labels:,}",
        run.strategy or NO_VALUE,
        run.network or NO_VALUE,
        NO_VALUE if accuracy is None else f"{name}{format_percent(accuracy)}",
        NO_VALUE if ends is None else f"{100 * ends.low:.1f} to {100 * ends.high:.1f}",
        format_size(run.size),
    )


def find_accuracy(run: RunSummary) -> float | None:
    """Return a run's result: the test accuracy; of a run that is not tested that on validation."""
    return run.validation_accuracy if run.test_accuracy is None else run.test_accuracy


def find_interval(run: RunSummary) -> Interval | None:
    """Return Wilson's interval of a run's result over its images; None where their number is not known."""
    accuracy = find_accuracy(run)
    images = run.validation_images if run.test_accuracy is None else run.test_images
    return wilson_interval(accuracy * images, images) if accuracy is not None and images else None


def format_age(started: str, now: float) -> str:
    """Return how long ago a run was started, in the largest unit: "3 h"; ``started`` as in a summary."""
    if not started:
        return NO_VALUE
    seconds = max(0.0, now - datetime.fromisoformat(started).timestamp())
    return next((f"{seconds // length:.0f} {name}" for length, name in UNITS if seconds >= length), "now")


def escape_path(path: Path) -> str:
    """Return a path as text that leaves the terminal as it is: what cannot be printed is escaped."""
    text = str(path)
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def layout_rows(rows: Sequence[Row], width: int | None = None, head: Row = HEAD) -> list[str]:
    """Return rows as lines, below their heading.

    Args:
        rows: the cells of each; the last one is never cut.
        width: of the terminal: the columns of ``DROPPED_FIRST`` go until the rest fits. Where that is too little, each
            folder has a line of its own below the other cells. None for all columns, whatever their width.
        head: the headings.
    """
    widths = [max(map(len, cells)) for cells in zip(head, *rows, strict=True)]
    shown, last = list(range(len(head))), len(head) - 1
    if width is not None:
        layouts = [
            [number for number in shown if head[number] not in DROPPED_FIRST[:dropped]]
            for dropped in range(len(DROPPED_FIRST) + 1)
        ]
        fitting = [columns for columns in layouts if _total(widths, columns) <= width]
        if not fitting:
            without_folder = [columns[:-1] for columns in layouts]
            above = next((each for each in without_folder if _total(widths, each) <= width), without_folder[-1])
            lines = [(_align(head, row, widths, above), INDENT + row[last]) for row in rows]
            return [_align(head, head, widths, above), *(line for pair in lines for line in pair)]
        shown = fitting[0]
    return [_align(head, row, widths, shown) for row in (head, *rows)]


def _total(widths: Sequence[int], columns: Sequence[int]) -> int:
    return sum(widths[number] for number in columns) + len(GAP) * (len(columns) - 1)


def _align(head: Row, row: Row, widths: Sequence[int], columns: Sequence[int]) -> str:
    cells = [
        row[number].ljust(widths[number]) if head[number] in LEFT else row[number].rjust(widths[number])
        for number in columns
    ]
    return GAP.join(cells).rstrip()


def fold_experiments(runs: Sequence[RunSummary]) -> list[Row]:
    """Return a row for each run; where there are many, one for each experiment of many runs, with the best result."""
    experiments: dict[Path, list[RunSummary]] = {}
    for run in runs:
        experiments.setdefault(run.path.parent, []).append(run)
    if len(runs) <= MOST_ROWS or len(experiments) == 1:
        return format_rows(runs)
    rows, now = [], time.time()
    folded = {folder: group for folder, group in experiments.items() if len(group) > MOST_OF_EXPERIMENT}
    for run in runs:
        group = folded.get(run.path.parent)
        if group is None:
            rows.append((*_format_cells(run, now), escape_path(run.path)))
        elif run is group[-1]:  # where the newest of them would stand
            rows.append(_fold(run.path.parent, group, now))
    return rows


def _fold(folder: Path, runs: Sequence[RunSummary], now: float) -> Row:
    """Return the row of an experiment: what its runs have in common, and the best result."""
    best = max(runs, key=lambda run: (run.test_accuracy is not None, find_accuracy(run) or 0.0))
    columns = zip(*(_format_cells(run, now) for run in runs), strict=True)
    common = [cells[0] if len(set(cells)) == 1 else VARIOUS for cells in columns]
    cells = dict(zip(HEAD, common, strict=False))  # HEAD has the folder, too
    of_best = dict(zip(HEAD, _format_cells(best, now), strict=False))
    cells |= {name: of_best[name] for name in ("result", "interval")}
    cells |= {"age": format_age(runs[-1].started, now), "size": format_size(sum(run.size for run in runs))}
    counts = Counter(run.status for run in runs).most_common()
    states = ", ".join(f"{count:,} {status}" for status, count in counts)
    return (*cells.values(), f"{escape_path(folder)}  {len(runs):,} runs: {states}; the best result")
