"""Exact duplicates: images whose files have the same content, within the training data and between it and the tests."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.files.names import MAX_NAMED
from tutelage.data.files.scan import MAX_PRINTED
from tutelage.data.source import UNKNOWN, Source
from tutelage.data.splits import Splits
from tutelage.errors import UserError

LEARNED = "training, validation and unlabelled data"
UNUSED, TEST, LEARNED_FROM = range(3)  # what the splits use an image for
PREFIX_BITS = 22  # of a content id
PREFIX_SHIFT = np.uint64(64 - PREFIX_BITS)
LABELLED_PARTS = ("val", "train")  # of a source, in the order in which a copy is kept; before them the test sets


def find_copies(ids: np.ndarray, ids_of_shards: Iterable[np.ndarray] = ()) -> np.ndarray:
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


def treat_copies(source: Source, config: DataConfig) -> Source:
    """Return the source as ``data.duplicates`` wants it: unchanged, or with one copy of each image.

    Raises:
        UserError: there are copies and ``data.duplicates`` is stop; or drop leaves a class without images.
    """
    if source.copies is None or not len(source.copies) or config.duplicates == "report":
        return source
    if config.duplicates == "drop":
        return _drop_copies(source)
    pairs = _name_pairs(source, source.copies)
    more = [f"... and {len(pairs) - MAX_PRINTED:,} more"] if len(pairs) > MAX_PRINTED else []
    print(*pairs[:MAX_PRINTED], *more, sep="\n", file=sys.stderr)
    raise UserError(
        f"data.duplicates=stop: {_count(len(pairs), 'image')} of data.root={config.root} with the content of another "
        "(listed above): remove copies, or set data.duplicates=drop or report"
    )


def _drop_copies(source: Source) -> Source:
    """Return the source with one copy of each image: of the test sets (which stay whole), else val, train, unlabelled.

    Copies within a labelled part whose labels contradict each other are all left out.
    """
    indices, numbers = _columns(source)
    is_taken = np.zeros(numbers.max() + 1, dtype=bool)
    for test in (source.test, *source.further_tests.values()):
        is_taken[numbers[np.isin(indices, test)]] = True
    parts: dict[str, Any] = {}
    dropped, contradictory = {}, 0
    for name in (*LABELLED_PARTS, "unlabelled"):
        part: np.ndarray = getattr(source, name)
        inside = np.isin(indices, part)
        own, own_numbers = indices[inside], numbers[inside]
        is_dropped = np.ones(len(own), dtype=bool)
        is_dropped[np.unique(own_numbers, return_index=True)[1]] = False
        is_dropped |= is_taken[own_numbers]
        if name in LABELLED_PARTS:
            contradicts = _contradicts(own_numbers, source.labels[own], len(is_taken)) & ~is_taken
            is_dropped |= contradicts[own_numbers]
            contradictory += int(contradicts[own_numbers].sum())
        is_taken[own_numbers] = True
        parts[name] = part[~np.isin(part, own[is_dropped])]
        dropped[name] = int(is_dropped.sum())
    before, after = (set(np.unique(source.labels[part]).tolist()) for part in (source.train, parts["train"]))
    if lost := sorted(before - after):
        raise UserError(
            f"data.duplicates=drop: class {source.classes[lost[0]]!r} has no training image left: all are copies of "
            "others; remove copies yourself, or set data.duplicates=report"
        )
    counts = ", ".join(f"{name} {count:,}" for name, count in dropped.items() if count)
    note = f"data.duplicates=drop leaves out {_count(sum(dropped.values()), 'copy', 'copies')} ({counts})"
    note += f", {contradictory:,} of them because their labels contradict each other" if contradictory else ""
    return replace(source, **parts, notes=(*source.notes, note) if counts else source.notes)


def _contradicts(numbers: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Return whether copies have different labels, (``count``,) bool, of their contents' numbers and labels (n,)."""
    is_labelled = labels != UNKNOWN
    pairs = np.unique(np.stack([numbers[is_labelled], labels[is_labelled]]), axis=1)
    return np.bincount(pairs[0], minlength=count) > 1


