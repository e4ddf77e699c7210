"""The splits of a dataset: labelled, validation, test and unlabelled pool, under a label budget, without overlap."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.budget import draw_labelled
from tutelage.data.duplicates import drop_duplicates
from tutelage.data.files.names import abbreviate
from tutelage.data.groups import GroupedImages, check_groups, without_evaluated_groups
from tutelage.data.source import UNKNOWN, Source, empty_indices
from tutelage.data.stratify import deal_folds, draw_stratified, shuffle_within_class
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
        notes: what the user should know about the splits.
        whole_test: (n,) the test set without ``data.limit``.
    """

    labelled: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    pool: np.ndarray
    validation_kind: str
    further_tests: Mapping[str, np.ndarray] = field(default_factory=dict)
    blocks: np.ndarray = field(default_factory=empty_indices)
    notes: tuple[str, ...] = ()
    whole_test: np.ndarray = field(default_factory=empty_indices)

    def find_part(self, indices: np.ndarray, count: int) -> np.ndarray:
        """Return the indices, ascending, of the images that are shown together with those at ``indices``.

        That is the smallest of these that has them all: labelled and validation images; these and the pool, which are
        the same for every budget; the test sets and ``indices``. Only the first ``count`` images are looked at.
        """

        def mark(*arrays: np.ndarray) -> np.ndarray:
            is_in = np.zeros(count, dtype=bool)
            for array in arrays:
                is_in[array[array < count]] = True
            return is_in

        wanted, labelled = mark(indices), mark(self.labelled, self.validation)
        if not (wanted & ~labelled).any():
            return np.flatnonzero(labelled) if wanted.any() else empty_indices()
        training = labelled | mark(self.pool)
        is_training = not (wanted & ~training).any()
        return np.flatnonzero(training if is_training else wanted | mark(self.test, *self.further_tests.values()))


def split(source: Source, config: DataConfig) -> Splits:
    """Return the splits of a source.

    The budget's images are the first of a fixed order, so that the 10 labels a class of one run are among the 25 of
    another with the same ``data.split_seed``.

    Of a source without a test set, a fold or a fifth of each class is the test set, the same for every seed. No group
    is in two of the splits, but for the labelled images and the pool. ``data.duplicates=drop`` leaves duplicates out
    once there is a test set, which therefore is the same with and without it.

    Raises:
        UserError: a class has too few images for the budget or for a test set, none are left for validation, given
            splits tear a group apart, or ``data.duplicates=drop`` leaves a class or the validation set empty.
    """
    check_groups(source, config)
    source = _with_test(source, config)
    whole_test = source.test
    source, drop_notes = drop_duplicates(source) if config.duplicates == "drop" else (source, ())
    source_sizes = np.bincount(source.labels[source.train], minlength=len(source.classes))
    source = _limit(source, config)
    labelled, notes = draw_labelled(source, config, source_sizes)
    rest = np.setdiff1d(source.train, labelled)
    kind = _resolve_validation(config, source, labelled)
    validation = source.val if kind == "own" else empty_indices()
    if kind == "inside":
        validation = _hold_out_inside(source, config, labelled)
        labelled = np.setdiff1d(labelled, validation)
        kind = kind if len(validation) else "none"
    elif kind == "outside":
        validation = _hold_out_outside(source, config, rest)
        rest = np.setdiff1d(rest, validation)
    unlabelled, pool_notes = without_evaluated_groups(source, validation)
    return Splits(
        labelled=labelled,
        validation=validation,
        test=source.test,
        pool=np.concatenate([rest.astype(unlabelled.dtype), unlabelled]) if len(rest) else unlabelled,
        validation_kind=kind,
        further_tests=source.further_tests,
        blocks=source.blocks,
        notes=(*drop_notes, *notes, *pool_notes),
        whole_test=whole_test,
    )


def identify_test(source: Source, splits: Splits) -> tuple[str, str]:
    """Return digests of all labelled images and of the test set without ``data.limit``, by names and labels."""
    outside_shards = int(source.blocks[0]) if len(source.blocks) else len(source.labels)
    labelled = np.flatnonzero(source.labels[:outside_shards] != UNKNOWN)
    return _digest_names(source, labelled), _digest_names(source, np.sort(splits.whole_test))


def _digest_names(source: Source, indices: np.ndarray) -> str:
    names = hashlib.sha256()
    for index, label in zip(indices.tolist(), source.labels[indices].tolist(), strict=True):
        names.update(f"{source.names[index]}\0{label}\0".encode(errors="surrogateescape"))
    return names.hexdigest()


