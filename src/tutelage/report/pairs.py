"""What each setting of a sweep gained over a reference, by pairs of runs that differ in this setting alone."""

from collections.abc import Sequence

import numpy as np

from tutelage.report.gains import MIN_RUNS, REFERENCES, estimate_mean, format_interval, measure_overlap
from tutelage.report.jobs import FOLD, SEED, TEST_MEASURE, Job, format_settings, group_jobs
from tutelage.report.label_efficiency import LABEL_KEYS, average_label_counts


def compare_with_references(keys: Sequence[str], jobs: Sequence[Job]) -> list[str]:
    """Return a line for each value of a key that also has a reference value (``supervised``, ``none``, ``nothing``).

    The line says what the value gained in test accuracy over the reference, paired by seed and fold; values with fewer
    than two pairs have no line.
    """
    lines = []
    for key in keys:
        values = dict.fromkeys(job.settings.get(key, "") for job in jobs)
        for reference in [value for value in values if value in REFERENCES][:1]:
            other_keys = [other for other in keys if other != key]
            for members in group_jobs(other_keys, jobs).values():
                lines += _compare_values(key, reference, _format_context(other_keys, members), members)
    return lines


def _compare_values(key: str, reference: str, context: str, jobs: Sequence[Job]) -> list[str]:
    """Return the lines of runs that differ only in ``key``, seed and fold."""
    by_value = {
        value: {_pair_key(job): job for job in members if TEST_MEASURE.read(job) is not None}
        for (value,), members in group_jobs([key], jobs).items()
    }
    reference_jobs, lines = by_value.pop(reference, {}), []
    for members in by_value.values():
        pairs = [(job, reference_jobs[pair]) for pair, job in members.items() if pair in reference_jobs]
        if len(pairs) >= MIN_RUNS:
            gains = np.array([100 * (_read_accuracy(job) - _read_accuracy(paired_job)) for job, paired_job in pairs])
            names = " - ".join(format_settings([key], job) for job in pairs[0])
            gain = format_interval(estimate_mean(gains, measure_overlap([job.record for job, _ in pairs])), sign="+")
            paired_by = "seed and fold" if FOLD in pairs[0][0].settings else "seed"
            lines.append(f"{names}{context}: {gain} points, paired by {paired_by}")
    return lines


def _pair_key(job: Job) -> tuple[str, str]:
    """Return what two runs have in common that are compared."""
    return job.settings.get(SEED, ""), job.settings.get(FOLD, "")


def _read_accuracy(job: Job) -> float:
    return TEST_MEASURE.read(job) or 0.0


def _format_context(keys: Sequence[str], jobs: Sequence[Job]) -> str:
    """Return what runs with the same settings of ``keys`` have in common: those settings, and the number of labels."""
    job = jobs[0]
    parts = [format_settings([key], job) for key in keys if key not in LABEL_KEYS and key in job.settings]
    parts += [f"{average_label_counts(key, jobs)[job.settings[key]]:,} labels" for key in keys if key in LABEL_KEYS]
    return f" at {', '.join(parts)}" if parts else ""
