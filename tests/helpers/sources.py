"""Sources with labels and splits, but without images."""

import numpy as np

from tutelage.data import UNKNOWN, Source
from tutelage.data.source import IndexNames


def make_source(labels: np.ndarray, test: int, unlabelled: int) -> Source:
    """Return a source: training images with these labels (N,), then test images with the same, then unlabelled ones."""
    count = len(labels)
    everything = np.arange(count + test + unlabelled)
    all_labels = np.concatenate([labels, np.resize(labels, test), np.full(unlabelled, UNKNOWN)])
    return Source(
        images=[],
        labels=all_labels,
        classes=tuple("abcdefgh"[: labels.max() + 1]),
        train=everything[:count],
        test=everything[count : count + test],
        val=everything[:0],
        unlabelled=everything[count + test :],
        names=IndexNames(len(everything)),
    )
