"""What ``import tutelage`` offers: start runs, list them, use their networks. ``load`` alone imports torch."""

import html
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tutelage.app.job import RUNS_FILE
from tutelage.config.allowed_folder import SAFE_PATH_VARIABLE
from tutelage.errors import USER_ERROR, UserError
from tutelage.runs import RunFolder, read_config
from tutelage.runs.summary import RunSummary, find_run_folders, measure_folder, summarize_run
from tutelage.terminal.run_table import HEAD, format_rows, layout_rows

if TYPE_CHECKING:  # at run time it is imported when it is needed
    from tutelage.config import Config
    from tutelage.inference.classifier import Classifier

LINES_KEPT = 50  # of the command's output, for the message of its error
SECONDS_OF_OUTPUT = 2.0  # that output may take to arrive when the command has ended
FORCE_COLOR = "FORCE_COLOR"  # set by a notebook's kernel, whose cells are no terminals: no display is drawn there
COMPLAINT = "tutelage: "  # begins the line of a user's error


@dataclass(frozen=True)
class Run(RunSummary):
    """A run's folder as it was when it was read: what a list says of it, and the metrics.

    Attributes:
        result: the metrics of its network, such as ``val/accuracy``, by their names; empty until it is finished.
    """

    result: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Return the run in a folder; what is wrong with it is in its status and reason."""
        summary, state = summarize_run(path, measure_folder(str(path)).size)
        return cls(**vars(summary), result=dict(state.record.get("result", {})))

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

    def __repr__(self) -> str:
        return "\n".join(layout_rows(format_rows(self)))

    def _repr_html_(self) -> str:
        """Return the table as HTML, for notebooks."""
        rows = [_format_row("th", HEAD), *(_format_row("td", row) for row in format_rows(self))]
        return f"<table>{''.join(rows)}</table>"


def _format_row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def list_runs(folder: str | Path = "outputs") -> RunTable:
    """Return the runs below a folder, the one that was started last at the end.

    Raises:
        UserError: there is no such folder.
    """
    paths = map(Path, find_run_folders(Path(folder).expanduser()))
    return RunTable(sorted(map(Run.read, paths), key=lambda run: run.started))


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
        code, lines = _execute_training(list(map(str, overrides)), file)
        ended = json.loads(file.read_text()) if file.exists() else None
    _raise_for_failure(code, lines, ended)
    if ended is None:
        raise RuntimeError(f"no run was started: {_last(lines)}")
    runs = RunTable(Run.read(Path(path)) for path, _ in ended["runs"])
    return runs if ended["is_sweep"] else runs[0]


def _execute_training(overrides: Sequence[str], runs_file: Path) -> tuple[int, Sequence[str]]:
    """Run the command and pass its output on; return its exit code and its last lines.

    It has a process group of its own: an interrupt of a terminal or a notebook reaches it once, from here.
    """
    environment = {name: value for name, value in os.environ.items() if name != FORCE_COLOR}
    added = {RUNS_FILE: str(runs_file), SAFE_PATH_VARIABLE: "1", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "tutelage.train", *overrides],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=environment | added,
        process_group=0,
    )
    lines: deque[str] = deque(maxlen=LINES_KEPT)
    reader = threading.Thread(target=_pass_on, args=(process.stdout, lines), daemon=True)
    reader.start()
    interrupt = None
    while process.returncode is None:
        try:
            process.wait()
        except KeyboardInterrupt as error:
            interrupt = error
            process.send_signal(signal.SIGINT)
    reader.join(SECONDS_OF_OUTPUT)  # a process that the command has left behind may hold its output open
    if interrupt is not None:
        raise interrupt
    return process.returncode, list(lines)


def _pass_on(output: IO[str] | None, lines: deque[str]) -> None:
    """Print the lines of a process as they come, and keep the last ones that are not blank."""
    for line in output or ():
        with suppress(OSError, ValueError):  # sys.stdout is closed; the process is not to wait for a reader
            print(line, end="", flush=True)
        if line.strip():
            lines.append(line.strip())


def _raise_for_failure(code: int, lines: Sequence[str], ended: Mapping[str, Any] | None) -> None:
    """Raise the error that an exit code of the command stands for; ``lines`` are its last ones."""
    if code < 0:
        raise RuntimeError(
            f"tutelage train was killed by {signal.Signals(-code).name}; the same call goes on from its last checkpoint"
        )
    complaints = [line.removeprefix(COMPLAINT) for line in lines if line.startswith(COMPLAINT)]
    if code == USER_ERROR and complaints:
        raise UserError(complaints[-1])
    reasons = [] if ended is None else [reason for _, reason in ended["runs"] if reason]
    if code and ended is not None and reasons:
        raise RuntimeError(f"{len(reasons)} of {len(ended['runs'])} runs failed; the first: {reasons[0]}")
    if code:
        raise RuntimeError(f"tutelage train ended with code {code}: {_last(lines)}")


def _last(lines: Sequence[str]) -> str:
    return lines[-1] if lines else "it printed nothing"
