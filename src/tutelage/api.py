"""What ``import tutelage`` offers: start runs, list them, use their networks. ``load`` alone imports torch."""

import html
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.app.job import RUNS_FILE
from tutelage.config.allowed_folder import SAFE_PATH_VARIABLE
from tutelage.errors import USER_ERROR, UserError
from tutelage.runs import Health, RunFolder, inspect_run, read_config

if TYPE_CHECKING:  # at run time it is imported when it is needed
    from tutelage.config import Config
    from tutelage.inference.classifier import Classifier

RUN_DEPTHS = ("", "*/", "*/*/")  # below a folder, where runs may lie


@dataclass(frozen=True)
class Run:
    """A run's folder as it was when it was read.

    Attributes:
        path: the folder.
        started: when the run was started first, in local time to the minute.
        status: finished, running, stopped, failed, unreadable; incomplete where files of a finished run are missing.
        test_accuracy: from 0 to 1; None where there is none.
        result: the metrics of its network, such as ``val/accuracy``, by their names; empty until it is finished.
        reason: one line that says why it cannot be used as it is; empty where it can, or still runs.
    """

    path: Path
    started: str
    status: str
    test_accuracy: float | None
    result: Mapping[str, float]
    reason: str = ""

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Return the run in a folder; what is wrong with it is in its status and reason."""
        state = inspect_run(RunFolder(path))
        status = "incomplete" if state.problems else state.status
        reason = state.reason if state.problems or state.health is Health.BROKEN else ""
        result = dict(state.record.get("result", {}))
        return cls(path, state.started, status, state.test_accuracy, result, reason)

    @cached_property
    def config(self) -> "Config":
        """The whole config.

        Raises:
            UserError: it cannot be read.
        """
        return read_config(RunFolder(self.path))

    def load(self, stage: str | None = None, task: int | None = None, device: str | None = None) -> "Classifier":
        """Return the run's network; see ``load``."""
        return load(self, stage=stage, task=task, device=device)


class RunTable(list[Run]):
    """Runs, shown as a table, in a notebook too. ``pandas.DataFrame(table)`` has a row for each."""

    _HEAD = ("started", "status", "test", "run")

    def __repr__(self) -> str:
        rows = [self._HEAD, *map(_format_cells, self)]
        return "\n".join(f"{started:<16}  {status:<10}  {test:>7}  {path}" for started, status, test, path in rows)

    def _repr_html_(self) -> str:
        """Return the table as HTML, for notebooks."""
        rows = [_format_row("th", self._HEAD), *(_format_row("td", _format_cells(run)) for run in self)]
        return f"<table>{''.join(rows)}</table>"


def _format_cells(run: Run) -> tuple[str, str, str, str]:
    accuracy = "" if run.test_accuracy is None else f"{100 * run.test_accuracy:.1f} %"
    return run.started, run.status, accuracy, str(run.path)


def _format_row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def list_runs(folder: str | Path = "outputs") -> RunTable:
    """Return the runs below a folder, the one that was started last at the end.

    Raises:
        UserError: there is no such folder.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of the runs")
    records = [record for depth in RUN_DEPTHS for record in root.glob(f"{depth}run.json")]
    return RunTable(sorted((Run.read(record.parent) for record in records), key=lambda run: run.started))


def load(
    *sources: str | Path | Run, stage: str | None = None, task: int | None = None, device: str | None = None
) -> "Classifier":
    """Return the network of a finished run as a classifier; of several runs, the mean of their probabilities.

    Args:
        sources: runs, their folders, or files of networks such as ``checkpoints/best.ckpt``.
        stage: the name of the stage whose network is meant, such as ``student-1``; None for the run's last network.
        task: of a network that learned several tasks the one that is meant, from 1; None where there is one.
        device: cpu, cuda, ...; None for the one that the run would train on.

    Raises:
        UserError: there is no such network.
    """
    if not sources:
        raise UserError("load needs a run or a file: tutelage.load('outputs/EXPERIMENT/RUN')")
    from tutelage.inference.classifier import load_networks

    paths = [source.path if isinstance(source, Run) else source for source in sources]
    return load_networks(paths, stage, task, device)


def run(overrides: Sequence[str] = ()) -> Run | RunTable:
    """Do what ``tutelage train OVERRIDES`` does, in a process of its own; return the finished run, or a sweep's runs.

    What the command prints appears in ``sys.stdout``, so in a notebook below its cell. An interrupt stops the command,
    which saves its state; the same call goes on from there, and returns a run that is finished within seconds.

    Args:
        overrides: as they are typed after ``tutelage train``, such as ``["data=digits", "model.width=2"]``.

    Raises:
        UserError: the command refuses them.
        RuntimeError: the run failed, or its process was killed; or runs of a sweep failed.
        KeyboardInterrupt: after the command has stopped.
    """
    if isinstance(overrides, str):
        raise UserError(f"{overrides!r}: give a list of overrides, such as ['data=digits', 'model=mlp']")
    with tempfile.TemporaryDirectory(prefix="tutelage-") as folder:
        file = Path(folder) / "runs.json"
        code, last_line = _execute_training(list(map(str, overrides)), file)
        ended = json.loads(file.read_text()) if file.exists() else None
    _raise_for_failure(code, last_line, ended)
    if ended is None:
        raise RuntimeError(f"no run was started: {last_line}")
    runs = RunTable(Run.read(Path(path)) for path, _ in ended["runs"])
    return runs if ended["is_sweep"] else runs[0]


def _execute_training(overrides: Sequence[str], runs_file: Path) -> tuple[int, str]:
    """Run the command and pass its output on; return its exit code and its last line.

    It has a process group of its own: an interrupt of a terminal or a notebook reaches it once, from here.
    """
    added = {RUNS_FILE: str(runs_file), SAFE_PATH_VARIABLE: "1", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "tutelage.train", *overrides],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **added},
        process_group=0,
    )
    last_line, interrupt = "", None
    with process:
        while True:
            try:
                for line in process.stdout or ():
                    print(line, end="", flush=True)
                    last_line = line.strip() or last_line
                process.wait()
                break
            except KeyboardInterrupt as error:
                interrupt = error
                process.send_signal(signal.SIGINT)
            except BaseException:  # its output has no reader any more
                process.terminate()
                raise
    if interrupt is not None:
        raise interrupt
    return process.returncode, last_line


def _raise_for_failure(code: int, last_line: str, ended: Mapping[str, Any] | None) -> None:
    """Raise the error that an exit code of the command stands for."""
    if code < 0:
        raise RuntimeError(
            f"tutelage train was killed by {signal.Signals(-code).name}; the same call goes on from its last checkpoint"
        )
    if code == USER_ERROR:
        raise UserError(last_line.removeprefix("tutelage: "))
    reasons = [] if ended is None else [reason for _, reason in ended["runs"] if reason]
    if code and ended is not None and reasons:
        raise RuntimeError(f"{len(reasons)} of {len(ended['runs'])} runs failed; the first: {reasons[0]}")
    if code:
        raise RuntimeError(f"tutelage train ended with code {code}: {last_line}")
