"""Exact duplicates: images whose files have the same content, within the training data and between it and the tests."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.data.files.names import MAX_NAMED, UNLABELLED, WITHOUT_DUPLICATES, printable
from tutelage.data.files.scan import MAX_PRINTED
from tutelage.data.source import UNKNOWN, Source
from tutelage.errors import UserError

if TYPE_CHECKING:
    from tutelage.data.splits import Splits

LEARNED = "training, validation and unlabelled data"
UNUSED, TEST, LEARNED_FROM = range(3)  # what the splits use an image for
PREFIX_BITS = 22  # of a content id
PREFIX_SHIFT = np.uint64(64 - PREFIX_BITS)
KEEP_ORDER = ("val", "train", UNLABELLED)  # of a source: after the tests, the first keeps an image


def find_duplicates(ids: np.ndarray, ids_of_shards: Iterable[np.ndarray] = ()) -> np.ndarray:
    """Return the images whose content another image has too: (D, 2) int64, their indices and their contents' numbers.

    Images in shards are compared with the others, not among themselves, so that one shard at a time is in memory.

    Args:
        ids: (N,) the content ids of the images outside shards (see ``content_ids``).
        ids_of_shards: (n,) those of the images of each shard, whose indices follow.
    """
    distinct, numbers, counts = np.unique(ids, return_inverse=True, return_counts=True)
    is_repeated, first, found = counts > 1, len(ids), []
    may_be_copied = np.zeros(1 << PREFIX_BITS, dtype=bool)  # by the first bits of an id: most images need no search
    may_be_copied[distinct >> PREFIX_SHIFT] = True
    for shard in ids_of_shards:
        candidates = np.flatnonzero(may_be_copied[shard >> PREFIX_SHIFT])
        places = np.searchsorted(distinct, shard[candidates]).clip(max=len(distinct) - 1)
        is_copy = distinct[places] == shard[candidates]
        found.append(np.stack([first + candidates[is_copy], places[is_copy]], axis=1))
        is_repeated[places[is_copy]] = True
        first += len(shard)
    indices = np.flatnonzero(is_repeated[numbers])
    return np.concatenate([np.stack([indices, numbers[indices]], axis=1), *found]).astype(np.int64)


def refuse_duplicates(source: Source, root: str | None) -> None:
    """Print the duplicates of a source and raise a UserError, if there are any.

    Args:
        source: the data.
        root: ``data.root``, for the message.

    Raises:
        UserError: an image has the content of another.
    """
    indices, numbers = _columns(source)
    if not len(indices):
        return
    count = len(np.unique(numbers))
    more = [f"... and {count - MAX_PRINTED:,} more"] if count > MAX_PRINTED else []
    print(*_name_pairs(source, np.stack([indices, numbers], axis=1), MAX_PRINTED), *more, sep="\n", file=sys.stderr)
    raise UserError(
        f"data.duplicates=stop: {_count(count, 'image')} of data.root={printable(str(root))} with the content of "
        "another (listed above): remove duplicates, or set data.duplicates=drop or report"
    )


def drop_duplicates(source: Source) -> tuple[Source, tuple[str, ...]]:
    """Return the source with each image once, and a note on what is left out.

    An image stays in the test sets, which are not changed; else in val, train or unlabelled, in this order. Duplicates
    within val or train whose labels contradict each other are all left out.

    Args:
        source: the data, with its test set.

    Raises:
        UserError: a class has no training image left, or no validation image is left.
    """
    indices, numbers = _columns(source)
    is_taken = np.zeros(numbers.max(initial=0) + 1, dtype=bool)
    for test in (source.test, *source.further_tests.values()):
        is_taken[numbers[np.isin(indices, test)]] = True
    parts: dict[str, Any] = {}
    dropped, contradictory = {}, 0
    for name in KEEP_ORDER:
        part: np.ndarray = getattr(source, name)
        inside = np.isin(indices, part)
        own, own_numbers = indices[inside], numbers[inside]
        is_dropped = np.ones(len(own), dtype=bool)
        is_dropped[np.unique(own_numbers, return_index=True)[1]] = False
        is_dropped |= is_taken[own_numbers]
        if name != UNLABELLED:
            contradicts = _contradicts(own_numbers, source.labels[own], len(is_taken)) & ~is_taken
            is_dropped |= contradicts[own_numbers]
            contradictory += int(contradicts[own_numbers].sum())
        is_taken[own_numbers] = True
        parts[name] = part[~np.isin(part, own[is_dropped])]
        dropped[name] = int(is_dropped.sum())
    _check_nothing_lost(source, parts)
    counts = ", ".join(f"{name} {count:,}" for name, count in dropped.items() if count)
    if not counts:
        return source, ()
    note = f"data.duplicates=drop leaves out {_count(sum(dropped.values()), 'duplicate')} ({counts})"
    note += f", {contradictory:,} of them because their labels contradict each other" if contradictory else ""
    return replace(source, **parts), (note,)


def _check_nothing_lost(source: Source, parts: Mapping[str, np.ndarray]) -> None:
    """Raise a UserError if a class of training images, or the validation set, is empty without duplicates."""
    before, after = (set(np.unique(source.labels[part]).tolist()) for part in (source.train, parts["train"]))
    lost = [f"class {source.classes[label]!r} has no training image left" for label in sorted(before - after)]
    if len(source.val) and not len(parts["val"]):
        lost.append("no validation image is left")
    if lost:
        raise UserError(
            f"data.duplicates=drop: {lost[0]}: all are duplicates of others, or have labels that contradict each "
            "other; remove duplicates yourself, or set data.duplicates=report"
        )


def _contradicts(numbers: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Return whether contents have different labels, (``count``,) bool, by the numbers and labels (n,) of images."""
    is_labelled = labels != UNKNOWN
    pairs = np.unique(np.stack([numbers[is_labelled], labels[is_labelled]]), axis=1)
    return np.bincount(pairs[0], minlength=count) > 1


