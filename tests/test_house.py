"""Imports go down the floors of the house only, and nobody reaches into another room's private names."""

import ast
from pathlib import Path

import pytest

from helpers.paths import ROOT

SOURCE = ROOT / "src" / "tutelage"
FLOORS = {
    "errors": 1,
    "process_group": 1,
    "randomness": 1,
    "config": 2,
    "storage": 2,
    "augmentation": 3,
    "data": 4,
    "models": 5,
    "sweeps": 5,
    "strategies": 6,
    "runs": 7,
    "terminal": 8,
    "explain": 9,
    "report": 9,
    "app": 10,
    "cli": 11,
    "train": 11,
}
FILES = sorted(SOURCE.rglob("*.py"))


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(file: Path) -> list[tuple[str, list[str]]]:
    return [
        (node.module, [alias.name for alias in node.names])
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tutelage"
    ]


def test_every_room_has_a_floor():
    assert {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} == {
        *FLOORS,
        "__init__",
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_go_down(file):
    relative = file.relative_to(SOURCE)
    here = relative.parts[0].removesuffix(".py")
    for module, names in imports(file):
        there = room(module)
        if there and here != "__init__":
            assert FLOORS[there] <= FLOORS[here], f"{relative} imports {module} from a floor above"
        if there != here:
            assert not [name for name in names if name.startswith("_") and name != "__version__"], (
                f"{relative}: {module}"
            )