def _with_test(source: Source, config: DataConfig) -> Source:
    """Return the source with a test set: its own, the fold ``data.fold``, or else a fifth of each training class."""
    if config.folds is not None and config.fold is not None:
        test = _deal(source, config, config.folds)[config.fold]
    elif len(source.test):
        return source
    else:
        count, key = max(1, len(source.train) // TEST_FRACTION), Key(0, "data", "test")
        test = _draw(source, source.train, count, key)
    rest = np.setdiff1d(source.train, test)
    if not len(test):
        raise UserError(
            "no group can be set aside for a test set, as each has all images of a class; add groups, or a test set to "
            "the data"
        )
    lost = np.setdiff1d(source.labels[source.train], source.labels[rest])
    if len(lost):
        few = "images" if source.groups is None else "groups"
        raise UserError(
            f"class {source.classes[int(lost[0])]!r} has too few {few} to set some aside for a test set; add {few} to "
            "it, or a test set to the data"
        )
    return replace(source, train=rest, test=test)


def _deal(source: Source, config: DataConfig, folds: int) -> list[np.ndarray]:
    """Return the folds of the training images: the same for every seed, with classes in proportion and whole groups."""
    if len(source.test):
        name = config.target.rpartition(".")[2] + ("" if config.root is None else f" ({config.root})")
        raise UserError(
            f"data.folds={folds}: {name} has a test set of its own, and folds are for data without one; leave "
            "data.folds and data.fold out"
        )
    key = Key(0, "data", "folds")
    if source.groups is None:
        few, sizes = "images", np.bincount(source.labels[source.train], minlength=len(source.classes))
    else:
        images = GroupedImages.of(source.train, source.labels, source.groups)
        classes = np.concatenate([classes for classes, _ in images.counts])
        few, sizes = "groups", np.bincount(classes, minlength=len(source.classes))
    short = [f"{source.classes[c]!r} has {sizes[c]}" for c in np.flatnonzero(sizes < folds) if sizes[c]]
    if short:
        raise UserError(
            f"data.folds={folds}: fewer {few} than folds: class {abbreviate(short)}; give fewer folds, or add {few}"
        )
    if source.groups is None:
        return deal_folds(shuffle_within_class(source.train, source.labels, key), folds)
    return images.deal(folds, key)


def _draw(source: Source, indices: np.ndarray, count: int, key: Key, keep_classes: bool = True) -> np.ndarray:
    """Return ``count`` labelled images, sorted, classes in proportion; in groups, about as many in whole groups."""
    if source.groups is None:
        return draw_stratified(indices, source.labels, count, key)
    return GroupedImages.of(indices, source.labels, source.groups).draw(count, key, keep_classes)


def _hold_out_inside(source: Source, config: DataConfig, labelled: np.ndarray) -> np.ndarray:
    """Return the validation images that ``data.validation=inside`` takes from the labelled ones."""
    count = max(len(np.unique(source.labels[labelled])), round(INSIDE_SHARE * len(labelled)))
    if count >= len(labelled):
        raise UserError(f"data.validation=inside: {len(labelled)} labels are too few to hold some out; use none")
    validation = _draw(source, labelled, count, Key(config.split_seed, "validation"))
    if not len(validation) and config.validation == "inside":
        raise UserError(
            "data.validation=inside: no group can be held out, as each has all labelled images of a class; use none"
        )
    return validation


def _hold_out_outside(source: Source, config: DataConfig, rest: np.ndarray) -> np.ndarray:
    """Return the validation images that ``data.validation=outside:N`` takes from those beside the budget."""
    count = int(config.validation.partition(":")[2])
    if config.limit is not None:
        count = min(count, len(rest) // 2)
    if not 0 < count <= len(rest):
        reason = f"only {len(rest)} images are outside the label budget; lower it by data.labels_per_class"
        raise UserError(f"data.validation={config.validation}: {reason}")
    return _draw(source, rest, count, Key(config.split_seed, "validation"), keep_classes=False)


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


def _resolve_validation(config: DataConfig, source: Source, labelled: np.ndarray) -> str:
    """Return the kind of validation: none, inside, outside or own."""
    if config.validation != "auto":
        return config.validation.partition(":")[0]
    if len(source.val):
        return "own"
    return "none" if len(labelled) < FEW_LABELS * len(np.unique(source.labels[source.train])) else "inside"
