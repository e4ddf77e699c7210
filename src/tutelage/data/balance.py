"""Class weights of the loss for classes of unequal size.

They are those of scikit-learn's ``compute_class_weight("balanced")``, except that a class may have no images.
"""

import numpy as np


def class_weights(labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """Return weights (C,) of the loss, inverse to each class's share of ``labels``, 1 on average over the images.

    A class without images has weight 0.
    """
    counts = np.bincount(labels, minlength=classes)
    present = np.count_nonzero(counts)
    return tuple(float(len(labels) / (present * count)) if count else 0.0 for count in counts)
