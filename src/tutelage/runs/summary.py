"""What a list of runs says of each: a row that is made of ``run.json`` and the folder's files. Needs no torch."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.errors import UserError
from tutelage.runs.folder import FINISHED, RunFolder, main_stage_name, train_entries
from tutelage.runs.integrity import UNREADABLE, Health, RunState, inspect_run

INCOMPLETE = "incomplete"  # the status of a finished run whose files are not all there
RUN_NAME = re.compile(r"[^-]+-[^-]+-(?P<strategy>.+)-s-?\d+-[0-9a-f]+")  # as ``run_path`` makes it
RUN_DEPTH = 2  # of folders below the one that is listed, in which runs may lie
ODD = (AttributeError, KeyError, TypeError, ValueError)  # what a record raises that was not written by Tutelage


@dataclass(frozen=True)
class RunSummary:
    """A run's folder as it was when it was read.

    Attributes:
        path: the folder.
        started: when the run was started first, in local time to the minute; empty where that is not known.
        status: finished, running, stopped, failed, unreadable; incomplete where files of a finished run are missing.
        test_accuracy: from 0 to 1; None where there is none.
        reason: one line that says why it cannot be used as it is; empty where it can, or still runs.
        labels: the number of labelled images, before some are held out; None where it is not known.
        strategy: the strategy's name.
        network: the run's network, such as "LeNet5 x2".
        validation_accuracy: from 0 to 1; None where there is none.
        test_images: how many images the test accuracy is over.
        validation_images: how many images the validation accuracy is over.
        size: bytes of all files of the folder.
    """

    path: Path
    started: str
    status: str
    test_accuracy: float | None
    reason: str = ""
    labels: int | None = None
    strategy: str = ""
    network: str = ""
    validation_accuracy: float | None = None
    test_images: int | None = None
    validation_images: int | None = None
    size: int = 0


def find_run_folders(root: Path) -> Iterator[str]:
    """Yield the folders of runs: a folder itself, or those up to ``RUN_DEPTH`` below it; hidden ones are passed over.

    There may be ten thousand, so that no objects are made for their paths.

    Raises:
        UserError: there is no such folder, or it cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder of the runs")
    try:
        yield from _find_below(str(root), RUN_DEPTH)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None


def _find_below(folder: str, depth: int) -> Iterator[str]:
    if os.path.exists(f"{folder}/run.json"):  # noqa: PTH110
        yield folder
    elif depth:
        with os.scandir(folder) as entries:
            names = [entry.path for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
        for name in names:
            yield from _find_below(name, depth - 1)


def summarize_run(path: Path, size: int) -> tuple[RunSummary, RunState]:
    """Return what a list says of the run in a folder, and the state that it is made of.

    What is wrong with the run is in the summary's status and reason: an odd ``run.json`` hides no other run.

    Args:
        path: the folder.
        size: its bytes, as ``measure_folder`` returns them.
    """
    try:
        state = inspect_run(RunFolder(path))
        return _build_summary(path, size, state), state
    except UserError as error:
        reason = str(error)
    except ODD as error:
        reason = f"{path / 'run.json'} is no record of a run ({error!r}); move the folder away"
    state = RunState(Health.BROKEN, UNREADABLE, reason, {})
    return _build_summary(path, size, state), state


def _build_summary(path: Path, size: int, state: RunState) -> RunSummary:
    record = state.record
    result, data = record.get("result", {}), record.get("data", {})
    labelled = data.get("labelled")
    validation = data.get("images_per_class", {}).get("val")
    return RunSummary(
        path=path,
        started=local_time(record.get("started")),
        status=INCOMPLETE if state.problems else state.status,
        test_accuracy=_number(result.get("test/accuracy")),
        reason=state.reason if state.problems or state.health is Health.BROKEN else "",
        labels=None if labelled is None else int(sum(labelled)),
        strategy=_find_strategy(path, record),
        network=_find_network(record),
        validation_accuracy=_number(result.get("val/accuracy")),
        test_images=data.get("test") or None,
        validation_images=None if validation is None else int(sum(validation)),
        size=size,
    )


def local_time(started: str | None) -> str:
    """Return a recorded time in local time to the minute; an empty text for None."""
    return datetime.fromisoformat(started).astimezone().strftime("%Y-%m-%d %H:%M") if started else ""


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _find_strategy(path: Path, record: Mapping[str, Any]) -> str:
    """Return the strategy's name, as the run's folder has it; of a folder of another name that of its class."""
    if match := RUN_NAME.fullmatch(path.name):
        return match["strategy"]
    return str(record.get("identity", {}).get("strategy", {}).get("_target_", "")).rpartition(".")[2]


def _find_network(record: Mapping[str, Any]) -> str:
    """Return the run's network in words: the one it ended with, or, before that, the config's."""
    entries = train_entries(record)
    if record.get("status") == FINISHED and entries:
        name = main_stage_name(record)
        model = next(entry.get("model") for entry in entries if entry["name"] == name)
    else:
        model = record.get("identity", {}).get("model")
    return describe_network(model) if model else ""


def describe_network(model: Mapping[str, Any]) -> str:
    """Return a network in words, such as "LeNet5 x2"; ``model`` is its config."""
    width = model.get("width")
    name = str(model["_target_"]).rpartition(".")[2]
    return str(model.get("name", name)) if width is None else f"{name} x{width:g}"


class FolderSize(NamedTuple):
    """The bytes of all files in a folder, and when each folder in it has changed last (ns), by its path below it."""

    size: int
    changed: dict[str, int]


def measure_folder(path: str) -> FolderSize:
    """Return the size of a folder; what vanishes meanwhile, or cannot be read, counts nothing."""
    size, changed, remaining = 0, {}, [path]
    while remaining:
        folder = remaining.pop()
        with suppress(OSError):
            changed[folder[len(path) :]] = os.stat(folder).st_mtime_ns  # noqa: PTH116
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        remaining.append(entry.path)
                    else:
                        with suppress(OSError):
                            size += entry.stat(follow_symlinks=False).st_size
    return FolderSize(size, changed)
