"""A run's folder: what lies where, and ``run.json``, the ledger of what is done. Needs no torch."""

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tutelage import __version__
from tutelage.config import Config
from tutelage.errors import UserError
from tutelage.process_group import ALONE, ProcessGroup
from tutelage.storage import is_held, write_json, write_text

RUNNING, FINISHED, FAILED = "running", "finished", "failed"
RECORDED_PACKAGES = ("torch", "pytorch-lightning", "albumentations", "numpy", "opencv-python-headless")


@dataclass(frozen=True)
class RunFolder:
    """The paths within a run's folder, or within the folder of one of its stages."""

    path: Path

    @property
    def record_file(self) -> Path:
        """The ledger."""
        return self.path / "run.json"

    @property
    def config_file(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """A row an epoch."""
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints and final weights."""
        return self.path / "checkpoints"

    @property
    def test_file(self) -> Path:
        """Predictions on the test set."""
        return self.path / "test.npz"

    @property
    def report(self) -> Path:
        """The report page and its pictures."""
        return self.path / "report"

    @property
    def lock_file(self) -> Path:
        """The lock; beside the folder, so that it can be taken before the folder exists."""
        return self.path.parent / ".locks" / f"{self.path.name}.lock"

    def weights(self, validated: bool) -> Path:
        """The network that a stage ends with: the best on validation, or the final one where there is none."""
        return self.checkpoints / ("best.ckpt" if validated else "final.ckpt")

    def stage(self, number: int, name: str, count: int) -> "RunFolder":
        """The folder of stage ``number`` (from 1) of ``count``; a lone stage has the run's own."""
        return self if count == 1 else RunFolder(self.path / "stages" / f"{number}-{name}")


class Record:
    """``run.json``: read when made, written whole at each change by the first process of a run."""

    def __init__(self, folder: RunFolder, group: ProcessGroup = ALONE) -> None:
        self._group = group
        self._file = folder.record_file
        self.content: dict[str, Any] = read_record(folder) or {}

    def begin(
        self, identity: dict[str, Any], command: str, threads: int, data: dict[str, Any], session: dict[str, Any]
    ) -> None:
        """Note that the run is under way, or goes on, by which command and code, and what else is told of a session."""
        code = {"version": __version__, "git": commit()}
        self.content = {
            "status": RUNNING,
            "command": command,
            **code,
            "sessions": [*self.content.get("sessions", []), {"started": _now(), **code, **session}],
            "python": platform.python_version(),
            "packages": {name: version(name) for name in RECORDED_PACKAGES},
            "threads": threads,
            "processes": self._group.size,
            "started": self.content.get("started") or _now(),
            "finished": None,
            "identity": identity,
            "data": data,
            "result": {},
            "stages": self.content.get("stages", []),
        }
        self._write()

    @property
    def threads(self) -> int | None:
        """The number of threads that as many processes as now have trained with."""
        value = self.content.get("threads")
        return int(value) if value is not None and self.content.get("processes", 1) == self._group.size else None

    def stage(self, name: str) -> dict[str, Any] | None:
        """Return the entry of a finished stage."""
        return next((entry for entry in self.content["stages"] if entry["name"] == name), None)

    def finish_stage(self, entry: dict[str, Any]) -> None:
        """Write a stage down as finished."""
        self.content["stages"] = [kept for kept in self.content["stages"] if kept["name"] != entry["name"]] + [entry]
        self._write()

    def finish(self, result: dict[str, Any], order: Sequence[str]) -> None:
        """Write the run down as finished, its stages in ``order``; others were not needed after all."""
        done = {entry["name"]: entry for entry in self.content["stages"]}
        self.content["stages"] = [done[name] for name in order]
        self.content |= {"status": FINISHED, "finished": _now(), "result": result}
        self._write()

    def stop(self) -> None:
        """Write down that the session was told to stop, and has saved what it had."""
        self.content["sessions"][-1]["stopped"] = _now()
        self._write()

    def fail(self, reason: str) -> None:
        """Write down why the run ended before its time; the same command goes on from its last checkpoint."""
        self.content |= {"status": FAILED, "reason": reason}
        self._write()

    def _write(self) -> None:
        if self._group.first:
            write_json(self._file, self.content)


def read_record(folder: RunFolder) -> dict[str, Any] | None:
    """Return ``run.json``, or None where there is none.

    Raises:
        UserError: there is one that cannot be read.
    """
    try:
        content = json.loads(folder.record_file.read_text())
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise UserError(f"{folder.path}: a part of this path is a file; choose another paths.outputs") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder.record_file} cannot be read ({error}); move the folder away, or start beside it with attempt=2"
        ) from None
    return content if isinstance(content, dict) else None


