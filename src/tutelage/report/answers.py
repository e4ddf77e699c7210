"""What a network's predictions say: scores of classes, confusions, mistakes, calibration."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.data import Predictions
from tutelage.models.evaluation import CALIBRATION_BINS


@dataclass(frozen=True)
class ClassScore:
    """How one class fares.

    Attributes:
        name: of the class.
        images: its images.
        predicted: images that are taken for it.
        correct: images of it that are taken for it.
    """

    name: str
    images: int
    predicted: int
    correct: int

    @property
    def recall(self) -> float | None:
        """The share of its images that are taken for it; None without images."""
        return self.correct / self.images if self.images else None

    @property
    def precision(self) -> float | None:
        """The share of what is taken for it that shows it; None where nothing is."""
        return self.correct / self.predicted if self.predicted else None


@dataclass(frozen=True)
class Confusion:
    """Images of the class ``truth`` that are taken for the class ``predicted``: how many, and of how many."""

    truth: str
    predicted: str
    count: int
    images: int


@dataclass(frozen=True)
class Bins:
    """Images in bins of their confidence.

    Attributes:
        edges: (B + 1,) of the bins, from 0 to 1.
        known: (B,) the images whose true class is known.
        right: (B,) the correct ones among them.
    """

    edges: np.ndarray
    known: np.ndarray
    right: np.ndarray


def score_classes(confusion: np.ndarray, classes: Sequence[str]) -> list[ClassScore]:
    """Return the score of each class by counts (C, C), whose rows are true classes and columns predicted ones."""
    counts = (confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal())
    return [ClassScore(*score) for score in zip(classes, *(part.tolist() for part in counts), strict=True)]


def find_confusions(confusion: np.ndarray, classes: Sequence[str], count: int) -> list[Confusion]:
    """Return the pairs of classes that are confused most often, at most ``count``, by falling number."""
    wrong = confusion - np.diag(confusion.diagonal())
    pairs = np.argsort(-wrong, axis=None, kind="stable")[:count]
    rows, columns = (part.tolist() for part in np.unravel_index(pairs, wrong.shape))
    return [
        Confusion(classes[row], classes[column], int(wrong[row, column]), int(confusion[row].sum()))
        for row, column in zip(rows, columns, strict=True)
        if wrong[row, column]
    ]


def find_mistakes(predictions: Predictions, count: int) -> np.ndarray:
    """Return the positions (n,) in predictions with known labels of the wrong ones, the most confident first."""
    probabilities = predictions.probabilities
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != predictions.labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:count]


def bin_by_confidence(predictions: Predictions) -> Bins:
    """Return predictions with known labels in bins of equal width."""
    edges = np.linspace(0.0, 1.0, CALIBRATION_BINS + 1)
    confidence = predictions.probabilities.max(axis=1)
    is_correct = predictions.probabilities.argmax(axis=1) == predictions.labels
    known, right = (np.histogram(part, edges)[0] for part in (confidence, confidence[is_correct]))
    return Bins(edges, known, right)


def mean_confidence(predictions: Predictions) -> float:
    """Return the mean probability of the predicted classes."""
    return float(predictions.probabilities.max(axis=1).astype(np.float64).mean())
