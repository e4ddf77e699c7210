"""The table at the end of a run, from ``run.json`` alone. Needs no torch."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tutelage import __version__
from tutelage.runs import is_tested, last_fit
from tutelage.runs.folder import commit

if TYPE_CHECKING:
    from rich.table import Table

HEADER = ("stage", "network", "weights", "steps", "labels")
PSEUDO = ("pseudo", "right")
CHANGED, CHANGED_TOLD = "changed", "changed: the share of the pool labelled otherwise than in the round before"
VALIDATION, TEST, POOL_CHANGED = "val/accuracy", "test/accuracy", "pool/changed"
TASK, FURTHER = re.compile(r"test/(task)-(\d+)"), re.compile(r"test-(.+)/accuracy")
FORGETS = "forgets"
NO_VALUE = "-"
WIDEST = 1000  # characters
OLD_CONTROL = (  # of records of noisy students
    "Control: the last student's network, augmentation and noise on the labels alone, "
    "for as many steps as all other stages together."
)
OF_TASKS = (
    "task 1, task 2 ...: accuracy among the task's own classes, on its test images; forgets: points lost on "
    "the tasks before, each since it was learned, as a mean."
)


def header(record: Mapping[str, Any], wide: bool = True) -> tuple[str, ...]:
    """Return what heads the columns: where a run learned tasks, these stand in place of the whole test set.

    A wide table says which share of the pseudo-labels changed since the round before, where there was one.
    """
    measured = [TASK.sub(r"\1 \2", FURTHER.sub(r"\1", key.replace(TEST, "test"))) for key in _measured(record)]
    if _tasks(record):
        return (*HEADER, "val", *measured, FORGETS)
    changed = (CHANGED,) if wide and _changed(record) else ()
    return (*HEADER, *(PSEUDO if _labelled(record) else ()), *changed, "val", *measured)


def rows(record: Mapping[str, Any], wide: bool = True) -> list[tuple[str, ...]]:
    """Return one row a trained network: what it learned from, and how well it does."""
    table: list[tuple[str, ...]] = []
    waiting: Mapping[str, Any] = {}  # the labels that the next student learns from
    for entry in record["stages"]:
        result = entry["result"]
        if entry["kind"] == "label":
            waiting = result
            continue
        pseudo = (f"{waiting['pool/kept']:,.0f}" if waiting else NO_VALUE, _percent(waiting.get("pool/right")))
        table.append(
            (
                entry["name"],
                _network(entry),
                f"{entry['parameters']:,}",
                f"{entry['steps']:,}",
                f"{entry['labels']:,}",
                *(pseudo if _labelled(record) else ()),
                *((_percent(waiting.get(POOL_CHANGED)),) if wide and _changed(record) else ()),
                _percent(result.get(VALIDATION)),
                *(_percent(result.get(key)) for key in _measured(record)),
                *((_points(forgotten(record, entry)),) if _tasks(record) else ()),
            )
        )
        waiting = {}
    return table


def forgotten(record: Mapping[str, Any], entry: Mapping[str, Any]) -> float | None:
    """Return what a network has lost on the tasks before its last, each since it was learned, as a mean.

    A task's accuracy counts from the stage that ended with it as the last one learned: the latest of those that lead to
    the network.
    """
    fits = {other["name"]: other for other in record["stages"]}
    way, stage = [], fits.get(entry["name"])  # from the network back to the first
    while stage is not None:
        way.append(_of_tasks(stage["result"]))
        stage = fits.get(stage.get("after", ""))
    now = _of_tasks(entry["result"])
    lost = []
    for task in sorted(now)[:-1]:
        learned = next((then for then in way if max(then, default=0) == task), way[-1])  # of an older run: as it began
        lost.append(learned.get(task, now[task]) - now[task])
    return sum(lost) / len(lost) if lost else None


def _of_tasks(result: Mapping[str, float]) -> dict[int, float]:
    """Return the accuracy on each task that a network has learned, by the task's number."""
    return {int(found[2]): value for key, value in result.items() if (found := TASK.fullmatch(key))}


def _labelled(record: Mapping[str, Any]) -> bool:
    """Return whether a stage labelled the pool."""
    return any(entry["kind"] == "label" for entry in record["stages"])


