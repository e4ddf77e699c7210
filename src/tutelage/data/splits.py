"""Who may see which image: label budgets, validation and the unlabelled pool, without overlap."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.source import Source, no_images
from tutelage.data.stratify import order_within_class, stratified
from tutelage.errors import UserError
from tutelage.randomness import Key

FEW_LABELS = 50  # a class; below it, images held out for validation cost more than they tell
INSIDE_SHARE = 0.1  # of the labelled images, held out by validation=inside


@dataclass(frozen=True)
class Splits:
    """Index arrays into a source; no index stands in two of them.

    Attributes:
        labelled: images to learn from, with labels.
        validation: images that pick the best epoch; empty where there is no validation.
        test: images touched once, after the last stage.
        pool: images to learn from without labels. Where the source knows their labels, these only measure
            pseudo-labels.
        validation_kind: none, inside, outside or own, as resolved.
        others: further test sets, by their names; touched when ``test`` is.
        blocks: where the source's shards begin in its index space (see ``Source``).
    """

    labelled: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    pool: np.ndarray
    validation_kind: str
    others: Mapping[str, np.ndarray] = field(default_factory=dict)
    blocks: np.ndarray = field(default_factory=no_images)


def split(source: Source, config: DataConfig) -> Splits:
    """Return who sees which image.

    The budget's images are the first of a fixed order within each class, so that the 10 labels a class of one run are
    among the 25 of another with the same ``data.split_seed``.

    Raises:
        UserError: a class has too few images for the budget, or nothing is left to validate on.
    """
    labels, train, test, own, unlabelled = source.labels, source.train, source.test, source.val, source.unlabelled
    others = source.others
    if config.limit is not None:
        key = Key(config.split_seed, "limit")
        train, test = (stratified(part, labels, config.limit, key) for part in (train, test))
        others = {name: stratified(part, labels, config.limit, key) for name, part in others.items()}
        own, unlabelled = (
            np.sort(key.generator("parts").permutation(part)[: config.limit]) for part in (own, unlabelled)
        )
    orders = order_within_class(train, labels, Key(config.split_seed, "budget"))
    whole = np.bincount(labels[source.train], minlength=len(source.classes))
    budgets = {c: _budget(config, order, source, c, int(whole[c])) for c, order in orders.items()}
    labelled = np.sort(np.concatenate([order[: budgets[c]] for c, order in orders.items()]))
    rest = np.setdiff1d(train, labelled)

    kind, count = _validation(config, labelled, len(orders), len(own))
    validation = np.empty(0, dtype=np.int64)
    key = Key(config.split_seed, "validation")
    if kind == "own":
        validation = own
    elif kind == "inside":
        held = max(len(orders), round(INSIDE_SHARE * len(labelled)))
        if held >= len(labelled):
            raise UserError(f"data.validation=inside: {len(labelled)} labels are too few to hold some out; use none")
        validation = stratified(labelled, labels, held, key)
        labelled = np.setdiff1d(labelled, validation)
    elif kind == "outside":
        if config.limit is not None:
            count = min(count, len(rest) // 2)
        if not 0 < count <= len(rest):
            told = f"only {len(rest)} images lie outside the label budget; lower it by data.labels_per_class"
            raise UserError(f"data.validation={config.validation}: {told}")
        validation = stratified(rest, labels, count, key)
        rest = np.setdiff1d(rest, validation)
    return Splits(
        labelled=labelled,
        validation=validation,
        test=test,
        pool=np.concatenate([rest.astype(unlabelled.dtype), unlabelled]) if len(rest) else unlabelled,
        validation_kind=kind,
        others=others,
        blocks=source.blocks,
    )


def _budget(config: DataConfig, order: np.ndarray, source: Source, c: int, whole: int) -> int:
    """Return how many labels of class ``c`` may be used, of those in ``order``; ``whole`` is its size without a limit.

    Where ``data.limit`` leaves no more images than the budget, half of them keep their labels: a strategy that needs
    images without labels finds some in a small trial too.
    """
    if config.labels_per_class is not None:
        if config.limit is None and config.labels_per_class > len(order):
            raise UserError(
                f"data.labels_per_class={config.labels_per_class}: class {source.classes[c]!r} has {len(order)} images"
            )
        if config.labels_per_class < len(order) or config.labels_per_class >= whole:
            return min(config.labels_per_class, len(order))
        return max(1, len(order) // 2)
    if config.labels is not None:
        return max(1, round(config.labels * len(order)))
    return len(order)


def _validation(config: DataConfig, labelled: np.ndarray, classes: int, own: int) -> tuple[str, int]:
    """Return the kind of validation and, for outside, how many images."""
    if config.validation == "auto":
        if own:
            return "own", own
        return ("none" if len(labelled) < FEW_LABELS * classes else "inside"), 0
    kind, _, count = config.validation.partition(":")
    return kind, int(count or 0)
