"""What a method gained over several seeds: accuracies by network, paired differences, shares of a gap closed.

The bootstrap replaces ``scipy.stats.bootstrap``, the quantile ``scipy.stats.t.ppf``: ``scipy.special`` alone imports
in less than half the time, and the table of a finished sweep is to appear at once.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tutelage.runs import train_entries
from tutelage.terminal.intervals import CONFIDENCE_LEVEL, Interval

RESAMPLES = 10_000
MIN_RUNS = 2  # fewer have no spread
REFERENCES = ("supervised", "none", "nothing")  # values of a key that mean doing without; others are compared with them
TEST_ACCURACY, FIRST_TASK = "test/accuracy", "test/task-1"
LAST_STUDENT = "last student"
ACCURACY_KEYS = re.compile(r"test/accuracy|test-[^/]+/accuracy|test/task-\d+")


def estimate_mean(values: np.ndarray, overlap: float = 0.0) -> Interval:
    """Return the mean of values (N,), such as paired differences, with Student's t interval; N must be 2 or more.

    Args:
        values: (N,), one for each run.
        overlap: of the runs' training images (see ``measure_overlap``).
    """
    from scipy.special import stdtrit

    count, mean = len(values), float(np.mean(values))
    half = float(stdtrit(count - 1, (1 + CONFIDENCE_LEVEL) / 2) * np.std(values, ddof=1) * np.sqrt(1 / count + overlap))
    return Interval(mean, mean - half, mean + half)


def estimate_share(values: np.ndarray, overlap: float = 0.0) -> Interval:
    """Return the mean of shares (N,), each from 0 to 1, as ``estimate_mean`` does; its interval ends at 0 and 1."""
    interval = estimate_mean(values, overlap)
    return Interval(interval.value, max(0.0, interval.low), min(1.0, interval.high))


def measure_overlap(records: Sequence[Mapping[str, Any]]) -> float:
    """Return what the variance of a mean gains where runs of several folds learn from nearly the same images.

    It is the ratio of test to training images, by which Nadeau and Bengio 2003, "Inference for the generalization
    error", correct 1 / N; 0 where runs are not folds.
    """
    data = [record.get("identity", {}).get("data", {}) for record in records]
    if len({settings.get("fold") for settings in data}) <= 1:
        return 0.0
    folds = min(int(settings.get("folds", 2)) for settings in data)
    return 1 / (folds - 1)


def estimate_ratio_of_means(numerators: np.ndarray, denominators: np.ndarray) -> Interval:
    """Return mean(numerators) / mean(denominators) over N runs, with the bootstrap's percentile interval over runs.

    Args:
        numerators: (N,), such as each student's gain over its control.
        denominators: (N,), such as each teacher's gain over the same control.
    """
    generator = np.random.default_rng(0)
    resamples = generator.integers(0, len(numerators), (RESAMPLES, len(numerators)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = numerators[resamples].mean(axis=1) / denominators[resamples].mean(axis=1)
        ratio = float(np.mean(numerators) / np.mean(denominators))
    low, high = np.percentile(ratios, [50 * (1 - CONFIDENCE_LEVEL), 50 * (1 + CONFIDENCE_LEVEL)])
    return Interval(ratio, float(low), float(high))


def collect_accuracies(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Return the accuracies of each trained network over some runs: network to metric to values (N,) in percent.

    Networks and metrics that not all runs have are left out; the order of the stages is kept.
    """
    accuracies: dict[str, dict[str, np.ndarray]] = {}
    for entry in train_entries(records[0]):
        name = entry["name"]
        entries = [next((e for e in record["stages"] if e["name"] == name), None) for record in records]
        if None in entries:
            continue
        results = [e["result"] for e in entries if e is not None]
        keys = [key for key in results[0] if ACCURACY_KEYS.fullmatch(key) and all(key in result for result in results)]
        accuracies[name] = {key: np.array([100 * result[key] for result in results]) for key in keys}
    return accuracies


def describe_gains(records: Sequence[Mapping[str, Any]], method: str) -> list[str]:
    """Return sentences on what ``method``, a stage of some runs, gained over the control, paired by run.

    Where a network's accuracy is the goal, such as a teacher's, a sentence says how much of the gap to it is closed.
    Where tasks were learned one after another, a sentence says how much of what fine-tuning forgets of the first task
    the method keeps.
    """
    if len(records) < MIN_RUNS:
        return []
    accuracies, overlap = collect_accuracies(records), measure_overlap(records)
    controls = [e["name"] for e in records[0]["stages"] if e.get("control") and e["name"] in accuracies]
    if method not in accuracies:  # the runs have different numbers of rounds: compare each run's own last network
        own = np.array([100 * record["result"].get(TEST_ACCURACY, np.nan) for record in records])
        method = LAST_STUDENT
        accuracies = {**accuracies, method: {} if np.isnan(own).any() else {TEST_ACCURACY: own}}
    sentences = []
    if len(controls) == 1 and TEST_ACCURACY in accuracies[method]:
        entry = next((entry for entry in train_entries(records[0]) if entry["name"] == method), {})
        sentences += _compare_with_control(accuracies, method, controls[0], entry.get("aims_at"), overlap)
    return sentences + _compare_forgetting(accuracies, method, overlap)


def _compare_with_control(
    accuracies: Mapping[str, Mapping[str, np.ndarray]], method: str, control: str, goal: str | None, overlap: float
) -> list[str]:
    """Return sentences on the gain over the control and, where a network is the goal, on the gap to it."""
    baseline = accuracies[control][TEST_ACCURACY]
    gain = accuracies[method][TEST_ACCURACY] - baseline
    sentences = [f"{method} - {control}: {format_interval(estimate_mean(gain, overlap))} points, paired by run"]
    gap = accuracies[goal][TEST_ACCURACY] - baseline if goal is not None and goal in accuracies else np.zeros(1)
    if gap.mean() > 0:
        sentences.append(f"{method} closes {_format_ratio(gain, gap)} of the gap from {control} to {goal}")
    return sentences


def _compare_forgetting(accuracies: Mapping[str, Mapping[str, np.ndarray]], method: str, overlap: float) -> list[str]:
    """Return sentences on the first and the newest task, compared with fine-tuning; none without fine-tuning."""
    number = method.rpartition("-")[2]
    finetuning, newest_task = f"finetuning-{number}", f"test/task-{number}"
    if FIRST_TASK not in accuracies.get(finetuning, {}):
        return []
    before = next(values[FIRST_TASK] for values in accuracies.values() if FIRST_TASK in values)  # trained or loaded
    after, finetuned = accuracies[method][FIRST_TASK], accuracies[finetuning][FIRST_TASK]
    sentences = []
    if (before - finetuned).mean() > 0:
        ratio = _format_ratio(after - finetuned, before - finetuned)
        sentences.append(f"{method} keeps {ratio} of what {finetuning} forgets of task-1")
    gains = accuracies[method][newest_task] - accuracies[finetuning][newest_task]
    gain = format_interval(estimate_mean(gains, overlap))
    return [*sentences, f"{method} - {finetuning} on the new task-{number}: {gain} points"]


def _format_ratio(numerators: np.ndarray, denominators: np.ndarray) -> str:
    percent = Interval(*(100 * value for value in estimate_ratio_of_means(numerators, denominators)))
    return format_interval(percent, " %")


def format_interval(interval: Interval, unit: str = "", sign: str = "") -> str:
    """Return an estimate and its interval as text; ``sign="+"`` writes a plus before a positive estimate."""
    return f"{interval.value:{sign}.1f}{unit} (95 % interval {interval.low:.1f} to {interval.high:.1f})"
