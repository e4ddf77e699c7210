"""Draws of whole groups: the images of one patient, video or burst stay together.

scikit-learn's StratifiedGroupKFold deals groups to folds too. Ours draws from a key, and minds the sizes of folds as it
does classes.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.source import UNKNOWN, Source
from tutelage.errors import UserError
from tutelage.randomness import Key

MAX_ORDERS = 16  # random orders of which a draw keeps the best
MAX_EXAMPLES = 2  # groups that a message names
MAX_STEPS = 20_000  # groups in all of these orders; there is one order at least
PASSES = 3  # through one order
DIGITS = 9  # of what is compared: sums that differ by rounding, as those of another processor may, are equal


def read_groups(groups: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return the groups (n,) int64 of images (see ``Source.groups``); ``UNKNOWN`` for one that is its own group."""
    numbers = np.full(len(indices), UNKNOWN, dtype=np.int64)
    inside = indices < len(groups)
    numbers[inside] = groups[indices[inside]]
    return numbers


@dataclass(frozen=True)
class GroupedImages:
    """Labelled images in groups.

    Attributes:
        indices: (n,) of the images.
        labels: (n,) their classes.
        groups: (n,) their groups; ``UNKNOWN`` for one that is its own group.
    """

    indices: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, indices: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> "GroupedImages":
        """Return the images at ``indices`` (n,) of a source with these labels and groups."""
        return cls(indices, labels[indices], read_groups(groups, indices))

    @cached_property
    def numbers(self) -> np.ndarray:
        """The group (n,) of each image, numbered from 0 in the order in which groups first appear."""
        own = self.groups.max(initial=UNKNOWN) + 1 + np.arange(len(self.groups))
        _, first, inverse = np.unique(
            np.where(self.groups == UNKNOWN, own, self.groups), return_index=True, return_inverse=True
        )
        rank = np.empty(len(first), dtype=np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        numbers: np.ndarray = rank[inverse]
        return numbers

    @cached_property
    def counts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each group, its classes and the number of its images of each."""
        classes = int(self.labels.max(initial=0)) + 1
        pairs, counts = np.unique(self.numbers * classes + self.labels, return_counts=True)
        ends = np.flatnonzero(np.diff(pairs // classes)) + 1
        return list(zip(np.split(pairs % classes, ends), np.split(counts, ends), strict=True))

    def select(self, chosen: np.ndarray) -> np.ndarray:
        """Return the images, sorted, of the groups for which ``chosen`` (groups,) is true."""
        return np.sort(self.indices[chosen[self.numbers]])

    @cached_property
    def _shares(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each group, columns and what part of each column it is: its classes, and all images as the last column."""
        totals = self._totals
        shares = []
        for classes, counts in self.counts:
            columns, amounts = np.append(classes, len(totals) - 1), np.append(counts, counts.sum())
            shares.append((columns, amounts / totals[columns]))
        return shares

    @cached_property
    def _totals(self) -> np.ndarray:
        return np.append(np.bincount(self.labels), len(self.labels))

    def draw(self, count: int, key: Key, keep_classes: bool = True) -> np.ndarray:
        """Return about ``count`` images, sorted: whole groups, sizes and classes as near to proportion as found.

        Groups come in a random order, and one is taken, or put back, if the draw comes nearer to the same part of each
        class and of all images; of several orders the best is kept.

        Args:
            count: the number of images.
            key: of the random orders.
            keep_classes: of each class some images stay behind. Where that forbids every group, the draw is empty.
        """
        # of each class and of all images, the largest part to draw: not quite the last image
        limits = 1 - 0.5 / np.maximum(1, self._totals) if keep_classes else np.full(len(self._totals), np.inf)
        orders = max(1, min(MAX_ORDERS, MAX_STEPS // len(self.counts)))
        part = count / len(self.indices)
        draws = [self._draw_in_order(part, limits, key.generator("groups", index=order)) for order in range(orders)]
        _, _, chosen = min(draws, key=lambda draw: draw[:2])
        return self.select(chosen)

    def _draw_in_order(
        self, part: float, limits: np.ndarray, generator: np.random.Generator
    ) -> tuple[bool, float, np.ndarray]:
        """Return whether a draw is empty, its squared deviation from ``part``, and whether each group is in it."""
        drawn = np.zeros(len(self._totals))  # of each class and of all images, the part that is drawn
        chosen = np.zeros(len(self._shares), dtype=bool)
        best_alone, least_loss = UNKNOWN, np.inf
        for group in np.tile(generator.permutation(len(self._shares)), PASSES).tolist():
            columns, shares = self._shares[group]
            step = -shares if chosen[group] else shares
            if (drawn[columns] + step > limits[columns]).any():
                continue
            loss = round(float((step * (2 * (drawn[columns] - part) + step)).sum()), DIGITS)
            if loss < 0:
                chosen[group] = not chosen[group]
                drawn[columns] += step
            elif loss < least_loss:
                best_alone, least_loss = group, loss
        if not chosen.any() and best_alone != UNKNOWN:  # even the smallest group is large
            chosen[best_alone] = True
            columns, shares = self._shares[best_alone]
            drawn[columns] += shares
        deviation = round(float(((drawn - part)[self._totals > 0] ** 2).sum()), DIGITS)
        return not chosen.any(), deviation, chosen

    def deal(self, count: int, key: Key) -> list[np.ndarray]:
        """Return ``count`` folds of whole groups, each sorted.

        Groups come by their size, and each goes to the fold that has least of its classes, and of all images, so far.
        """
        loads = np.zeros((count, len(self._totals)))
        weights = np.round([shares.sum() for _, shares in self._shares], DIGITS)
        order = key.generator("groups").permutation(len(weights))
        folds = np.empty(len(weights), dtype=np.int64)
        for group in order[np.argsort(-weights[order], kind="stable")].tolist():
            columns, shares = self._shares[group]
            folds[group] = fold = int(np.argmin(np.round(loads[:, columns] @ shares, DIGITS)))
            loads[fold, columns] += shares
        return [self.select(folds == fold) for fold in range(count)]


def check_groups(source: Source, config: DataConfig) -> None:
    """Raise a UserError if ``data.group`` has no effect, or if two of the given splits have a group in common."""
    if source.groups is None:
        if config.group is not None:
            name = config.target.rpartition(".")[2]
            raise UserError(f"data.group={config.group}: {name}.read() returns a Source without groups; set it to null")
        return
    evaluated = {"test": source.test, **{f"test-{name}": part for name, part in source.further_tests.items()}}
    learned = {"train": source.train, "val": source.val}
    parts = learned | evaluated
    setting = "" if config.group is None else f"data.group={config.group}: "
    for first, second in [("train", "val"), *((first, second) for second in evaluated for first in learned)]:
        if examples := _find_shared_groups(source, source.groups, parts[first], parts[second]):
            raise UserError(
                f"{setting}groups that are in {first} and in {second} ({len(examples):,}), such as that of "
                f"{', that of '.join(examples[:MAX_EXAMPLES])}; put each into one of them, or set data.group=null"
            )


def _find_shared_groups(source: Source, groups: np.ndarray, first: np.ndarray, second: np.ndarray) -> list[str]:
    """Return for each group that two parts (n,) have in common the names of an image of the first and of the second."""
    first_groups, second_groups = read_groups(groups, first), read_groups(groups, second)
    shared, first_at, second_at = np.intersect1d(first_groups, second_groups, return_indices=True)
    return [
        f"{source.names[int(first[at])]} and {source.names[int(second[other])]}"
        for group, at, other in zip(shared.tolist(), first_at, second_at, strict=True)
        if group != UNKNOWN
    ]


def without_evaluated_groups(source: Source, validation: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the unlabelled images (n,) without those whose group is evaluated, and a note on their number.

    Args:
        source: the data, with its test set.
        validation: (n,) the indices of the validation images.
    """
    unlabelled = source.unlabelled
    if source.groups is None:
        return unlabelled, ()
    evaluated = np.concatenate([source.test, validation, *source.further_tests.values()])
    groups = np.setdiff1d(read_groups(source.groups, evaluated), UNKNOWN)
    in_groups = np.flatnonzero(unlabelled < len(source.groups))  # seldom many: images of shards have none
    left_out = in_groups[np.isin(source.groups[unlabelled[in_groups]], groups)]
    if not len(left_out):
        return unlabelled, ()
    note = f"{len(left_out):,} unlabelled images are not in the pool: their groups are in the test or validation set"
    return np.delete(unlabelled, left_out), (note,)
