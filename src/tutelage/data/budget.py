"""The label budget: which of the training images keep their labels."""

from collections.abc import Mapping

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.groups import GroupedImages
from tutelage.data.source import Source
from tutelage.data.stratify import interleave_classes, shuffle_within_class
from tutelage.errors import UserError
from tutelage.randomness import Key


def draw_labelled(source: Source, config: DataConfig, sizes: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the training images that keep their labels, sorted, and a note on their number if there are groups.

    They are the first of a fixed order, so that a smaller budget is a part of a larger one with the same
    ``data.split_seed``. Groups are taken whole, in the order of their first images, as long as one of their classes, or
    ``data.labels`` in all, is not reached.

    Args:
        source: the data, with at most ``data.limit`` training images.
        config: holds the budget.
        sizes: (C,) the number of training images of each class, without ``data.limit``.

    Raises:
        UserError: there are fewer images than the budget asks for.
    """
    if config.labels_per_class is None and config.labels is None:
        return np.sort(source.train), ()
    orders = shuffle_within_class(source.train, source.labels, Key(config.split_seed, "budget"))
    budgets = _class_budgets(source, config, orders, sizes)
    total = _total_budget(config, len(source.train), int(sizes.sum())) if budgets is None else sum(budgets.values())
    if source.groups is not None:
        images = GroupedImages.of(interleave_classes(orders), source.labels, source.groups)
        chosen = _take_groups(images, budgets, total)
        labelled = images.select(chosen)
        return labelled, (_describe_groups(config, len(labelled), int(chosen.sum()), total),)
    if budgets is None:
        return np.sort(interleave_classes(orders)[:total]), ()
    return np.sort(np.concatenate([order[: budgets[c]] for c, order in orders.items()])), ()


def _class_budgets(
    source: Source, config: DataConfig, orders: Mapping[int, np.ndarray], sizes: np.ndarray
) -> dict[int, int] | None:
    """Return how many images of each class keep their labels; None if the budget is a number of images in all."""
    if (count := config.labels_per_class) is not None:
        for c, order in orders.items():
            if config.limit is None and count > len(order):
                raise UserError(f"data.labels_per_class={count}: class {source.classes[c]!r} has {len(order)} images")
        return {c: _cap(count, len(order), int(sizes[c])) for c, order in orders.items()}
    if (share := config.labels_share) is not None:
        return {c: max(1, round(share * len(order))) for c, order in orders.items()}
    return None


def _total_budget(config: DataConfig, images: int, unlimited: int) -> int:
    """Return ``data.labels``, a number of images in all."""
    count = int(config.labels or 0)
    if config.limit is None and count > images:
        raise UserError(f"data.labels={count}: there are {images} training images; give fewer, or a share (50%)")
    return _cap(count, images, unlimited)


def _cap(count: int, images: int, unlimited: int) -> int:
    """Return how many of some images keep their labels, where the budget asks for ``count``.

    If ``data.limit`` leaves no more images than the budget, half of them keep their labels, so that a strategy that
    needs unlabelled images finds some in a small trial too. ``unlimited`` is the number of images without the limit.
    """
    if count < images or count >= unlimited:
        return min(count, images)
    return max(1, images // 2)


def _take_groups(images: GroupedImages, budgets: Mapping[int, int] | None, total: int) -> np.ndarray:
    """Return (groups,) bool: whether each group keeps its labels."""
    counts = images.counts
    if budgets is None:
        sizes = np.array([count.sum() for _, count in counts])
        taken_before: np.ndarray = np.cumsum(sizes) - sizes
        return taken_before < total
    taken, chosen = dict.fromkeys(budgets, 0), np.zeros(len(counts), dtype=bool)
    for group, (classes, class_counts) in enumerate(counts):
        chosen[group] = any(taken[c] < budgets[c] for c in classes.tolist())
        if chosen[group]:
            for c, count in zip(classes.tolist(), class_counts.tolist(), strict=True):
                taken[c] += count
    return chosen


def _describe_groups(config: DataConfig, images: int, groups: int, asked: int) -> str:
    key = "labels" if config.labels_per_class is None else "labels_per_class"
    return f"labelled: {images:,} images of {groups:,} groups (data.{key}={getattr(config, key)} asks for {asked:,})"
