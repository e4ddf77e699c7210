"""What a method bought over several seeds: each network's mean, paired differences, shares of a gap."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000
FEWEST = 2  # runs that have a spread
REFERENCES = ("supervised", "none", "nothing")  # values that stand for doing without: what the others are compared with
TEACHER, TEST, FIRST_TASK = "teacher", "test/accuracy", "test/task-1"
LAST = "last student"
BEGUN_BY_TEACHER = ("noisy_student",)  # strategies whose teacher is where they begin, not what they aim at
ACCURACIES = re.compile(r"test/accuracy|test-[^/]+/accuracy|test/task-\d+")


class Interval(NamedTuple):
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def paired(differences: np.ndarray) -> Interval:
    """Return the mean of paired differences (N,) with Student's t interval; N is 2 or more."""
    from scipy.special import stdtrit

    count, mean = len(differences), float(np.mean(differences))
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2) * np.std(differences, ddof=1) / np.sqrt(count))
    return Interval(mean, mean - half, mean + half)


def ratio_of_means(above: np.ndarray, below: np.ndarray) -> Interval:
    """Return mean(above) / mean(below) over N runs, with the bootstrap's percentile interval over runs.

    Args:
        above: (N,), such as what each student has more than its control.
        below: (N,), such as what each teacher has more than that control.
    """
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, len(above), (RESAMPLES, len(above)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = above[drawn].mean(axis=1) / below[drawn].mean(axis=1)
        value = float(np.mean(above) / np.mean(below))
    low, high = np.percentile(ratios, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Interval(value, float(low), float(high))


def measures(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Return, for each trained network of some runs, its accuracies (N,) by name, in percent.

    Only what all of the runs have; the stages' order is kept.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for entry in records[0]["stages"]:
        name = entry["name"]
        entries = [next((e for e in record["stages"] if e["name"] == name), None) for record in records]
        if entry["kind"] != "fit" or None in entries:
            continue
        results = [e["result"] for e in entries if e is not None]
        keys = [key for key in results[0] if ACCURACIES.fullmatch(key) and all(key in result for result in results)]
        found[name] = {key: np.array([100 * result[key] for result in results]) for key in keys}
    return found


def gains(records: Sequence[Mapping[str, Any]], method: str) -> list[str]:
    """Return in sentences what ``method``, a stage of some runs, bought over the control by pairs of the same run.

    Where a teacher is the goal, also how much of the gap between control and teacher that closes; where tasks were
    learned one after another, how much of what fine-tuning forgets of the first one is kept.
    """
    found = measures(records)
    if len(records) < FEWEST:
        return []
    controls = [e["name"] for e in records[0]["stages"] if e.get("control") and e["name"] in found]
    if method not in found:  # runs of as many rounds as each was worth: each one's own last network
        own = np.array([100 * record["result"].get(TEST, np.nan) for record in records])
        method, found = LAST, {**found, LAST: {} if np.isnan(own).any() else {TEST: own}}
    told = []
    if len(controls) == 1 and TEST in found[method]:
        gain = found[method][TEST] - found[controls[0]][TEST]
        told.append(f"{method} - {controls[0]}: {interval(paired(gain))} points, by pairs of the same run")
        aimed_at = TEACHER in found and records[0]["identity"]["strategy"]["name"] not in BEGUN_BY_TEACHER
        gap = found[TEACHER][TEST] - found[controls[0]][TEST] if aimed_at else np.zeros(1)
        if gap.mean() > 0:
            told.append(f"{method} closes {_share(gain, gap)} of the gap from {controls[0]} to {TEACHER}")
    number = method.rpartition("-")[2]
    forgetful, newest = f"finetuning-{number}", f"test/task-{number}"
    if FIRST_TASK in found.get(forgetful, {}):
        begun = next(values[FIRST_TASK] for values in found.values() if FIRST_TASK in values)  # of task-1, or as given
        before, after, tuned = begun, found[method][FIRST_TASK], found[forgetful][FIRST_TASK]
        if (before - tuned).mean() > 0:
            told.append(f"{method} keeps {_share(after - tuned, before - tuned)} of what {forgetful} forgets of task-1")
        gain = found[method][newest] - found[forgetful][newest]
        told.append(f"{method} - {forgetful} on the new task-{number}: {interval(paired(gain))} points")
    return told


def _share(above: np.ndarray, below: np.ndarray) -> str:
    found = Interval(*(100 * end for end in ratio_of_means(above, below)))
    return interval(found, " %")


def interval(found: Interval, unit: str = "", sign: str = "") -> str:
    """Return an estimate and its interval in words; with ``sign="+"`` a gain has its sign."""
    return f"{found.value:{sign}.1f}{unit} (95 % interval {found.low:.1f} to {found.high:.1f})"
