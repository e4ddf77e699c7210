"""The runs of a sweep: what was chosen for each, what it gave, and by what they are compared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.insight.gains import TEST
from tutelage.runs import FINISHED, RunFolder, last_fit, read_record

SEED = "seed"
KILO = 1000.0
MEASURES_TOLD = (
    "Means over seeds, +- their standard deviation. MB kept: what is stored to answer. s to learn: all stages of a "
    "run, its control not counted. ms an answer: the mean over the test images, reading them included."
)


@dataclass(frozen=True)
class Outcome:
    """What became of a job of a sweep: its overrides, its folder, and why it has no result, if so."""

    overrides: Sequence[str]
    path: Path | None
    reason: str = ""


@dataclass(frozen=True)
class Job:
    """A finished run of a sweep: what was chosen for it, and what it gave."""

    chosen: Mapping[str, str]
    folder: RunFolder
    record: Mapping[str, Any]

    @property
    def network(self) -> Mapping[str, Any]:
        """The ledger's entry of the network that the run is after."""
        name = last_fit(self.record)
        return next(entry for entry in self.record["stages"] if entry["name"] == name)


@dataclass(frozen=True)
class Measure:
    """Something to compare runs by; shares are drawn linearly, the rest on a logarithmic scale."""

    heading: str
    of: Callable[[Job], float | None]
    told: Callable[[float], str]
    share: bool = False

    def values(self, jobs: Sequence[Job]) -> list[float]:
        """Return the measure of each run that has it."""
        return [value for job in jobs if (value := self.of(job)) is not None]


def percent(value: float) -> str:
    """Return a share as it is told."""
    return f"{100 * value:.1f} %"


def _megabytes(job: Job) -> float | None:
    stored = job.network.get("bytes")
    return None if stored is None else stored / KILO**2


def _seconds(job: Job) -> float:
    return float(sum(entry["seconds"] for entry in job.record["stages"] if not entry.get("control")))


def _milliseconds_an_answer(job: Job) -> float | None:
    seconds, images = job.network.get("answer_seconds"), job.record.get("data", {}).get("test")
    return KILO * seconds / images if seconds and images else None


TESTED = Measure("test", lambda job: job.record["result"].get(TEST), percent, share=True)
MEASURES = (
    Measure("val", lambda job: job.record["result"].get("val/accuracy"), percent, share=True),
    TESTED,
    Measure("MB kept", _megabytes, "{:.3g}".format),
    Measure("s to learn", _seconds, "{:.3g}".format),
    Measure("ms an answer", _milliseconds_an_answer, "{:.3g}".format),
)


def finished_jobs(outcomes: Sequence[Outcome]) -> tuple[list[Job], list[str], list[str]]:
    """Return the finished runs, the keys, but for the seed, in which the jobs differ, and a line on each other job."""
    chosen = [dict(one.lstrip("+").split("=", 1) for one in run.overrides if "=" in one) for run in outcomes]
    keys = dict.fromkeys(key for run in chosen for key in run)
    varied = [key for key in keys if len({run.get(key) for run in chosen}) > 1]
    jobs, missing = [], []
    for run, outcome in zip(chosen, outcomes, strict=True):
        own = {key: run[key] for key in varied if key in run}
        record = read_record(RunFolder(outcome.path)) if outcome.path is not None else None
        if outcome.path is not None and record is not None and record["status"] == FINISHED:
            jobs.append(Job(own, RunFolder(outcome.path), record))
        else:
            missing.append(f"{' '.join(f'{key}={value}' for key, value in own.items())}: {outcome.reason}")
    return jobs, [key for key in varied if key != SEED], missing


def grouped(keys: Sequence[str], jobs: Sequence[Job]) -> dict[tuple[str, ...], list[Job]]:
    """Return the runs by their values at ``keys``."""
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.chosen.get(key, "") for key in keys), []).append(job)
    return groups


def short(key: str) -> str:
    """Return the last part of a key or of a group's path."""
    return key.replace("/", ".").rpartition(".")[2]


def named(keys: Sequence[str], job: Job) -> str:
    """Return what was chosen for a run at ``keys``: values of groups as they are, those of keys with their names."""
    return " ".join(
        job.chosen[key] if short(key) == key and key != SEED else f"{short(key)} {job.chosen[key]}"
        for key in keys
        if key in job.chosen
    )
