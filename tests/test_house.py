"""Imports go down the floors of the house, in no circle, and nobody reaches into another room's private names."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from helpers.paths import ROOT

SOURCE = ROOT / "src" / "tutelage"
FLOORS = {
    "errors": 1,
    "process_group": 1,
    "randomness": 1,
    "waiting": 1,
    "world": 1,
    "config": 2,
    "options": 2,
    "storage": 2,
    "augmentation": 3,
    "data": 4,
    "models": 5,
    "sweeps": 5,
    "strategies": 6,
    "runs": 7,
    "terminal": 8,
    "explain": 9,
    "inference": 9,
    "report": 9,
    "app": 10,
    "api": 11,
    "cli": 11,
    "testing": 11,
    "train": 11,
}
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = {
    ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES
}
TESTS = sorted((ROOT / "tests").rglob("*.py"))


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


def import_statements(tree: ast.AST, functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports that run: those in functions where asked for, never those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from import_statements(ast.Module(node.orelse, []), functions)
        elif functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from import_statements(node, functions)


def imported_modules(module: str, functions: bool) -> set[str]:
    """Return the modules of ours that a module imports, with the packages that Python imports on the way there."""
    targets = set()
    for node in import_statements(ast.parse(MODULES[module].read_text()), functions):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        else:
            assert not node.level, f"{module}: a relative import, which this test does not follow"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            targets |= {name if name in MODULES else node.module for name in names}
    parents = {parent for target in targets for parent in parents_of(target)} - parents_of(module) - {module}
    return (targets | parents) & set(MODULES)


def parents_of(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts))}


def assert_no_circle(imports: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' imports '.join(reversed(error.args[1]))}")


def test_no_circle_leads_through_the_wings_of_the_house():
    wings = {room(module): set() for module in MODULES if room(module)}
    for module in MODULES:
        if room(module):
            wings[room(module)] |= {room(other) for other in imported_modules(module, functions=True)}
    assert_no_circle({wing: imported - {wing, ""} for wing, imported in wings.items()})


def test_no_circle_leads_through_the_modules_that_an_import_loads():
    assert_no_circle({module: imported_modules(module, functions=False) for module in MODULES})


@pytest.mark.parametrize("file", TESTS, ids=lambda file: str(file.relative_to(ROOT / "tests")))
def test_tests_share_helpers_and_import_no_other_test(file):
    for node in import_statements(ast.parse(file.read_text()), functions=True):
        for name in [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]:
            assert not (name or "").startswith(("test_", "conftest")), (
                f"line {node.lineno}: {name}; move it to tests/helpers"
            )