def _changed(record: Mapping[str, Any]) -> bool:
    """Return whether it is known how many labels changed from one round to the next."""
    return any(POOL_CHANGED in entry["result"] for entry in record["stages"])


def _tasks(record: Mapping[str, Any]) -> bool:
    return any(_of_tasks(entry["result"]) for entry in record["stages"])


def _measured(record: Mapping[str, Any]) -> list[str]:
    """Return what was measured on test images and has a column: accuracy on each task, or on each test set."""
    keys = list(dict.fromkeys(key for entry in record["stages"] for key in entry["result"]))
    if _tasks(record):
        return sorted((key for key in keys if TASK.fullmatch(key)), key=lambda key: (len(key), key))
    return [TEST, *(key for key in keys if FURTHER.fullmatch(key))]


def notes(record: Mapping[str, Any], wide: bool = True) -> list[str]:
    """Return what belongs under the table."""
    fits = [entry for entry in record["stages"] if entry["kind"] == "fit"]
    kind, images = fits[0]["validation"], fits[0]["validation_images"]
    tested = record.get("data", {}).get("test")
    told = {
        "none": "No validation: all labels are trained on, the schedule is fixed, the final weights are kept.",
        "inside": f"Validation: {images} of {images + fits[0]['labels']} labels, held out",
        "outside": f"Validation: {images} images beside the label budget",
        "own": f"Validation: the dataset's own {images} images",
    }[kind]
    if images:
        told += "; the weights of the best epoch are kept."
    lines = []
    left_out = record.get("data", {}).get("left_out", [])
    if left_out:
        lines.append(f"Data: unreadable files left out: {len(left_out):,} (run.json names them).")
    labels = [entry for entry in record["stages"] if entry["kind"] == "label"]
    if labels:
        right = "; right: the share of them labelled as in truth" if "pool/right" in labels[0]["result"] else ""
        changed = f"; {CHANGED_TOLD}" if wide and _changed(record) else ""
        lines.append(f"pseudo: pool images kept with the teacher's label{right}{changed}.")
    if not is_tested(record):
        lines.append(f"{told} The test set is untouched; the same command with evaluate_test=true meets it.")
    else:
        lines.append(told if tested is None else f"{told} Test: {tested:,} images.")
    lines += [OF_TASKS] if _tasks(record) else []
    lines += dict.fromkeys(e.get("told") or OLD_CONTROL for e in fits if e["control"] or e.get("told"))
    made, now = (record["version"], record["git"]), (__version__, commit())
    if made != now:
        lines.append(f"Made by version {_code(*made)} of the code; this is {_code(*now)}.")
    return lines


def print_table(record: Mapping[str, Any]) -> None:
    """Print the table, wide where it fits the terminal, and its notes."""
    from rich.console import Console

    console = Console()
    table = _drawn(record, wide=True)
    wide = _width(table) <= console.width
    print_whole(table if wide else _drawn(record, wide=False))
    for line in notes(record, wide):
        console.print(line, style="dim", highlight=False)


def _drawn(record: Mapping[str, Any], wide: bool) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(header(record, wide)):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)  # noqa: PLR2004 - two texts
    for row in rows(record, wide):
        table.add_row(*row, style="bold" if row[0] == last_fit(record) else None)
    return table


def print_whole(table: "Table") -> None:
    """Print a table without cutting anything; where a terminal is narrower its lines wrap."""
    from rich.console import Console

    Console(width=max(_width(table), Console().width)).print(table)


def _width(table: "Table") -> int:
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    return Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum


def _code(version: str, git: str | None) -> str:
    return version if git is None else f"{version} ({git[:10]}{'+' if git.endswith('+') else ''})"


def _network(entry: Mapping[str, Any]) -> str:
    model = dict(entry["model"])
    name = str(model.pop("_target_")).rpartition(".")[2]
    width = model.get("width")
    return str(model.get("name", name)) if width is None else f"{name} x{width:g}"


def _percent(value: float | None) -> str:
    return NO_VALUE if value is None else f"{100 * value:.1f} %"


def _points(value: float | None) -> str:
    return NO_VALUE if value is None else f"{round(100 * value, 1) + 0.0:.1f}"  # no minus before a zero
