"""Shares in percent, estimates with their 95 % interval, and that of an accuracy. Needs nothing but Python."""

import math
from statistics import NormalDist
from typing import NamedTuple

CONFIDENCE_LEVEL = 0.95
NO_VALUE = "-"  # where a table has none


class Interval(NamedTuple):
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def format_percent(share: float | None) -> str:
    """Return a share from 0 to 1 in percent; ``NO_VALUE`` for None."""
    return NO_VALUE if share is None else f"{100 * share:.1f} %"


def format_accuracy(accuracy: Interval, basis: str = "") -> str:
    """Return an accuracy in percent with its interval; ``basis`` says what the interval is over."""
    value, low, high = (f"{100 * share:.1f}" for share in accuracy)
    return f"{value} % ({low} to {high}{basis and f' {basis}'})"


def wilson_interval(correct: float, count: float) -> Interval:
    """Return the share ``correct / count`` with the 95 % interval of Wilson 1927.

    Args:
        correct: how many of the images were right; a mean over seeds need not be whole.
        count: the number of images, above 0.
    """
    square = NormalDist().inv_cdf((1 + CONFIDENCE_LEVEL) / 2) ** 2
    share = correct / count
    center = (share + square / (2 * count)) / (1 + square / count)
    half = math.sqrt(square * share * (1 - share) / count + (square / (2 * count)) ** 2) / (1 + square / count)
    return Interval(share, max(0.0, center - half), min(1.0, center + half))
