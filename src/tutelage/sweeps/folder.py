"""A sweep's folder: which jobs it has, and what became of each. Needs no torch."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.storage import digest, write_json

NAME_LENGTH = 12  # of an outcome's file
UNKNOWN = "ended without saying why; the same command goes on from here"


@dataclass(frozen=True)
class Outcome:
    """What became of a job of a sweep.

    Attributes:
        overrides: the job's.
        path: its run's folder; None where none belongs to it.
        reason: why it has no result; empty where it has one.
        code: its exit code.
        partial: its schedule was shortened by a search, so that it is no candidate for the best.
    """

    overrides: Sequence[str]
    path: Path | None
    reason: str = ""
    code: int = 0
    partial: bool = False


class SweepFolder:
    """``outputs/.sweeps/<sweep>/``: ``sweep.json`` lists the jobs, ``outcomes/`` has a file for each that has ended.

    Only the process that holds ``lock_file`` writes the list; each job writes its own outcome, whatever ran it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._list = path / "sweep.json"
        self._stop = path / "stop"

    @property
    def lock_file(self) -> Path:
        """Held by the process that runs the sweep."""
        return self.path / "sweep.lock"

    @classmethod
    def of(cls, hydra: Any) -> "SweepFolder":
        """Return the folder that a sweep's settings of Hydra name."""
        return cls(Path(str(hydra.sweep.dir)) / str(hydra.sweep.subdir))

    def begin(self, command: str) -> None:
        """Note what was typed, and forget the list of a time before."""
        self._stop.unlink(missing_ok=True)
        write_json(self._list, {"command": command, "count": 0, "jobs": []})

    def expect(self, count: int) -> None:
        """Note how many jobs there will be."""
        write_json(self._list, {**self._content(), "count": count})

    def add(self, jobs: Sequence[Sequence[str]], partial: bool = False) -> None:
        """Add jobs, each given by its overrides, unless they are listed; forget what became of them before."""
        content = self._content()
        for job in jobs:
            self._file(job).unlink(missing_ok=True)
            one = {"overrides": list(job), "partial": partial}
            content["jobs"] += [one] if one not in content["jobs"] else []
        write_json(self._list, content)

    def stop(self) -> None:
        """Let no other job begin."""
        self._stop.touch()

    @property
    def is_stopped(self) -> bool:
        """Whether no other job is to begin."""
        return self._stop.exists()

    def title(self, job: Sequence[str]) -> str:
        """Return which of the jobs it is, and what of it was not typed for all of them."""
        content = self._content()
        number = [one["overrides"] for one in content["jobs"]].index(list(job)) + 1
        typed = shlex.split(content["command"])
        own = [override for override in job if override not in typed] or job
        return f"run {number} of {content['count'] or '?'}: {' '.join(own)}"

    def write(self, outcome: Outcome) -> None:
        """Write down what became of a job."""
        path = None if outcome.path is None else str(outcome.path)
        told = {"overrides": list(outcome.overrides), "path": path, "reason": outcome.reason, "code": outcome.code}
        write_json(self._file(outcome.overrides), told)

    def silent(self, jobs: Sequence[Sequence[str]]) -> list[Sequence[str]]:
        """Return those of some jobs that left no word."""
        return [job for job in jobs if not self._file(job).exists()]

    def outcome(self, job: Sequence[str], partial: bool = False) -> Outcome:
        """Return what became of a job."""
        try:
            told = json.loads(self._file(job).read_text())
        except FileNotFoundError:
            return Outcome(job, None, UNKNOWN, code=1, partial=partial)
        path = None if told["path"] is None else Path(told["path"])
        return Outcome(told["overrides"], path, told["reason"], told["code"], partial)

    def outcomes(self) -> list[Outcome]:
        """Return what became of each job, in the order of the list."""
        return [self.outcome(job["overrides"], job["partial"]) for job in self._content()["jobs"]]

    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self._list.read_text())
        return content

    def _file(self, job: Sequence[str]) -> Path:
        return self.path / "outcomes" / f"{digest(list(job))[:NAME_LENGTH]}.json"
