"""A network beside another on the same test images: the difference of their accuracies, with its interval."""

import math
from statistics import NormalDist

import numpy as np

from tutelage.data import Predictions
from tutelage.terminal.intervals import CONFIDENCE_LEVEL, Interval


def compare_predictions(first: Predictions, second: Predictions) -> Interval | None:
    """Return by how much the first network's accuracy is above the second's; None where their images differ.

    None, too, where there are no images.
    """
    are_same = np.array_equal(first.indices, second.indices) and np.array_equal(first.labels, second.labels)
    if not are_same or not len(first.labels):
        return None
    first_right, second_right = (each.probabilities.argmax(axis=1) == each.labels for each in (first, second))
    return paired_difference(
        int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum()), len(first_right)
    )


def paired_difference(first_only: int, second_only: int, count: int) -> Interval:
    """Return the difference of two accuracies on the same images, with its 95 % interval.

    The interval is that of Agresti and Min 2005 (Wald's, after half an image is added to each of the four cells): it
    counts the images on which the two disagree, so it is narrower than two intervals side by side suggest.

    Args:
        first_only: images that the first network alone gets right.
        second_only: those that the second alone gets right.
        count: all images.
    """
    gained, lost, total = first_only + 0.5, second_only + 0.5, count + 2
    shift = (gained - lost) / total
    half = (
        NormalDist().inv_cdf((1 + CONFIDENCE_LEVEL) / 2)
        * math.sqrt(gained + lost - (gained - lost) ** 2 / total)
        / total
    )
    return Interval((first_only - second_only) / count, shift - half, shift + half)
