"""Random draws that keep classes in proportion.

scikit-learn's StratifiedShuffleSplit and StratifiedKFold do the same from a seed alone; ours draw from a key, and of
one class a smaller draw is part of a larger one.
"""

from collections.abc import Mapping

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
    if not len(indices):
        return indices
    orders = shuffle_within_class(indices, labels, key)
    count = min(count, len(indices))
    quotas = {c: count * len(order) / len(indices) for c, order in orders.items()}
    counts = {c: int(quota) for c, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda c: (counts[c] - quotas[c], c))
    for c in by_remainder[: count - sum(counts.values())]:
        counts[c] += 1
    return np.sort(np.concatenate([orders[c][: counts[c]] for c in orders]))


def interleave_classes(orders: Mapping[int, np.ndarray]) -> np.ndarray:
    """Return the images of all classes in one order, of which each beginning has the classes in proportion.

    The first image of each class comes first. After these, the first N images are N seats, given to the classes by the
    method of Webster (Sainte-Lague), which never takes a seat away when N grows.

    Args:
        orders: the images of each class, in the order in which they are to come.
    """
    images = np.concatenate(list(orders.values()))
    ranks = np.concatenate([np.arange(len(order)) for order in orders.values()])
    sizes = np.repeat([len(order) for order in orders.values()], [len(order) for order in orders.values()])
    ordered: np.ndarray = images[np.lexsort(((ranks + 0.5) / sizes, ranks > 0))]
    return ordered


def deal_folds(orders: Mapping[int, np.ndarray], count: int) -> list[np.ndarray]:
    """Return ``count`` folds, each sorted: the images of all classes, dealt out in turn.

    The sizes of two folds, and the numbers of their images of a class, differ by one at most.
    """
    images = np.concatenate(list(orders.values()))
    return [np.sort(images[fold::count]) for fold in range(count)]
