"""Whether a run's folder is whole, can be made whole again, or is broken. Needs no torch.

``inspect_run`` is the one place that judges a run's folder; commands, sweeps and reports ask it before they read.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

from tutelage.config import Config
from tutelage.errors import UserError
from tutelage.runs.folder import (
    FINISHED,
    PSEUDO_LABEL,
    RUNNING,
    RunFolder,
    is_tested,
    read_record,
    stage_folders,
)
from tutelage.storage import PARTIAL_PREFIX, is_held

ABSENT, STOPPED, UNREADABLE = "no run", "stopped", "unreadable"  # beside the ledger's own: running, finished, failed
RESUME_FILES = {"last.ckpt", "previous.ckpt"}  # a finished run does not need them
REMAKE = "the run's command makes it again"


class Health(Enum):
    """What a run's folder is good for."""

    WHOLE = "whole"  # finished, and every file that is needed is as it was written
    REMAKABLE = "re-makable"  # the run's command finishes it, or makes again what is missing
    BROKEN = "broken"  # there is no run, or its record cannot be read


@dataclass(frozen=True)
class Problem:
    """A file of a finished run that is missing or damaged.

    Attributes:
        file: its path below the run's folder.
        reason: missing, or damaged.
        remedy: how the run's command makes it again, as words after "by".
    """

    file: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class RunState:
    """A run as ``inspect_run`` found it.

    Attributes:
        health: what its folder is good for.
        status: running, stopped, failed or finished; "no run" or "unreadable" for a broken one.
        reason: one line that says why it is not whole; empty where it is.
        record: ``run.json``; empty for a broken one.
        problems: files of a finished run that are missing or damaged.
    """

    health: Health
    status: str
    reason: str
    record: Mapping[str, Any]
    problems: tuple[Problem, ...] = ()

    @property
    def started(self) -> str:
        """When the run was started first, in local time to the minute; empty where that is not known."""
        started = self.record.get("started")
        return datetime.fromisoformat(started).astimezone().strftime("%Y-%m-%d %H:%M") if started else ""

    @property
    def test_accuracy(self) -> float | None:
        """Test accuracy from 0 to 1; None where there is none."""
        accuracy: float | None = self.record.get("result", {}).get("test/accuracy")
        return accuracy


def inspect_run(folder: RunFolder, check_digests: bool = False) -> RunState:
    """Judge a run's folder: whole, re-makable (what is missing, and how it is made), or broken (why).

    Args:
        folder: the run's.
        check_digests: read the files that are needed and compare their digests; else only their sizes.
    """
    try:
        record = read_record(folder)
    except UserError as error:
        return RunState(Health.BROKEN, UNREADABLE, str(error), {})
    if record is None:
        return RunState(Health.BROKEN, ABSENT, f"{folder.path}: no run", {})
    status = str(record.get("status"))
    if status != FINISHED:
        if status == RUNNING and not is_held(folder.lock_file):
            status = STOPPED
        return RunState(Health.REMAKABLE, status, f"{folder.path}: {status}; the run's command finishes it", record)
    problems = tuple(_problems(folder, record, check_digests))
    if not problems:
        return RunState(Health.WHOLE, status, "", record)
    first, more = problems[0], f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    reason = f"{folder.path}: {first.file} is {first.reason}{more}; {REMAKE}, by {first.remedy}"
    return RunState(Health.REMAKABLE, status, reason, record, problems)


def _problems(folder: RunFolder, record: Mapping[str, Any], check_digests: bool) -> Iterator[Problem]:
    """Yield the needed files of a finished run that are missing or damaged."""
    remedies = _remedies(folder, record)
    for name, facts in record["files"].items():
        remedy = _remedy(folder.path / name, remedies)
        if not remedy:
            continue
        path = folder.path / name
        if not path.is_file():
            yield Problem(name, "missing", remedy)
        elif path.stat().st_size != facts["bytes"] or (check_digests and _file_digest(path) != facts["sha256"]):
            yield Problem(name, "damaged", remedy)


def _remedies(folder: RunFolder, record: Mapping[str, Any]) -> dict[Path, str]:
    """Return how a run's files are made again, by file or by the folder that holds them."""
    folders = stage_folders(folder, record)
    remedies = {folder.config_file: "composing its config"}
    for entry in record["stages"]:
        name, stage_folder = entry["name"], folders[entry["name"]]
        if entry["kind"] == PSEUDO_LABEL:
            remedies[stage_folder.path] = f"labelling the pool with the network of stage {entry['teacher']}"
            continue
        remedies[stage_folder.checkpoints] = f"training stage {name}"
        remedies[stage_folder.metrics_file] = f"reading the last checkpoint of stage {name}, or training it"
        remedies[stage_folder.test_file] = f"evaluating the network of stage {name}"
    return remedies


def _remedy(path: Path, remedies: Mapping[Path, str]) -> str:
    """Return how a file is made again; nothing for a file that no command needs of a finished run."""
    if path.name in RESUME_FILES:
        return ""
    return next((remedies[place] for place in (path, *path.parents) if place in remedies), "")


def list_files(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Return size in bytes and SHA-256 of each file of a run, by its path below the run's folder.

    ``run.json``, which holds the list, and the report, which is made of the other files, are left out.
    """
    return {
        str(path.relative_to(folder.path)): {"bytes": path.stat().st_size, "sha256": _file_digest(path)}
        for path in sorted(folder.path.rglob("*"))
        if path.is_file() and not _is_unlisted(path, folder)
    }


def _is_unlisted(path: Path, folder: RunFolder) -> bool:
    partial = path.name.startswith(PARTIAL_PREFIX)
    return partial or path == folder.record_file or path.is_relative_to(folder.report)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_complete(folder: RunFolder, config: Config) -> bool:
    """Return whether a config's run has nothing left to do: it is whole, and tested where the config asks for that."""
    if read_record(folder) is None:
        return False
    state = inspect_run(folder, check_digests=True)
    return state.health is Health.WHOLE and (not config.evaluate_test or is_tested(state.record))


def open_finished_run(path: str) -> tuple[RunFolder, Mapping[str, Any]]:
    """Return the folder and the record of a finished run that a user names.

    Raises:
        UserError: there is none, or files of it are missing or damaged.
    """
    folder = RunFolder(Path(path).expanduser())
    state = inspect_run(folder)
    if state.status == UNREADABLE or state.problems:
        raise UserError(state.reason)
    if state.status != FINISHED:
        raise UserError(f"{path}: {state.status}; this needs the folder of a finished run ('tutelage runs')")
    return folder, state.record


def open_tested_run(path: str) -> tuple[RunFolder, Mapping[str, Any]]:
    """Return the folder and the record of a finished run that was evaluated on the test set.

    Raises:
        UserError: there is none, or files of it are missing or damaged.
    """
    folder, record = open_finished_run(path)
    if not is_tested(record):
        raise UserError(f"{path}: not yet evaluated on the test set; its command with evaluate_test=true does that")
    return folder, record
