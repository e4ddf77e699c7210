"""The table at the end of a run, from ``run.json`` alone. Needs no torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tutelage import __version__
from tutelage.runs import last_fit
from tutelage.runs.folder import commit

if TYPE_CHECKING:
    from rich.table import Table

HEADER = ("stage", "network", "weights", "steps", "labels", "pseudo", "right", "val", "test")
NO_VALUE = "-"
WIDEST = 1000  # characters


def rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return one row a trained network: what it learned from, and how well it does."""
    labelled = {entry["name"]: entry for entry in record["stages"] if entry["kind"] == "label"}
    table: list[tuple[str, ...]] = []
    waiting: Mapping[str, Any] | None = None  # the labels that the next student learns from
    for entry in record["stages"]:
        if entry["name"] in labelled:
            waiting = entry["result"]
            continue
        result = entry["result"]
        pool = waiting or {}
        kept = f"{pool['pool/kept']:,.0f}" if pool else NO_VALUE
        table.append(
            (
                entry["name"],
                _network(entry),
                f"{entry['parameters']:,}",
                f"{entry['steps']:,}",
                f"{entry['labels']:,}",
                kept,
                _percent(pool.get("pool/right")),
                _percent(result.get("val/accuracy")),
                _percent(result.get("test/accuracy")),
            )
        )
        waiting = None
    return table


def notes(record: Mapping[str, Any]) -> list[str]:
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
        lines.append(f"pseudo: pool images kept with the teacher's label{right}.")
    lines.append(told if tested is None else f"{told} Test: {tested:,} images.")
    if any(entry["control"] for entry in fits):
        lines.append(
            "Control: the last student's network, augmentation and noise on the labels alone, "
            "for as many steps as all other stages together."
        )
    made, now = (record["version"], record["git"]), (__version__, commit())
    if made != now:
        lines.append(f"Made by version {_code(*made)} of the code; this is {_code(*now)}.")
    return lines


def print_table(record: Mapping[str, Any]) -> None:
    """Print the table and its notes."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(HEADER):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)  # noqa: PLR2004 - two texts
    for row in rows(record):
        table.add_row(*row, style="bold" if row[0] == last_fit(record) else None)
    console = Console()
    print_whole(table)
    for line in notes(record):
        console.print(line, style="dim", highlight=False)


def print_whole(table: "Table") -> None:
    """Print a table without cutting anything; where a terminal is narrower its lines wrap."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum
    Console(width=max(needed, console.width)).print(table)


def _code(version: str, git: str | None) -> str:
    return version if git is None else f"{version} ({git[:10]}{'+' if git.endswith('+') else ''})"


def _network(entry: Mapping[str, Any]) -> str:
    model = dict(entry["model"])
    name = str(model.pop("_target_")).rpartition(".")[2]
    width = model.get("width")
    return str(model.get("name", name)) if width is None else f"{name} x{width:g}"


def _percent(value: float | None) -> str:
    return NO_VALUE if value is None else f"{100 * value:.1f} %"
