"""Measured curves of accuracy over a shift: stored in a run's folder, read and printed. Needs no torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tutelage.config import SHIFTS, Shift
from tutelage.runs import RunFolder
from tutelage.storage import write_json
from tutelage.terminal.table import print_whole


@dataclass(frozen=True)
class Curve:
    """Accuracy over the strength of a shift, for each network of a run."""

    shift: Shift
    told: str
    strengths: Sequence[float]
    accuracy: Mapping[str, Sequence[float]]
    images: int
    weights: Mapping[str, str]


def print_curve(found: Curve) -> None:
    """Print a curve as a table: strengths across, a row a network."""
    from rich.table import Table

    degrees = found.shift == "rotate"
    print(f"{found.shift}: {found.images:,} test images {found.told}")
    shown = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    shown.add_column("network", no_wrap=True)
    for strength in found.strengths:
        shown.add_column(f"{strength:g}" if degrees else f"{strength:.0%}", justify="right", no_wrap=True)
    for name, accuracies in found.accuracy.items():
        shown.add_row(name, *(f"{100 * value:.1f}" for value in accuracies))
    print_whole(shown)


def stored_curves(folder: RunFolder) -> list[Curve]:
    """Return the curves that were measured of a run."""
    return [found for shift in SHIFTS if (found := read_curve(folder, shift)) is not None]


def write_curve(folder: RunFolder, found: Curve) -> None:
    """Store a curve in its run's folder, whole or absent."""
    write_json(_file(folder, found.shift), asdict(found))


def read_curve(folder: RunFolder, shift: Shift) -> Curve | None:
    """Return a stored curve; None where there is none."""
    try:
        return Curve(**json.loads(_file(folder, shift).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _file(folder: RunFolder, shift: Shift) -> Path:
    return folder.path / "shifts" / f"{shift}.json"
