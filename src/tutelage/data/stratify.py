"""Random draws that keep classes in proportion."""

import numpy as np

from tutelage.randomness import Key


def order_within_class(indices: np.ndarray, labels: np.ndarray, key: Key) -> dict[int, np.ndarray]:
    """Return each class's indices in a random order that depends on ``key`` and the class alone."""
    return {
        int(c): key.generator("order within class", index=int(c)).permutation(indices[labels[indices] == c])
        for c in np.unique(labels[indices])
    }


def stratified(indices: np.ndarray, labels: np.ndarray, count: int, key: Key) -> np.ndarray:
    """Return ``count`` of ``indices``, sorted, each class in proportion (by largest remainders)."""
    orders = order_within_class(indices, labels, key)
    count = min(count, len(indices))
    exact = {c: count * len(order) / len(indices) for c, order in orders.items()}
    share = {c: int(value) for c, value in exact.items()}
    by_remainder = sorted(exact, key=lambda c: (share[c] - exact[c], c))
    for c in by_remainder[: count - sum(share.values())]:
        share[c] += 1
    return np.sort(np.concatenate([orders[c][: share[c]] for c in orders]))
