"""Curves of test accuracy over the strength of a shift: stored in a run's folder, read and printed. Needs no torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tutelage.config import SHIFTS, Shift
from tutelage.report.templating import Chart, Line
from tutelage.runs import RunFolder
from tutelage.storage import write_json
from tutelage.terminal.table import print_uncut

STRENGTH_NAMES: Mapping[Shift, str] = {
    "brightness": "white added, %",
    "crop": "cut away of each side, %",
    "rotate": "rotation, degrees",
    "translate": "shift, % of the side",
}
PERCENT = 100


@dataclass(frozen=True)
class Curve:
    """Test accuracy over the strength of a shift, for each network of a run.

    Attributes:
        shift: the shift's name.
        description: what happens to the test images, as words that follow "test images".
        strengths: the strengths that were measured.
        accuracy: for each network, its accuracy at each strength, between 0 and 1.
        images: the number of test images.
        weights: the SHA-256 of each network's weights.
    """

    shift: Shift
    description: str
    strengths: Sequence[float]
    accuracy: Mapping[str, Sequence[float]]
    images: int
    weights: Mapping[str, str]


def chart_shift(
    shift: Shift, description: str, strengths: Sequence[float], accuracy: Mapping[str, Sequence[float]]
) -> Chart:
    """Return the chart of a shift: a line for each name.

    Args:
        shift: its name.
        description: words that follow "test images".
        strengths: the strengths that were measured.
        accuracy: for each line's name, the accuracy at each strength, between 0 and 1.
    """
    caption = f"Test accuracy over the strength of the shift: test images {description}. At 0 they are unchanged."
    xs = [strength if shift == "rotate" else PERCENT * strength for strength in strengths]
    lines = [Line(name, xs, values) for name, values in accuracy.items()]
    return Chart(f"Shift: {shift}", caption, STRENGTH_NAMES[shift], lines, is_share=True)


def print_curve(curve: Curve) -> None:
    """Print a curve as a table: one column per strength, one row per network."""
    from rich.table import Table

    in_degrees = curve.shift == "rotate"
    print(f"{curve.shift}: {curve.images:,} test images {curve.description}")
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("network", no_wrap=True)
    for strength in curve.strengths:
        table.add_column(f"{strength:g}" if in_degrees else f"{strength:.0%}", justify="right", no_wrap=True)
    for name, accuracies in curve.accuracy.items():
        table.add_row(name, *(f"{100 * value:.1f}" for value in accuracies))
    print_uncut(table)


def read_curves(folder: RunFolder) -> list[Curve]:
    """Return all curves that are stored in a run's folder."""
    return [curve for shift in SHIFTS if (curve := read_curve(folder, shift)) is not None]


def write_curve(folder: RunFolder, curve: Curve) -> None:
    """Store a curve in its run's folder; the file is written whole or not at all."""
    write_json(_curve_file(folder, curve.shift), asdict(curve))


def read_curve(folder: RunFolder, shift: Shift) -> Curve | None:
    """Return the stored curve of a shift; None if there is none or it cannot be read."""
    try:
        content = json.loads(_curve_file(folder, shift).read_text())
        return Curve(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _curve_file(folder: RunFolder, shift: Shift) -> Path:
    return folder.path / "shifts" / f"{shift}.json"
