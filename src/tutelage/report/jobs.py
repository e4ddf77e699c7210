"""The runs of a sweep: what was chosen for each, what it gave, and by what they are compared."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.errors import UserError
from tutelage.report.gains import TEST
from tutelage.runs import FINISHED, RunFolder, last_fit, read_record
from tutelage.sweeps.folder import Outcome

SEED = "seed"
KILO = 1000.0
MEASURES_TOLD = (
    "Means over seeds, +- their standard deviation. MB kept: what is stored to answer. s to learn: all stages of a "
    "run, its control not counted. ms an answer: the mean over the test images, reading them included."
)


@dataclass(frozen=True)
class Job:
    """A finished run of a sweep: what was chosen for it, and what it gave."""

    chosen: Mapping[str, str]
    folder: RunFolder
    record: Mapping[str, Any]
    overrides: Sequence[str]

    def seen(self, key: str) -> float | None:
        """Return a result of the run; None where it has none by this name, or one that is no number."""
        value = self.record["result"].get(key)
        return float(value) if value is not None and math.isfinite(value) else None

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


TESTED = Measure("test", lambda job: job.seen(TEST), percent, share=True)
LOSS = Measure("val loss", lambda job: job.seen("val/loss"), "{:.4g}".format)  # where it is what is searched by
MEASURES = (
    Measure("val", lambda job: job.seen("val/accuracy"), percent, share=True),
    TESTED,
    Measure("MB kept", _megabytes, "{:.3g}".format),
    Measure("s to learn", _seconds, "{:.3g}".format),
    Measure("ms an answer", _milliseconds_an_answer, "{:.3g}".format),
)


def finished_jobs(outcomes: Sequence[Outcome], tested: bool = True) -> tuple[list[Job], list[str], list[str]]:
    """Return the finished runs, the keys, but for the seed, in which jobs differ, and a line on each that failed.

    Args:
        outcomes: what became of each job.
        tested: with what the test set said; else as if no run had met it.
    """
    chosen = [_chosen(outcome) for outcome in outcomes]
    varied = _varied(chosen)
    jobs, missing = [], []
    for run, outcome in zip(chosen, outcomes, strict=True):
        own = {key: run[key] for key in varied if key in run}
        record = _finished(outcome)
        if outcome.path is not None and record is not None:
            jobs.append(Job(own, RunFolder(outcome.path), record if tested else _untested(record), outcome.overrides))
        if outcome.reason:
            which = " ".join(f"{key}={value}" for key, value in own.items())
            missing.append(f"{'no result' if record is None else 'after its result'}: {which}: {outcome.reason}")
    return jobs, [key for key in varied if key != SEED], missing


def _finished(outcome: Outcome) -> dict[str, Any] | None:
    """Return the record of a job's run; None unless it is finished and can be read."""
    try:
        record = None if outcome.path is None else read_record(RunFolder(outcome.path))
    except UserError:
        return None
    return record if record is not None and record["status"] == FINISHED else None


def _untested(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a run as it would be, had it not met the test set."""

    def seen(entry: Mapping[str, Any]) -> dict[str, Any]:
        result = {key: value for key, value in entry["result"].items() if not key.startswith("test")}
        return {**entry, "result": result, "answer_seconds": None}

    return {**seen(record), "stages": [seen(stage) for stage in record["stages"]]}


def crossed(outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """Return the values that were asked for of each key, but for the seed; nothing unless they were fully crossed."""
    chosen = [_chosen(outcome) for outcome in outcomes]
    keys = [key for key in _varied(chosen) if key != SEED]
    places = {tuple(run.get(key, "") for key in keys) for run in chosen}
    values = {key: sorted({run.get(key, "") for run in chosen}) for key in keys}
    return values if len(places) == math.prod(map(len, values.values())) else {}


def _chosen(outcome: Outcome) -> dict[str, str]:
    return dict(one.lstrip("+").split("=", 1) for one in outcome.overrides if "=" in one)


def _varied(chosen: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys in which jobs differ."""
    keys = dict.fromkeys(key for run in chosen for key in run)
    return [key for key in keys if len({run.get(key) for run in chosen}) > 1]


def is_number(text: str) -> bool:
    """Return whether a value can be drawn along an axis."""
    try:
        float(text)
    except ValueError:
        return False
    return True


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
