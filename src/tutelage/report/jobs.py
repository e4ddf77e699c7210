"""The finished runs of a sweep: their settings, their results, and the measures that compare them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.report.gains import TEST_ACCURACY
from tutelage.runs import FINISHED, RunFolder, inspect_run, main_stage_name
from tutelage.sweeps.folder import Outcome
from tutelage.terminal.intervals import format_percent

SEED, FOLD = "seed", "data.fold"  # runs that differ only in these are repetitions: one row of a table
KILO = 1000.0
PERCENT_SIGN = "%"


@dataclass(frozen=True)
class Job:
    """A finished run of a sweep.

    Attributes:
        settings: the run's values of the keys that the sweep varied.
        folder: the run's folder.
        record: the content of its ``run.json``.
        overrides: the Hydra overrides that it was started with.
    """

    settings: Mapping[str, str]
    folder: RunFolder
    record: Mapping[str, Any]
    overrides: Sequence[str]

    def get_result(self, key: str) -> float | None:
        """Return a result of the run; None if it has no result of this name, or one that is not finite."""
        value = self.record["result"].get(key)
        return float(value) if value is not None and math.isfinite(value) else None

    @property
    def data_settings(self) -> Mapping[str, Any]:
        """The data's part of the run's identity."""
        settings: Mapping[str, Any] = self.record.get("identity", {}).get("data", {})
        return settings

    @property
    def test_images(self) -> int:
        """The number of images in the test set."""
        return int(self.record.get("data", {}).get("test") or 0)

    @property
    def has_groups(self) -> bool:
        """Whether images are in groups, so that they are not independent."""
        return bool(self.record.get("data", {}).get("grouped"))

    @property
    def network(self) -> Mapping[str, Any]:
        """The entry in ``run.json`` of the run's final network (see ``main_stage_name``)."""
        name = main_stage_name(self.record)
        return next(entry for entry in self.record["stages"] if entry["name"] == name)


@dataclass(frozen=True)
class Measure:
    """A number to compare runs by.

    Attributes:
        heading: its short name, for the terminal.
        name: its name on a page.
        read: returns it; None where a run has none.
        format: returns it as a text.
        is_share: it is a share from 0 to 1.
        is_cost: it is a size or a time, which differs little between seeds; others are results.
        basis: what the number holds for alone; empty where it holds everywhere.
    """

    heading: str
    name: str
    read: Callable[[Job], float | None]
    format: Callable[[float], str]
    is_share: bool = False
    is_cost: bool = False
    basis: str = ""

    @property
    def column(self) -> str:
        """The heading of its column on a page."""
        return f"{self.name}, {self.basis}" if self.basis else self.name

    def read_all(self, jobs: Sequence[Job]) -> list[float]:
        """Return the value of each run that has one."""
        return [value for job in jobs if (value := self.read(job)) is not None]


def _read_megabytes(job: Job) -> float | None:
    size = job.network.get("bytes")
    return None if size is None else size / KILO**2


def _read_training_seconds(job: Job) -> float:
    return float(sum(entry["seconds"] for entry in job.record["stages"] if not entry.get("control")))


def _read_milliseconds_per_image(job: Job) -> float | None:
    seconds, images = job.network.get("test_seconds"), job.test_images
    return KILO * seconds / images if seconds and images else None


def _result(heading: str, name: str, key: str, is_share: bool = True) -> Measure:
    """Return the measure that reads a result of a run."""
    return Measure(
        heading, name, lambda job: job.get_result(key), format_percent if is_share else "{:.4g}".format, is_share
    )


VALIDATION_MEASURE = _result("val", "validation accuracy", "val/accuracy")
TEST_MEASURE = _result("test", "test accuracy", TEST_ACCURACY)
OTHER_OBJECTIVES = {  # measures that are shown where they are the objective
    "val/loss": _result("val loss", "validation loss", "val/loss", is_share=False),
    "val/balanced_accuracy": _result("val balanced", "balanced validation accuracy", "val/balanced_accuracy"),
    "val/f1": _result("val F1", "validation F1", "val/f1"),
}
MACHINE = "this machine"
MEASURES = (
    VALIDATION_MEASURE,
    TEST_MEASURE,
    Measure("MB stored", "MB stored", _read_megabytes, "{:.3g}".format, is_cost=True),
    Measure("training s", "training seconds", _read_training_seconds, "{:.3g}".format, is_cost=True, basis=MACHINE),
    Measure("ms/image", "ms per image", _read_milliseconds_per_image, "{:.3g}".format, is_cost=True, basis=MACHINE),
)


