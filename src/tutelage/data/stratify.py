"""Random draws that keep classes in proportion.

scikit-learn's StratifiedShuffleSplit does the same from a seed alone; ours draws from a key, and of one class a smaller
draw is part of a larger one.
"""

import numpy as np

from tutelage.randomness import Key


def shuffle_within_class(indices: np.ndarray, labels: np.ndarray, key: Key) -> dict[int, np.ndarray]:
    """Return each class's indices in a random order that depends on ``key`` and the class alone."""
    return {
        int(c): key.generator("order within class", index=int(c)).permutation(indices[labels[indices] == c])
        for c in np.unique(labels[indices])
    }


def draw_stratified(indices: np.ndarray, labels: np.ndarray, count: int, key: Key) -> np.ndarray:
    """Return ``count`` of ``indices``, sorted, each class in proportion (by largest remainders)."""
    orders = shuffle_within_class(indices, labels, key)
    count = min(count, len(indices))
    quotas = {c: count * len(order) / len(indices) for c, order in orders.items()}
    counts = {c: int(quota) for c, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda c: (counts[c] - quotas[c], c))
    for c in by_remainder[: count - sum(counts.values())]:
        counts[c] += 1
    return np.sort(np.concatenate([orders[c][: counts[c]] for c in orders]))
