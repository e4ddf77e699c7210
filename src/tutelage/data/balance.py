"""Uneven classes: loss weights, and sampling that shows each class equally often."""

import numpy as np


def class_weights(labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """Return weights (C,) of the loss, inverse to each class's share of ``labels``, 1 on average over the images.

    A class without images has weight 0.
    """
    counts = np.bincount(labels, minlength=classes)
    present = np.count_nonzero(counts)
    return tuple(float(len(labels) / (present * count)) if count else 0.0 for count in counts)


def evened(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return entries that show each class as often as the largest one, and which duplicate each of them is.

    Args:
        labels: (n,) the class of each entry.

    Returns:
        entries (m,) int64 into ``labels``; copies (m,) int64, 0 for the first time an entry stands there.
    """
    most = int(np.bincount(labels).max())
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    entries = np.concatenate([np.resize(own, most) for own in members])
    copies = np.concatenate([np.arange(most) // len(own) for own in members])
    return entries.astype(np.int64), copies.astype(np.int64)