def list_measures(jobs: Sequence[Job], objective: str) -> list[Measure]:
    """Return the measures that at least one run has; a rare objective comes first."""
    measures = [measure for measure in MEASURES if measure.read_all(jobs)]
    return [OTHER_OBJECTIVES[objective], *measures] if objective in OTHER_OBJECTIVES else measures


def read_finished_jobs(outcomes: Sequence[Outcome], tested: bool = True) -> tuple[list[Job], list[str], list[str]]:
    """Return the finished runs, the varied keys without seed and fold, and a line on each job that failed.

    Args:
        outcomes: how each job of the sweep ended.
        tested: include the results on the test set; False hides them, as if no run had been tested.
    """
    overrides = [_parse_overrides(outcome) for outcome in outcomes]
    varied = _find_varied_keys(overrides)
    jobs, failures = [], []
    for values, outcome in zip(overrides, outcomes, strict=True):
        settings = {key: values[key] for key in varied if key in values}
        record = _read_finished_record(outcome)
        if outcome.path is not None and record is not None:
            shown = record if tested else _without_test(record)
            jobs.append(Job(settings, RunFolder(outcome.path), shown, outcome.overrides))
        if outcome.reason:
            job_name = " ".join(f"{key}={value}" for key, value in settings.items())
            status = "no result" if record is None else "failed after its result"
            failures.append(f"{status}: {job_name}: {outcome.reason}")
    return jobs, [key for key in varied if key not in {SEED, FOLD}], failures


def _read_finished_record(outcome: Outcome) -> dict[str, Any] | None:
    """Return the record of a job's run; None unless the run is finished and its record can be read."""
    if outcome.path is None:
        return None
    state = inspect_run(RunFolder(outcome.path))
    return dict(state.record) if state.status == FINISHED else None


def _without_test(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a run's record without anything that was measured on the test set."""

    def strip(entry: Mapping[str, Any]) -> dict[str, Any]:
        result = {key: value for key, value in entry["result"].items() if not key.startswith("test")}
        return {**entry, "result": result, "test_seconds": None}

    stripped = {key: [strip(entry) for entry in record[key]] for key in ("stages", "given_teachers") if key in record}
    return {**strip(record), **stripped}


def find_varied_values(outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """Return the values of each key in which jobs differ, in the jobs' order."""
    overrides = [_parse_overrides(outcome) for outcome in outcomes]
    return {
        key: list(dict.fromkeys(job[key] for job in overrides if key in job)) for key in _find_varied_keys(overrides)
    }


def find_grid_values(outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """Return the values of each varied key, without seed and fold; empty unless the jobs form a full grid of them."""
    overrides = [_parse_overrides(outcome) for outcome in outcomes]
    keys = [key for key in _find_varied_keys(overrides) if key not in {SEED, FOLD}]
    points = {tuple(job.get(key, "") for key in keys) for job in overrides}
    values = {key: sorted({job.get(key, "") for job in overrides}) for key in keys}
    return values if len(points) == math.prod(map(len, values.values())) else {}


def _parse_overrides(outcome: Outcome) -> dict[str, str]:
    return dict(override.lstrip("+").split("=", 1) for override in outcome.overrides if "=" in override)


def _find_varied_keys(overrides: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys in which jobs differ."""
    keys = dict.fromkeys(key for job in overrides for key in job)
    return [key for key in keys if len({job.get(key) for job in overrides}) > 1]


def are_numbers(texts: Iterable[str]) -> bool:
    """Return whether texts are numbers that can be drawn along one axis: all in percent, or none."""
    texts = list(texts)
    try:
        list(map(to_number, texts))
    except ValueError:
        return False
    return len({text.endswith(PERCENT_SIGN) for text in texts}) <= 1


def to_number(text: str) -> float:
    """Return the number that a text is, perhaps one in percent; raise a ValueError if it is none."""
    return float(text.removesuffix(PERCENT_SIGN))


def group_jobs(keys: Sequence[str], jobs: Sequence[Job]) -> dict[tuple[str, ...], list[Job]]:
    """Return the runs grouped by their settings of ``keys``."""
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.settings.get(key, "") for key in keys), []).append(job)
    return groups


def shorten_key(key: str) -> str:
    """Return the last part of a config key or of a config group's path."""
    return key.replace("/", ".").rpartition(".")[2]


def format_settings(keys: Sequence[str], job: Job) -> str:
    """Return a run's settings of ``keys`` as a text: options of groups alone, other values after their key's name."""
    return " ".join(
        job.settings[key] if shorten_key(key) == key and key != SEED else f"{shorten_key(key)} {job.settings[key]}"
        for key in keys
        if key in job.settings
    )
