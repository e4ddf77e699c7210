"""Classes of unequal size: their weights in the loss, and whether accuracy alone describes a result on them.

The weights are those of scikit-learn's ``compute_class_weight("balanced")``, except that a class may have no images.
"""

from collections.abc import Sequence

import numpy as np

UNEVEN_RATIO = 1.5  # of the largest class to the smallest


def class_weights(labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """Return weights (C,) of the loss, inverse to each class's share of ``labels``, 1 on average over the images.

    A class without images has weight 0.
    """
    counts = np.bincount(labels, minlength=classes)
    present = np.count_nonzero(counts)
    return tuple(float(len(labels) / (present * count)) if count else 0.0 for count in counts)


def are_uneven(counts: Sequence[int]) -> bool:
    """Return whether one class has more than 1.5 times another's images, so that accuracy hides how small classes fare.

    Args:
        counts: images of each class; classes without any do not count.
    """
    present = [count for count in counts if count]
    return bool(present) and max(present) > UNEVEN_RATIO * min(present)
