"""What each choice of a sweep bought over doing without it, by pairs of runs that are alike but for that choice."""

from collections.abc import Sequence

import numpy as np

from tutelage.report.gains import FEWEST, REFERENCES, interval, paired
from tutelage.report.jobs import SEED, TESTED, Job, grouped, named
from tutelage.report.label_efficiency import LABEL_KEYS, budgets


def against_plain(keys: Sequence[str], jobs: Sequence[Job]) -> list[str]:
    """Return a line for each choice beside a reference (``supervised``, ``none``, ``nothing``) of the same key.

    It says what the choice has more in test accuracy, by pairs of the same seed; there is none where a choice has less
    than two pairs.
    """
    lines = []
    for key in keys:
        values = dict.fromkeys(job.chosen.get(key, "") for job in jobs)
        for reference in [value for value in values if value in REFERENCES][:1]:
            others = [other for other in keys if other != key]
            for members in grouped(others, jobs).values():
                lines += _lines(key, reference, _at(others, members), members)
    return lines


def _lines(key: str, reference: str, at: str, jobs: Sequence[Job]) -> list[str]:
    """Return the lines of runs that differ in ``key`` and in their seed alone."""
    by_value = {
        value: {job.chosen.get(SEED, ""): job for job in members if TESTED.of(job) is not None}
        for (value,), members in grouped([key], jobs).items()
    }
    plain, told = by_value.pop(reference, {}), []
    for members in by_value.values():
        pairs = [(members[seed], plain[seed]) for seed in members if seed in plain]
        if len(pairs) >= FEWEST:
            gain = np.array([100 * ((TESTED.of(one) or 0.0) - (TESTED.of(other) or 0.0)) for one, other in pairs])
            names = " - ".join(named([key], job) for job in pairs[0])
            told.append(f"{names}{at}: {interval(paired(gain), sign='+')} points, by pairs of the same seed")
    return told


def _at(keys: Sequence[str], jobs: Sequence[Job]) -> str:
    """Return where runs were compared that are alike in ``keys``: the number of labels in all, and what else it was."""
    job = jobs[0]
    parts = [named([key], job) for key in keys if key not in LABEL_KEYS and key in job.chosen]
    parts += [f"{budgets(key, jobs)[job.chosen[key]]:,} labels" for key in keys if key in LABEL_KEYS]
    return f" at {', '.join(parts)}" if parts else ""