def stage_folders(folder: RunFolder, record: Mapping[str, Any]) -> dict[str, RunFolder]:
    """Return the folder of each stage of a finished run, by the stage's name."""
    names = [entry["name"] for entry in record["stages"]]
    return {name: folder.stage(number, name, len(names)) for number, name in enumerate(names, 1)}


def trained(folder: RunFolder, record: Mapping[str, Any]) -> dict[str, Path]:
    """Return the weights file of each network that a finished run trained, by the stage's name."""
    places = stage_folders(folder, record)
    fits = [entry for entry in record["stages"] if entry["kind"] == "fit"]
    judged = {entry["name"]: entry["validation_images"] > 0 and entry.get("judged", True) for entry in fits}
    return {name: places[name].weights(validated) for name, validated in judged.items()}


def last_fit(record: Mapping[str, Any]) -> str:
    """Return the name of the network that the run is after: the last one trained that is no control nor rejected."""
    return next(
        str(entry["name"])
        for entry in reversed(record["stages"])
        if entry["kind"] == "fit" and not entry["control"] and not entry.get("rejected", False)
    )


def results_of(record: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the results of the stages that left a network, by name; of a record that may have none yet."""
    return {entry["name"]: entry["result"] for entry in record.get("stages", ()) if entry["kind"] == "fit"}


def stored_config(folder: RunFolder) -> Config:
    """Return the config of a run as it was stored."""
    from omegaconf import OmegaConf

    return Config.model_validate(OmegaConf.to_container(OmegaConf.load(folder.config_file)))


def finished_run(path: str) -> tuple[RunFolder, dict[str, Any]]:
    """Return the folder and the record of a finished run that a user names.

    Raises:
        UserError: it is none.
    """
    folder = RunFolder(Path(path))
    if not is_finished(folder):
        raise UserError(f"{path}: {state(folder).status}; this needs the folder of a finished run ('tutelage runs')")
    return folder, read_record(folder) or {}


def tested_run(path: str) -> tuple[RunFolder, dict[str, Any]]:
    """Return the folder and the record of a finished run, as ``finished_run`` does, that has met the test set.

    Raises:
        UserError: it is none.
    """
    folder, record = finished_run(path)
    if not is_tested(record):
        raise UserError(f"{path}: has not met the test set; the same command with evaluate_test=true does that")
    return folder, record


def is_finished(folder: RunFolder) -> bool:
    """Return whether a run is there and finished."""
    record = read_record(folder)
    return record is not None and record.get("status") == FINISHED


def is_tested(record: Mapping[str, Any]) -> bool:
    """Return whether a run has met the test set."""
    return any(key.startswith("test") for key in record.get("result", {}))


def is_done(folder: RunFolder, config: Config) -> bool:
    """Return whether a run is finished, and has met the test set where its config asks for that."""
    record = read_record(folder)
    finished = record is not None and record.get("status") == FINISHED
    return finished and (not config.evaluate_test or is_tested(record or {}))


@dataclass(frozen=True)
class State:
    """A run in a line: when it was started, how it stands, its test accuracy."""

    started: str
    status: str
    test: str


def state(folder: RunFolder) -> State:
    """Return how a run stands; one that was killed is told from one that is running by its lock."""
    try:
        record = read_record(folder)
    except UserError:
        return State("", "unreadable", "")
    if record is None:
        return State("", "no run", "")
    status = str(record.get("status"))
    if status == RUNNING and not is_held(folder.lock_file):
        status = "stopped"
    started = datetime.fromisoformat(record["started"]).astimezone().strftime("%Y-%m-%d %H:%M")
    accuracy = record.get("result", {}).get("test/accuracy")
    return State(started, status, "" if accuracy is None else f"{100 * accuracy:.1f} %")


def write_config(folder: RunFolder, resolved: dict[str, Any]) -> None:
    """Write the resolved config."""
    from omegaconf import OmegaConf

    write_text(folder.config_file, OmegaConf.to_yaml(OmegaConf.create(resolved)))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def commit() -> str | None:
    """Return the git commit that the code lies in, with a + where it was changed since."""
    here = Path(__file__).parents[3]
    if not (here / ".git").exists():  # installed from a wheel: a repository around it is not ours
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)  # noqa: S607
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)  # noqa: S607
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
