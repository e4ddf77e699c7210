"""Runs in forks of the test's process, and the files of their folders."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from helpers import fork_server
from helpers.forks import call_in_fork
from helpers.overrides import QUIET


def run(outputs: Path, *overrides: str, before: Callable[[], None] = lambda: None) -> int:
    """Run a config in a fork, quietly and with one thread, and return its exit code; ``before`` may set traps."""
    fork_server.preload()
    from tutelage.app.job import run_job
    from tutelage.config.compose import compose

    def work() -> int:
        before()
        return run_job(compose([*QUIET, f"paths.outputs={outputs}", *overrides]))

    return call_in_fork(work)


def only_run(outputs: Path) -> Path:
    """Return the folder of the one run below ``outputs``."""
    (record,) = outputs.glob("*/*/run.json")
    return record.parent


def outcome(outputs: Path) -> dict[str, Any]:
    """Return the parts of a run that must not depend on stops and resumes: weights, results, tables."""
    folder = only_run(outputs)
    record = json.loads((folder / "run.json").read_text())
    compared = {"name", "result", "weights_sha256", "teacher_sha256", "steps"}
    stages = [{key: value for key, value in entry.items() if key in compared} for entry in record["stages"]]
    return {"status": record["status"], "result": record["result"], "stages": stages, "tables": tables(folder)}


def tables(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Read every metrics.csv of a run, without its time column."""
    tables_by_name = {}
    for file in sorted(folder.rglob("metrics.csv")):
        with file.open() as lines:
            rows: Sequence[dict[str, str]] = list(csv.DictReader(lines))
        tables_by_name[str(file.relative_to(folder))] = [
            {k: v for k, v in row.items() if k != "seconds"} for row in rows
        ]
    return tables_by_name


def write_finished_run(folder: Path, stages: Sequence[dict[str, Any]], **more: Any) -> None:
    """Write the ledger of a finished run with some stages' entries, whose result is the first one's, and more keys."""
    from tutelage.runs.folder import SCHEMA_VERSION

    folder.mkdir(parents=True)
    record = {"schema_version": SCHEMA_VERSION, "status": "finished", "files": {}, "result": stages[0]["result"]}
    (folder / "run.json").write_text(json.dumps({**record, "stages": stages, **more}))


def make_entry(result: dict[str, float]) -> dict[str, Any]:
    """Return a stage's entry in the ledger: a network that is no control."""
    return {"name": "network", "kind": "train", "control": False, "seconds": 1.0, "result": result, "files": {}}
