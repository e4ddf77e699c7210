"""The splits of a dataset: labelled, validation, test and unlabelled pool, under a label budget, without overlap."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.source import Source, empty_indices
from tutelage.data.stratify import draw_stratified, shuffle_within_class
from tutelage.errors import UserError
from tutelage.randomness import Key

FEW_LABELS = 50  # a class; with fewer, holding labels out for validation costs more than validation is worth
TEST_FRACTION = 5  # the part of the training images that becomes the test set is one in this many
INSIDE_SHARE = 0.1  # of the labelled images, held out by validation=inside


@dataclass(frozen=True)
class Splits:
    """Index arrays into a source; no index is in two of them.

    Attributes:
        labelled: images to learn from, with labels.
        validation: images on which the best epoch is selected; empty if there is no validation.
        test: images that are evaluated once, after the last stage.
        pool: images to learn from without labels. If the source knows their labels, these only measure pseudo-labels.
        validation_kind: none, inside, outside or own; never auto.
        further_tests: further test sets, by their names; evaluated when ``test`` is.
        blocks: the first index of each of the source's shards (see ``Source``).
    """

    labelled: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    pool: np.ndarray
    validation_kind: str
    further_tests: Mapping[str, np.ndarray] = field(default_factory=dict)
    blocks: np.ndarray = field(default_factory=empty_indices)


def split(source: Source, config: DataConfig) -> Splits:
    """Return the splits of a source.

    The budget's images are the first of a fixed order within each class, so that the 10 labels a class of one run are
    among the 25 of another with the same ``data.split_seed``.

    Of a source without a test set, a fifth of each class is the test set, the same for every seed.

    Raises:
        UserError: a class has too few images for the budget or for a test set, or none are left for validation.
    """
    source = _set_aside_test(source)
    source_sizes = np.bincount(source.labels[source.train], minlength=len(source.classes))
    source = _limit(source, config)
    labels, train = source.labels, source.train
    orders = shuffle_within_class(train, labels, Key(config.split_seed, "budget"))
    budgets = {c: _label_count(config, order, source, c, int(source_sizes[c])) for c, order in orders.items()}
    labelled = np.sort(np.concatenate([order[: budgets[c]] for c, order in orders.items()]))
    rest = np.setdiff1d(train, labelled)
    kind, count = _resolve_validation(config, labelled, len(orders), len(source.val))
    validation = empty_indices()
    key = Key(config.split_seed, "validation")
    if kind == "own":
        validation = source.val
    elif kind == "inside":
        count = max(len(orders), round(INSIDE_SHARE * len(labelled)))
        if count >= len(labelled):
            raise UserError(f"data.validation=inside: {len(labelled)} labels are too few to hold some out; use none")
        validation = draw_stratified(labelled, labels, count, key)
        labelled = np.setdiff1d(labelled, validation)
    elif kind == "outside":
        if config.limit is not None:
            count = min(count, len(rest) // 2)
        if not 0 < count <= len(rest):
            reason = f"only {len(rest)} images are outside the label budget; lower it by data.labels_per_class"
            raise UserError(f"data.validation={config.validation}: {reason}")
        validation = draw_stratified(rest, labels, count, key)
        rest = np.setdiff1d(rest, validation)
    unlabelled = source.unlabelled
    return Splits(
        labelled=labelled,
        validation=validation,
        test=source.test,
        pool=np.concatenate([rest.astype(unlabelled.dtype), unlabelled]) if len(rest) else unlabelled,
        validation_kind=kind,
        further_tests=source.further_tests,
        blocks=source.blocks,
    )


def _set_aside_test(source: Source) -> Source:
    """Return the source with a fifth of each training class as its test set; unchanged if it has a test set."""
    if len(source.test):
        return source
    labels, train = source.labels, source.train
    test = draw_stratified(train, labels, max(1, len(train) // TEST_FRACTION), Key(0, "data", "test"))
    rest = np.setdiff1d(train, test)
    lost = np.setdiff1d(labels[train], labels[rest])
    if len(lost):
        raise UserError(
            f"class {source.classes[lost[0]]!r} has too few images to set some aside for a test set; add images to it, "
            "or a test set to the data"
        )
    return replace(source, train=rest, test=test)


def _limit(source: Source, config: DataConfig) -> Source:
    """Return the source with at most ``data.limit`` images in each part; unchanged if there is no limit."""
    limit = config.limit
    if limit is None:
        return source
    key = Key(config.split_seed, "limit")

    def draw_labelled(part: np.ndarray) -> np.ndarray:
        return draw_stratified(part, source.labels, limit, key)

    def draw(part: np.ndarray) -> np.ndarray:
        return np.sort(key.generator("parts").permutation(part)[:limit])

    return replace(
        source,
        train=draw_labelled(source.train),
        test=draw_labelled(source.test),
        val=draw(source.val),
        unlabelled=draw(source.unlabelled),
        further_tests={name: draw_labelled(part) for name, part in source.further_tests.items()},
    )


def _label_count(config: DataConfig, order: np.ndarray, source: Source, c: int, unlimited: int) -> int:
    """Return how many images of class ``c`` keep their labels, of those in ``order``.

    If ``data.limit`` leaves no more images than the budget, half of them keep their labels, so that a strategy that
    needs unlabelled images finds some in a small trial too. ``unlimited`` is the size of the class without the limit.
    """
    if config.labels_per_class is not None:
        if config.limit is None and config.labels_per_class > len(order):
            raise UserError(
                f"data.labels_per_class={config.labels_per_class}: class {source.classes[c]!r} has {len(order)} images"
            )
        if config.labels_per_class < len(order) or config.labels_per_class >= unlimited:
            return min(config.labels_per_class, len(order))
        return max(1, len(order) // 2)
    if config.labels is not None:
        return max(1, round(config.labels * len(order)))
    return len(order)


def _resolve_validation(config: DataConfig, labelled: np.ndarray, classes: int, own: int) -> tuple[str, int]:
    """Return the kind of validation (none, inside, outside or own) and, for outside, the number of images."""
    if config.validation == "auto":
        if own:
            return "own", own
        return ("none" if len(labelled) < FEW_LABELS * classes else "inside"), 0
    kind, _, count = config.validation.partition(":")
    return kind, int(count or 0)