def _columns(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices (D,) and the contents' numbers (D,) of a source's copies; empty if they are not known."""
    copies = np.empty((0, 2), dtype=np.int64) if source.copies is None else source.copies
    return copies[:, 0], copies[:, 1]


@dataclass(frozen=True)
class _UsedCopies:
    """The copies among the images that splits use: indices (D,), contents' numbers (D,), and each one's use (D,)."""

    indices: np.ndarray
    numbers: np.ndarray
    uses: np.ndarray

    def counts(self, use: int) -> np.ndarray:
        """Return how many images of a use each content has, by its number."""
        return np.bincount(self.numbers[self.uses == use], minlength=self.numbers.max(initial=0) + 1)

    def choose(self, which: np.ndarray, kinds: np.ndarray | None = None) -> np.ndarray:
        """Return index and number (d, 2) of some copies, (D,) bool; of each content only one of each kind (D,)."""
        copies = np.stack([self.indices[which], self.numbers[which]], axis=1)
        if kinds is not None:
            firsts = np.unique(np.stack([self.numbers[which], kinds[which]]), axis=1, return_index=True)[1]
            copies = copies[firsts]
        return copies


def _find_used(source: Source, splits: Splits) -> _UsedCopies:
    indices, numbers = _columns(source)
    uses = np.full(len(indices), UNUSED)
    if len(indices):
        for part in (splits.labelled, splits.validation, splits.pool):
            uses[np.isin(indices, part)] = LEARNED_FROM
        for part in (splits.test, *splits.further_tests.values()):
            uses[np.isin(indices, part)] = TEST
    used = uses != UNUSED
    return _UsedCopies(indices[used], numbers[used], uses[used])


def find_leaked(source: Source, splits: Splits) -> np.ndarray:
    """Return the indices (n,) of test images that are also in the training, validation or unlabelled data."""
    used = _find_used(source, splits)
    leaked: np.ndarray = used.indices[(used.counts(LEARNED_FROM) > 0)[used.numbers] & (used.uses == TEST)]
    return leaked


def describe_copies(source: Source, splits: Splits) -> list[str]:
    """Return notes on the copies among the images that splits use, by kind, with the names of some."""
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
            "the scores named without-duplicates leave them out; data.duplicates=drop learns from no test image"
        )
    for is_double, where, use in ((in_learned > 1, LEARNED, LEARNED_FROM), (in_tests > 1, "test data", TEST)):
        if is_double.any():
            copies = used.choose(is_double[used.numbers] & (used.uses == use))
            notes.append(
                f"{_count(int(is_double.sum()), 'image')} more than once in the {where}: {_abbreviate(source, copies)}"
            )
    if contradictions.any():
        copies = used.choose(contradictions[used.numbers] & (labels != UNKNOWN), labels)
        notes.append(
            f"{_count(int(contradictions.sum()), 'image')} with contradicting labels: {_abbreviate(source, copies)}"
        )
    return notes


def _count(count: int, noun: str, plural: str = "") -> str:
    return f"1 {noun}" if count == 1 else f"{count:,} {plural or noun + 's'}"


def _abbreviate(source: Source, copies: np.ndarray) -> str:
    """Return the names of some copies (d, 2), the same images joined by =."""
    pairs = _name_pairs(source, copies, MAX_NAMED)
    more = len(np.unique(copies[:, 1])) - len(pairs)
    return ", ".join(pairs) + (f" and {more:,} more" if more else "")


def _name_pairs(source: Source, copies: np.ndarray, most: int | None = None) -> Sequence[str]:
    """Return for each content among copies (d, 2), or for the first ``most``, the names of two images that have it."""
    order = np.argsort(copies[:, 1], kind="stable")
    _, starts = np.unique(copies[order, 1], return_index=True)
    pairs = np.sort(np.stack([copies[order[starts], 0], copies[order[starts + 1], 0]], axis=1)[:most], axis=1)
    return [
        f"{source.names[first]} = {source.names[second]}" for first, second in pairs[np.argsort(pairs[:, 0])].tolist()
    ]
