"""Networks measured on another test set: other pictures, whose classes are matched by their names."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tutelage.data import UNKNOWN, WITHOUT_DUPLICATES, ImageDataModule, Predictions, Source
from tutelage.data.datasets.download import OnProgress, ignore_progress
from tutelage.data.files.names import abbreviate, describe_similar
from tutelage.data.loading.workers import worker_deaths
from tutelage.errors import UserError
from tutelage.inference.classifier import Classifier
from tutelage.inference.other_data import EvaluationSet
from tutelage.models import compute_confusion_matrix, compute_metrics
from tutelage.report.answers import (
    ClassScore,
    Confusion,
    find_confusions,
    find_mistakes,
    mean_confidence,
    score_classes,
)
from tutelage.runs import RunFolder, is_tested, main_stage_name
from tutelage.terminal.intervals import Interval, wilson_interval

FinishedRun = tuple[RunFolder, Mapping[str, Any]]  # a run's folder and its ledger


@dataclass(frozen=True)
class Evaluation:
    """What networks answer on a test set.

    Attributes:
        classes: the names of the classes, in the order of the probabilities.
        source: the data.
        predictions: on the images whose classes the networks know; labels count ``classes``.
        unknown: the number of images that are left out, by their class, which the networks do not know.
        missing: classes of the networks that have no image.
        notes: what else is to be known about the test set.
    """

    classes: tuple[str, ...]
    source: Source
    predictions: Predictions
    unknown: Mapping[str, int]
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def images(self) -> int:
        """The number of images that were measured."""
        return len(self.predictions.labels)

    @cached_property
    def confusion(self) -> np.ndarray:
        """Counts (C, C) int64: rows are true classes, columns predicted ones."""
        return compute_confusion_matrix(self.predictions)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The metrics of ``compute_metrics``, without a prefix."""
        metrics = compute_metrics(self.predictions, self.classes, "test")
        return {name.removeprefix("test/"): value for name, value in metrics.items()}

    @property
    def accuracy(self) -> Interval:
        """Accuracy with its interval over these images."""
        return wilson_interval(int(np.trace(self.confusion)), self.images)

    @property
    def confidence(self) -> float:
        """The mean probability of the predicted classes."""
        return mean_confidence(self.predictions)

    def score_classes(self) -> list[ClassScore]:
        """Return the score of each class, in the order of ``classes``."""
        return score_classes(self.confusion, self.classes)

    def find_confusions(self, count: int) -> list[Confusion]:
        """Return the pairs of classes that are confused most often, at most ``count``, by falling number."""
        return find_confusions(self.confusion, self.classes, count)

    def find_mistakes(self, count: int) -> np.ndarray:
        """Return the positions (n,) in ``predictions`` of the wrong ones, the most confident first."""
        return find_mistakes(self.predictions, count)

    def describe_classes(self) -> list[str]:
        """Return a line on the classes of the data that are not known, and one on those that it lacks."""
        lines = []
        if self.unknown:
            counts = [f"{name} ({count:,})" for name, count in self.unknown.items()]
            total = sum(self.unknown.values())
            lines.append(
                f"{total:,} {'image is' if total == 1 else 'images are'} left out, of classes that the network does "
                f"not know: {abbreviate(counts)}"
            )
        if self.missing:
            lines.append(f"classes of the network without an image here: {abbreviate(self.missing)}")
        similar = describe_similar([*self.unknown, *self.missing]) if lines else ""
        return [*lines, f"alike, and taken for different classes: {similar}"] if similar else lines

    def to_json(self) -> dict[str, Any]:
        """Return all numbers as values that JSON can hold; shares of nothing are None."""
        accuracy = self.accuracy
        return {
            "images": self.images,
            "accuracy": accuracy.value,
            "interval": [accuracy.low, accuracy.high],
            **{name: self.metrics[name] for name in ("balanced_accuracy", "f1", "calibration_error")},
            "mean_confidence": self.confidence,
            "classes": [
                {
                    "name": score.name,
                    "images": score.images,
                    "predicted": score.predicted,
                    "correct": score.correct,
                    "recall": score.recall,
                    "precision": score.precision,
                }
                for score in self.score_classes()
            ],
            "confusion": self.confusion.tolist(),
            "missing_classes": list(self.missing),
            "unknown_classes": dict(self.unknown),
            "unreadable_images": len(self.source.left_out),
        }


@worker_deaths()
def evaluate_classifier(
    classifier: Classifier, images: EvaluationSet, on_progress: OnProgress = ignore_progress
) -> Evaluation:
    """Return what a classifier answers on a test set; images of classes that it does not know are left out.

    Args:
        classifier: of one or more networks.
        images: read as the classifier sees pictures.
        on_progress: called after each batch; may raise to stop.

    Raises:
        UserError: the classifier knows none of the classes.
    """
    source, classes = images.data.source, classifier.classes
    column_of = {name: column for column, name in enumerate(classes)}
    columns = np.array([column_of.get(name, UNKNOWN) for name in source.classes], dtype=np.int64)
    labels = columns[source.labels[images.indices]]
    names = Counter(source.classes[label] for label in source.labels[images.indices[labels == UNKNOWN]].tolist())
    if (labels == UNKNOWN).all():
        similar = describe_similar({*names, *classes})
        raise UserError(
            f"data.root={images.data.config.root}: the network knows none of its classes "
            f"({abbreviate(sorted(names))}), "
            f"but {abbreviate(classes)}{f' (alike: {similar})' if similar else ''}; name "
            "folders, or a table's labels, as the network's classes"
        )
    indices, labels = images.indices[labels != UNKNOWN], labels[labels != UNKNOWN]
    probabilities = _predict(classifier, images.data, indices, on_progress)
    present = {classes[label] for label in np.unique(labels).tolist()}
    return Evaluation(
        classes,
        source,
        Predictions(probabilities, labels, indices),
        dict(sorted(names.items())),
        tuple(name for name in classes if name not in present),
        images.notes,
    )


def _predict(classifier: Classifier, data: ImageDataModule, indices: np.ndarray, on_progress: OnProgress) -> np.ndarray:
    """Return the probabilities (N, C) float32 of the images at ``indices`` (N,)."""
    parts: list[np.ndarray] = []
    done = 0
    for batch in data.eval_dataloader(indices, classifier.batch_size):
        parts.append(classifier.compute_probabilities(batch.images).numpy())
        done += len(parts[-1])
        on_progress("evaluating", done / len(indices))
    return np.concatenate(parts)


def find_own_accuracy(runs: Sequence[FinishedRun], stage: str | None, task: int | None) -> float | None:
    """Return the accuracy of a run's network on the run's own test set, without pictures that it has learned from.

    None where there is no such number.

    Args:
        runs: whose networks are meant; of several as one there is none.
        stage: the stage whose network is meant; None for the last one.
        task: of a network with several the one that is meant, for which alone there is none; None where there is one.
    """
    (_, record), *others = runs
    if others or task is not None or not is_tested(record):
        return None
    name = main_stage_name(record) if stage is None else stage
    entry: Mapping[str, Any] = next(entry for entry in record["stages"] if entry["name"] == name)
    result: Mapping[str, float] = entry["result"]
    return result.get(f"test{WITHOUT_DUPLICATES}/accuracy", result.get("test/accuracy"))
