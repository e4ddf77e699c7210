"""A sweep's folder: the list of its jobs, and how each of them ended. Needs no torch."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.config.path_values import quote_paths
from tutelage.storage import digest, write_json

NAME_LENGTH = 12  # of an outcome's file
UNKNOWN = "ended without saying why; the same command goes on from here"


@dataclass(frozen=True)
class Outcome:
    """How a job of a sweep ended.

    Attributes:
        overrides: the job's.
        path: the folder of the job's run; None where there is no run.
        reason: why the job has no result; empty where it has one.
        code: the job's exit code.
        partial: whether a search shortened the job's schedule, so that it cannot be the best.
    """

    overrides: Sequence[str]
    path: Path | None
    reason: str = ""
    code: int = 0
    partial: bool = False


class SweepFolder:
    """``outputs/.sweeps/<sweep>/``: ``sweep.json`` lists the jobs, ``outcomes/`` has a file for each that has ended.

    Only the process that holds ``lock_file`` writes the list. Each job writes its own outcome, in whatever process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._list_file = path / "sweep.json"
        self._stop_file = path / "stop"

    @property
    def lock_file(self) -> Path:
        """The lock that the process which runs the sweep holds."""
        return self.path / "sweep.lock"

    @classmethod
    def from_hydra_config(cls, hydra: Any) -> "SweepFolder":
        """Return the folder that a sweep's ``hydra`` section names."""
        return cls(Path(str(hydra.sweep.dir)) / str(hydra.sweep.subdir))

    def begin(self, command: str) -> None:
        """Write an empty list of jobs with the command of the sweep, and withdraw an earlier request to stop."""
        self._stop_file.unlink(missing_ok=True)
        write_json(self._list_file, {"command": command, "count": 0, "jobs": []})

    def set_job_count(self, count: int) -> None:
        """Write down how many jobs the sweep will have."""
        write_json(self._list_file, {**self._read_list(), "count": count})

    def add_jobs(self, jobs: Sequence[Sequence[str]], partial: bool = False) -> None:
        """Add jobs to the list unless it has them, and remove their earlier outcomes.

        Args:
            jobs: the overrides of each.
            partial: whether a search shortened their schedules.
        """
        content = self._read_list()
        for job in jobs:
            self._outcome_file(job).unlink(missing_ok=True)
            entry = {"overrides": list(job), "partial": partial}
            content["jobs"] += [entry] if entry not in content["jobs"] else []
        write_json(self._list_file, content)

    def request_stop(self) -> None:
        """Keep further jobs from starting."""
        self._stop_file.touch()

    @property
    def is_stopped(self) -> bool:
        """Whether further jobs must not start."""
        return self._stop_file.exists()

    def describe_job(self, job: Sequence[str]) -> str:
        """Return a job's number and those of its overrides that were not typed for all jobs, as one line."""
        content = self._read_list()
        number = [entry["overrides"] for entry in content["jobs"]].index(list(job)) + 1
        typed = quote_paths(shlex.split(content["command"]))
        own_overrides = [override for override in job if override not in typed] or job
        return f"run {number} of {content['count'] or '?'}: {' '.join(own_overrides)}"

    def write_outcome(self, outcome: Outcome) -> None:
        """Write down how a job ended."""
        path = None if outcome.path is None else str(outcome.path)
        content = {"overrides": list(outcome.overrides), "path": path, "reason": outcome.reason, "code": outcome.code}
        write_json(self._outcome_file(outcome.overrides), content)

    def jobs_without_outcome(self, jobs: Sequence[Sequence[str]]) -> list[Sequence[str]]:
        """Return those of some jobs that have written no outcome."""
        return [job for job in jobs if not self._outcome_file(job).exists()]

    def read_outcome(self, job: Sequence[str], partial: bool = False) -> Outcome:
        """Return how a job ended; a job that has written no outcome has failed for an unknown reason."""
        try:
            content = json.loads(self._outcome_file(job).read_text())
        except FileNotFoundError:
            return Outcome(job, None, UNKNOWN, code=1, partial=partial)
        path = None if content["path"] is None else Path(content["path"])
        return Outcome(content["overrides"], path, content["reason"], content["code"], partial)

    def read_outcomes(self) -> list[Outcome]:
        """Return how each job ended, in the order of the list."""
        return [self.read_outcome(job["overrides"], job["partial"]) for job in self._read_list()["jobs"]]

    def _read_list(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self._list_file.read_text())
        return content

    def _outcome_file(self, job: Sequence[str]) -> Path:
        return self.path / "outcomes" / f"{digest(list(job))[:NAME_LENGTH]}.json"
