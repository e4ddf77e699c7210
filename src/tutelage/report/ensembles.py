"""Several runs as one: the mean of the probabilities that their networks give the test images. Needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tutelage.data import UNKNOWN, Predictions
from tutelage.errors import UserError
from tutelage.report.jobs import FOLD, TEST_MEASURE, Job, format_settings, group_jobs
from tutelage.runs import RunFolder, main_stage_name, stage_folders
from tutelage.runs.predictions import read_classes, read_predictions
from tutelage.runs.weight_sources import TEST_IDENTITY
from tutelage.terminal.intervals import Interval, format_accuracy, wilson_interval

MIN_RUNS = 2

Run = tuple[RunFolder, Mapping[str, Any]]  # a finished and tested run's folder, and its ledger


@dataclass(frozen=True)
class Ensemble:
    """Several runs as one.

    Attributes:
        accuracies: the test accuracy of each run.
        interval: that of the mean of their probabilities, with its interval.
        images: the number of test images.
    """

    accuracies: Sequence[float]
    interval: Interval
    images: int


def combine_runs(runs: Sequence[Run]) -> Ensemble:
    """Return several runs as one, from the predictions that they have stored.

    Raises:
        UserError: there are fewer than two, or they were not tested on the same images and classes.
    """
    if len(runs) < MIN_RUNS:
        raise UserError("an ensemble needs two runs or more")
    if len({folder.path.resolve() for folder, _ in runs}) < len(runs):
        raise UserError("an ensemble has each run once: the same one is named twice")
    (first, record), *others = runs
    mean, classes = _read(first, record)
    accuracies = [_accuracy(mean)]
    for folder, other_record in others:
        predictions, other_classes = _read(folder, other_record)
        if other_classes != classes:
            raise UserError(f"{folder.path}: its classes differ from those of {first.path}; their answers have no mean")
        if _test_set(other_record) != _test_set(record) or not _same_images(predictions, mean):
            raise UserError(
                f"{folder.path}: it was tested on other images than {first.path}; name runs on the same data, with the "
                "same data.folds, data.fold, data.group and data.limit"
            )
        accuracies.append(_accuracy(predictions))
        mean = replace(mean, probabilities=mean.probabilities + predictions.probabilities)  # only their order matters
    accuracy, images = _accuracy(mean), int((mean.labels != UNKNOWN).sum())
    return Ensemble(accuracies, wilson_interval(round(accuracy * images), images), images)


def combine_seeds(keys: Sequence[str], jobs: Sequence[Job]) -> dict[str, Ensemble]:
    """Return what the seeds of each setting of a sweep are as one, by the setting as a text.

    Args:
        keys: those that the sweep varied, without seed and fold.
        jobs: its finished runs.

    Seeds that were tested on other images, or learned tasks, are left out.
    """
    ensembles = {}
    for members in group_jobs([*keys, FOLD], jobs).values():
        tested = [(job.folder, job.record) for job in members if TEST_MEASURE.read_all([job])]
        if len(tested) < MIN_RUNS:
            continue
        try:
            ensembles[format_settings([*keys, FOLD], members[0])] = combine_runs(tested)
        except (OSError, UserError):  # other test images, or files of the runs that are gone
            continue
    return ensembles


def describe_ensembles(ensembles: Mapping[str, Ensemble]) -> list[str]:
    """Return a line for each setting's seeds (``combine_seeds``): the accuracy of all of them as one."""
    return [
        f"{settings and f'{settings}: '}the mean answer of {len(ensemble.accuracies)} seeds is right for "
        f"{format_accuracy(ensemble.interval)} of the test images, one alone for "
        f"{100 * np.mean(ensemble.accuracies):.1f} % on average"
        for settings, ensemble in ensembles.items()
    ]


def _read(folder: RunFolder, record: Mapping[str, Any]) -> tuple[Predictions, list[str]]:
    """Return the predictions of a run's network on the test set, and the names of its classes."""
    file = stage_folders(folder, record)[main_stage_name(record)].test_file
    return read_predictions(file), read_classes(file)


def _test_set(record: Mapping[str, Any]) -> Any:
    return record.get("data", {}).get(TEST_IDENTITY)


def _same_images(predictions: Predictions, others: Predictions) -> bool:
    return np.array_equal(predictions.indices, others.indices) and np.array_equal(predictions.labels, others.labels)


def _accuracy(predictions: Predictions) -> float:
    known = predictions.labels != UNKNOWN
    return float(np.mean(predictions.probabilities[known].argmax(axis=1) == predictions.labels[known]))