def _columns(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices (D,) and the contents' numbers (D,) of a source's duplicates; empty if not known."""
    duplicates = np.empty((0, 2), dtype=np.int64) if source.duplicates is None else source.duplicates
    return duplicates[:, 0], duplicates[:, 1]


@dataclass(frozen=True)
class _UsedDuplicates:
    """The duplicates among the images that splits use: indices, contents' numbers and uses, (D,) each."""

    indices: np.ndarray
    numbers: np.ndarray
    uses: np.ndarray

    def counts(self, use: int) -> np.ndarray:
        """Return how many images of a use each content has, by its number."""
        return np.bincount(self.numbers[self.uses == use], minlength=self.numbers.max(initial=0) + 1)

    def choose(self, which: np.ndarray, kinds: np.ndarray | None = None) -> np.ndarray:
        """Return index and number (d, 2) of some duplicates, (D,) bool; of each content one of each kind (D,)."""
        chosen = np.stack([self.indices[which], self.numbers[which]], axis=1)
        if kinds is not None:
            firsts = np.unique(np.stack([self.numbers[which], kinds[which]]), axis=1, return_index=True)[1]
            chosen = chosen[firsts]
        return chosen


def _find_used(source: Source, splits: "Splits") -> _UsedDuplicates:
    indices, numbers = _columns(source)
    uses = np.full(len(indices), UNUSED)
    if len(indices):
        for part in (splits.labelled, splits.validation, splits.pool):
            uses[np.isin(indices, part)] = LEARNED_FROM
        for part in (splits.test, *splits.further_tests.values()):
            uses[np.isin(indices, part)] = TEST
    used = uses != UNUSED
    return _UsedDuplicates(indices[used], numbers[used], uses[used])


def find_leaked(source: Source, splits: "Splits") -> np.ndarray:
    """Return the indices (n,) of test images that are also in the training, validation or unlabelled data."""
    used = _find_used(source, splits)
    leaked: np.ndarray = used.indices[(used.counts(LEARNED_FROM) > 0)[used.numbers] & (used.uses == TEST)]
    return leaked


def describe_duplicates(source: Source, splits: "Splits") -> list[str]:
    """Return notes on the duplicates among the images that splits use, by kind, with the names of some."""
    used = _find_used(source, splits)
    in_tests, in_learned = used.counts(TEST), used.counts(LEARNED_FROM)
    leaks = (in_tests > 0) & (in_learned > 0)
    labels = source.labels[used.indices]
    contradictions = _contradicts(used.numbers, labels, len(leaks))
    notes = []
    if leaks.any():
        count = _count(int(in_tests[leaks].sum()), "test image")
        notes.append(
            f"{count} also in the {LEARNED}: {_abbreviate(source, used.choose(leaks[used.numbers], used.uses))}; "
            f"{_describe_scores(splits, find_leaked(source, splits))}; "
            "data.duplicates=drop learns from no test image"
        )
    for is_double, where, use in ((in_learned > 1, LEARNED, LEARNED_FROM), (in_tests > 1, "test data", TEST)):
        if is_double.any():
            names = _abbreviate(source, used.choose(is_double[used.numbers] & (used.uses == use)))
            notes.append(f"{_count(int(is_double.sum()), 'image')} more than once in the {where}: {names}")
    if contradictions.any():
        names = _abbreviate(source, used.choose(contradictions[used.numbers] & (labels != UNKNOWN), labels))
        notes.append(f"{_count(int(contradictions.sum()), 'image')} with contradicting labels: {names}")
    return notes


def _describe_scores(splits: "Splits", leaked: np.ndarray) -> str:
    """Return how the test images (n,) that are also learned from enter the scores."""
    is_leaked = [np.isin(test, leaked) for test in (splits.test, *splits.further_tests.values())]
    if any(some.any() and not some.all() for some in is_leaked):
        return f"scores named {WITHOUT_DUPLICATES.removeprefix('-')} leave them out"
    return "no test image would be left to score without them"


def _count(count: int, noun: str) -> str:
    return f"1 {noun}" if count == 1 else f"{count:,} {noun}s"


def _abbreviate(source: Source, duplicates: np.ndarray) -> str:
    """Return the names of some duplicates (d, 2), the same images joined by =."""
    pairs = _name_pairs(source, duplicates, MAX_NAMED)
    more = len(np.unique(duplicates[:, 1])) - len(pairs)
    return ", ".join(pairs) + (f" and {more:,} more" if more else "")


def _name_pairs(source: Source, duplicates: np.ndarray, most: int) -> Sequence[str]:
    """Return for each content among duplicates (d, 2), or the first ``most``, the names of two images that have it."""
    order = np.argsort(duplicates[:, 1], kind="stable")
    _, starts = np.unique(duplicates[order, 1], return_index=True)
    starts = starts[:most]
    pairs = np.sort(np.stack([duplicates[order[starts], 0], duplicates[order[starts + 1], 0]], axis=1), axis=1)
    return [
        f"{source.names[first]} = {source.names[second]}" for first, second in pairs[np.argsort(pairs[:, 0])].tolist()
    ]
