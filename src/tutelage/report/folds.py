"""Cross-validation in a sweep: the runs of all folds as one result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.report.jobs import FOLD, SEED, TEST_MEASURE, Job, format_settings, group_jobs
from tutelage.terminal.intervals import CONFIDENCE_LEVEL, Interval, format_accuracy, wilson_interval

FOLDS_NOTE = (
    "Folds make one row: test is the accuracy over the test images of all folds (a mean over seeds for each image), in "
    f"brackets Wilson's {CONFIDENCE_LEVEL:.0%} interval."
)
FOLDS_CHOSEN_NOTE = (
    "These settings were chosen on images that other folds test: their accuracy over all folds is optimistic."
)
BY_IMAGES = "by images"
BY_IMAGES_NOTE = (
    f"{BY_IMAGES}: images of one group (data.group) are often right or wrong together, and the interval counts them as "
    "independent: it is too narrow."
)


@dataclass(frozen=True)
class PooledAccuracy:
    """The test accuracy over the folds of some runs.

    Attributes:
        interval: the accuracy with its interval.
        has_groups: whether images are in groups, so that they are not independent.
    """

    interval: Interval
    has_groups: bool

    def __str__(self) -> str:
        return format_accuracy(self.interval, BY_IMAGES if self.has_groups else "")


def has_folds(jobs: Sequence[Job]) -> bool:
    """Return whether a sweep varied the fold."""
    return any(FOLD in job.settings for job in jobs)


def pool_folds(jobs: Sequence[Job]) -> PooledAccuracy | None:
    """Return the test accuracy over the folds of runs that differ only in fold and seed.

    An image counts once, with the mean over the seeds of its fold.

    Returns:
        None where the fold was not varied, or no run was tested.
    """
    correct, count = 0.0, 0
    for members in group_jobs([FOLD], jobs).values() if has_folds(jobs) else ():
        if values := TEST_MEASURE.read_all(members):
            correct += float(np.mean(values)) * members[0].test_images
            count += members[0].test_images
    if not count:
        return None
    return PooledAccuracy(wilson_interval(correct, count), any(job.has_groups for job in jobs))


def average_folds(jobs: Sequence[Job], accuracies: Mapping[int, float]) -> list[float]:
    """Return the accuracy of each run or, where the fold was varied, of each seed over the images of its folds.

    Args:
        jobs: runs that differ only in fold and seed.
        accuracies: the accuracy of each run by its ``id``.
    """
    if not has_folds(jobs):
        return [accuracies[id(job)] for job in jobs]
    return [
        float(np.average([accuracies[id(job)] for job in members], weights=[job.test_images for job in members]))
        for members in group_jobs([SEED], jobs).values()
    ]


def describe_missing_folds(keys: Sequence[str], jobs: Sequence[Job]) -> list[str]:
    """Return a line for each setting and seed of which some folds have no test result."""
    lines = []
    for members in group_jobs([*keys, SEED], jobs).values() if has_folds(jobs) else ():
        folds = int(members[0].data_settings.get("folds", 0))
        tested = {int(job.data_settings["fold"]) for job in members if TEST_MEASURE.read(job) is not None}
        missing = sorted(set(range(folds)) - tested)
        if missing and tested:
            settings = format_settings([*keys, SEED], members[0])
            names = f"{'fold' if len(missing) == 1 else 'folds'} {', '.join(map(str, missing))} of {folds}"
            lines.append(f"incomplete cross-validation: {f'{settings}: ' if settings else ''}no result of {names}")
    return lines
