"""What a network predicts for a set of images. Needs no torch."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Predictions:
    """A network's predictions.

    Attributes:
        probabilities: (N, C) float32.
        labels: (N,) int64, what the images show.
        indices: (N,) int64, of the images in the source.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    indices: np.ndarray

    def select(self, which: np.ndarray) -> "Predictions":
        """Return the predictions on some of the images, (N,) bool."""
        return Predictions(self.probabilities[which], self.labels[which], self.indices[which])
