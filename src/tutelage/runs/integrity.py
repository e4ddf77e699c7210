"""Whether a run's folder is whole, can be made whole again, or is broken. Needs no torch.

``inspect_run`` is the one place that judges a run's folder; commands, sweeps and reports ask it before they read.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from tutelage.storage import is_held

if TYPE_CHECKING:  # at run time it is imported when it is needed
    from tutelage.config import Config

ABSENT, STOPPED, UNREADABLE = "no run", "stopped", "unreadable"  # beside the ledger's own: running, finished, failed
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


def inspect_run(folder: RunFolder, check_digests: bool = False) -> RunState:
    """Judge a run's folder: whole, re-makable (what is missing, and how it is made), or broken (why).

    Args:
        folder: the run's.
        check_digests: read the files whose content matters and compare their digests; else only their sizes.

    Raises:
        UserError: a file cannot be read.
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
    try:
        problems = tuple(_problems_of_run(folder, record, check_digests))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        wrong = f"lacks {error}" if isinstance(error, KeyError) else f"is no record of a run ({error})"
        reason = f"{folder.record_file} {wrong}; move the folder away, or start beside it with attempt=2"
        return RunState(Health.BROKEN, UNREADABLE, reason, {})
    if not problems:
        return RunState(Health.WHOLE, status, "", record)
    first, more = problems[0], f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    reason = f"{folder.path}: {first.file} is {first.reason}{more}; {REMAKE}, by {first.remedy}"
    return RunState(Health.REMAKABLE, status, reason, record, problems)


def _problems_of_run(folder: RunFolder, record: Mapping[str, Any], check_digests: bool) -> Iterator[Problem]:
    """Yield the needed files of a finished run that are missing or damaged."""
    if not folder.config_file.is_file():
        yield Problem(_name(folder, folder.config_file), "missing", "composing its config")
    folders = stage_folders(folder, record)
    for entry in record["stages"]:
        name, stage_folder = entry["name"], folders[entry["name"]]
        if entry["kind"] == PSEUDO_LABEL:
            remedy = f"labelling the pool with the network of stage {entry['teacher']}"
        else:
            remedy = f"training stage {name}"
        yield from find_problems(folder, entry["files"], check_digests, remedy)
        if entry.get("steps") and not stage_folder.metrics_file.is_file():
            remedy = f"reading the last checkpoint of stage {name}, or training it"
            yield Problem(_name(folder, stage_folder.metrics_file), "missing", remedy)
        lines = _lines_of_predictions(folder, stage_folder, record)
        yield from find_problems(folder, lines, check_digests, f"evaluating the network of stage {name}")


def _lines_of_predictions(folder: RunFolder, stage_folder: RunFolder, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the line of the list of files on a stage's predictions on the test set; empty where it has none."""
    name = _name(folder, stage_folder.test_file)
    return {name: record["files"][name]} if name in record["files"] else {}


def needed_sizes(folder: RunFolder, record: Mapping[str, Any]) -> dict[str, int]:
    """Return the bytes of the files that a finished run needs, by their paths below its folder."""
    folders = stage_folders(folder, record)
    lines: dict[str, Any] = {}
    for entry in record["stages"]:
        lines |= {**entry["files"], **_lines_of_predictions(folder, folders[entry["name"]], record)}
    return {name: line["bytes"] for name, line in lines.items()}


def find_problems(
    folder: RunFolder, files: Mapping[str, Mapping[str, Any]], check_digests: bool, remedy: str = ""
) -> list[Problem]:
    """Return the files that are missing, or of another size or digest than listed.

    Args:
        folder: the run's.
        files: as ``describe_files`` returns them.
        check_digests: read the files and compare their digests, too.
        remedy: how they are made again.

    Raises:
        UserError: a file cannot be read.
    """
    problems = []
    for name, line in files.items():
        path = folder.path / name
        try:
            size, digest = path.stat().st_size, file_digest(path) if check_digests else line["sha256"]
        except FileNotFoundError:
            problems.append(Problem(name, "missing", remedy))
            continue
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        if (size, digest) != (line["bytes"], line["sha256"]):
            problems.append(Problem(name, "damaged", remedy))
    return problems


def describe_files(folder: RunFolder, paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return bytes and SHA-256 of files, by their paths below a run's folder; files that vanish are left out."""
    lines = {}
    for path in paths:
        with suppress(FileNotFoundError):
            lines[_name(folder, path)] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    return lines


def list_files(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of each file of a run (see ``describe_files``).

    Left out are ``run.json``, which holds the list, the report, which is made of the other files, what loggers keep and
    hidden files.
    """
    paths = [path for path in sorted(folder.path.rglob("*")) if path.is_file() and not _is_unlisted(path, folder)]
    return describe_files(folder, paths)


def _is_unlisted(path: Path, folder: RunFolder) -> bool:
    is_hidden = any(part.startswith(".") for part in path.relative_to(folder.path).parts)
    others = (folder.record_file, folder.report, folder.loggers)
    return is_hidden or any(path.is_relative_to(other) for other in others)


def _name(folder: RunFolder, path: Path) -> str:
    return path.relative_to(folder.path).as_posix()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; in one process an unchanged file is read once."""
    status = path.stat()
    return _read_digest(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _read_digest(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_complete(folder: RunFolder, config: "Config") -> bool:
    """Return whether a config's run has nothing left to do: it is whole, and tested where the config asks for that.

    Raises:
        UserError: its record, or a file, cannot be read.
    """
    state = inspect_run(folder, check_digests=True)
    if state.status == UNREADABLE:
        raise UserError(state.reason)
    return state.health is Health.WHOLE and (not config.evaluate_test or is_tested(state.record))


def open_finished_run(path: str) -> tuple[RunFolder, Mapping[str, Any]]:
    """Return the folder and the record of a finished run that a user names.

    Raises:
        UserError: there is none, or files of it are missing or damaged.
    """
    folder = RunFolder(Path(path).expanduser())
    if folder.path.is_file():
        raise UserError(f"{path}: a file; this needs the folder of a finished run ('tutelage runs')")
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
