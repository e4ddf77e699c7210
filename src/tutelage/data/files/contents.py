"""The cache of contents: each file is read once, and what was found is remembered by the state it was in.

Of a file, or of an image in one, the SHA-256 of its content is remembered, and of an image that could be decoded its
number of pixels and the largest of its values if they have 16 bits. Paths, sizes, times and inodes are keys here and
nothing else: what identifies data is its content.
"""

import hashlib
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tutelage.data.datasets.download import OnProgress
from tutelage.data.files.decoding import Check
from tutelage.data.files.threads import Tick, read_in_threads
from tutelage.storage import cache_folder, digest, remove_old_partials, write_whole

CACHE_NAME, LISTS_NAME = "contents", "lists"  # a folder of our cache, and one in it
MARK_BYTES, DIGEST_BYTES, ID_BYTES = 16, 32, 8
# zeros: unknown; no pixels: of an item that is no image, or that cannot be decoded
FACTS = np.dtype([("content", f"V{DIGEST_BYTES}"), ("pixels", "<u8"), ("peak", "<u2")])
ROW = np.dtype([("mark", f"V{MARK_BYTES}"), *FACTS.descr])
MAX_REMEMBERED = 4  # times the number of items: the cache also holds files as they were before
MAX_LISTS = 32  # lists of files that are remembered, the newest
DRAWN = 64  # files of a copied folder that are read before the others are taken to be copies too
SECONDS_BETWEEN_SAVES = 20.0  # of work that is lost at most when it is stopped
SETTLED_NS = 2_000_000_000  # a file may change again within one tick of its clock: younger ones are not remembered

FindCheck = Callable[[bytes], Check | None]  # returns what is known of an image with a content of this SHA-256
# returns the SHA-256 and the check of the item of a number
Examine = Callable[[int, Tick, FindCheck], tuple[bytes, Check]]


@dataclass(frozen=True)
class Scope:
    """Which files, or images in files, are read, and where they are remembered.

    Attributes:
        location: each has its own file in the cache.
        keys: what identifies the content of each without reading it: path, size, times.
        changed: (N,) int64, when each was changed last, in ns, by a clock that its owner cannot set (st_ctime).
        sizes: (N,) int64, of each in bytes, for the progress.
        max_pixels: an image known to have more is examined again.
        message: returns what is being done, of a number of items.
        copy_key: equal for copies of a whole list; empty if copies are not recognised.
    """

    location: str
    keys: Sequence[str]
    changed: np.ndarray
    sizes: np.ndarray
    max_pixels: int
    message: Callable[[int], str]
    copy_key: str = ""


def content_ids(facts: np.ndarray) -> np.ndarray:
    """Return the first 8 bytes (N,) uint64 of the SHA-256s in ``FACTS`` (N,): equal ones stand for equal contents."""
    words = np.frombuffer(facts["content"].tobytes(), dtype="<u8")
    return words.reshape(-1, DIGEST_BYTES // ID_BYTES)[:, 0].astype(np.uint64)


def read_contents(scope: Scope, examine: Examine, on_progress: OnProgress) -> tuple[np.ndarray, dict[int, str]]:
    """Return what is in a scope's items: ``FACTS`` (N,), and why images cannot be decoded, by their numbers.

    An item whose key is known is not read. If nothing is known of the location, but the whole list is that of an
    earlier call under another one, and ``DRAWN`` items drawn at random have the same contents, it is taken for a copy.

    Args:
        scope: the items.
        examine: reads an item; called in threads.
        on_progress: receives the progress; may raise to stop.
    """
    marks = [_mark(key) for key in scope.keys]
    cache = _Cache(scope, marks)
    missing = np.flatnonzero(~cache.is_known)
    if scope.copy_key and cache.is_new:
        missing = cache.recognise_copy(examine, on_progress)
    reasons: dict[int, str] = {}
    try:
        with closing(_examine_items(scope, missing, examine, cache.find_check, on_progress)) as examined:
            for results in examined:
                for number, (content, check) in results:
                    if check.reason:
                        reasons[number] = check.reason
                    cache.add(number, content, check)
                cache.save_at_times()
    finally:
        cache.save()
    if scope.copy_key:
        cache.save_list(changed=len(missing) > 0)
    return cache.facts, dict(sorted(reasons.items()))


def _mark(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=MARK_BYTES).digest()


class _Cache:
    """What is known of the items of a scope.

    Attributes:
        facts: (N,) of ``FACTS``.
        is_known: (N,) bool, whether an item need not be read.
        is_new: whether nothing is known of the location.
    """

    def __init__(self, scope: Scope, marks: Sequence[bytes]) -> None:
        self._scope = scope
        self._marks = marks
        folder = cache_folder(CACHE_NAME)
        self._file = folder / f"{digest(scope.location)[: 2 * MARK_BYTES]}.npy"
        self._list_file = folder / LISTS_NAME / f"{scope.copy_key}.npy"
        self._started_ns = time.time_ns()  # before any item is read
        self._all_settled = True
        self._stored = _read_array(self._file, ROW)
        self.is_new = not len(self._stored)
        self._new: list[int] = []  # items that are to be stored
        self._saved_count, self._saved_at = 0, time.monotonic()
        self.facts = np.zeros(len(marks), FACTS)
        place_of_mark = {mark: place for place, mark in enumerate(self._stored["mark"].tolist())}
        places = np.array([place_of_mark.get(mark, -1) for mark in marks], dtype=np.int64)
        self._used = places[places >= 0]
        self.facts[places >= 0] = self._stored[list(FACTS.names or ())][self._used]
        self.is_known = self._is_enough(self.facts)
        self._known_contents: dict[bytes, int] = {}
        if not self.is_known.all():
            enough = np.flatnonzero(self._is_enough(self._stored))
            self._known_contents = dict(zip(self._stored["content"][enough].tolist(), enough.tolist(), strict=True))

    def _is_enough(self, facts: np.ndarray) -> np.ndarray:
        """Return whether what is known of items that can be decoded, (N,) of ``FACTS`` or ``ROW``, is all we need."""
        enough: np.ndarray = (content_ids(facts) != 0) & (facts["pixels"] <= self._scope.max_pixels)
        return enough

    def find_check(self, content: bytes) -> Check | None:
        """Return the check of an image with a content of this SHA-256; None if none is known."""
        place = self._known_contents.get(content)
        return None if place is None else Check("", *self._stored[["pixels", "peak"]][place].item())

    def add(self, number: int, content: bytes, check: Check) -> None:
        """Add what was read; remember it if the image is sound and had not been changed just before it was read."""
        self.facts[number] = (content, check.pixels, check.peak)
        is_settled = self._started_ns - self._scope.changed[number] > SETTLED_NS
        if check.reason:
            return
        if is_settled:
            self.is_known[number] = True
            self._new.append(number)
        else:
            self._all_settled = False

    def recognise_copy(self, examine: Examine, on_progress: OnProgress) -> np.ndarray:
        """Take the facts of an earlier equal list if drawn items have the same contents; return the unknown items."""
        stored = _read_array(self._list_file, FACTS)
        everything = np.arange(len(self._marks))
        if len(stored) != len(self._marks):
            return everything
        is_stored = self._is_enough(stored)
        copied = np.flatnonzero(is_stored)
        drawn = np.random.default_rng().permutation(copied)[:DRAWN]  # by the system's entropy, new in each call
        for results in _examine_items(self._scope, drawn, examine, self.find_check, on_progress):
            if any(check.reason or content != stored["content"][number].item() for number, (content, check) in results):
                return everything
        for number in copied.tolist():
            self.add(number, *_as_result(stored[number]))
        return np.flatnonzero(~is_stored)

    def save_at_times(self) -> None:
        """Save if that was long ago."""
        if time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Write what is known, with what was known before unless that is much more."""
        if len(self._new) == self._saved_count:
            return
        new = np.empty(len(self._new), ROW)
        new["mark"] = np.frombuffer(b"".join(self._marks[number] for number in self._new), ROW["mark"])
        new[list(FACTS.names or ())] = self.facts[self._new]
        are_few = len(self._stored) <= MAX_REMEMBERED * len(self._marks)
        _write_array(self._file, np.concatenate([self._stored if are_few else self._stored[self._used], new]))
        self._saved_count, self._saved_at = len(self._new), time.monotonic()

    def save_list(self, changed: bool) -> None:
        """Write the facts in the order of the list, for copies of it; ``changed`` if they may have changed.

        A list with files that were changed just now is not written: it will not last.
        """
        if not self.is_known.any() or not self._all_settled or (self._list_file.exists() and not changed):
            return
        _write_array(self._list_file, np.where(self.is_known, self.facts, np.zeros(1, FACTS)))
        with suppress(OSError):
            files = sorted(self._list_file.parent.glob("*.npy"), key=lambda file: file.stat().st_mtime_ns)
            for file in files[:-MAX_LISTS]:
                file.unlink(missing_ok=True)


def _examine_items(
    scope: Scope, numbers: np.ndarray, examine: Examine, find_check: FindCheck, on_progress: OnProgress
) -> Generator[list[tuple[int, tuple[bytes, Check]]], None, None]:
    """Yield numbers of items with their contents and checks, as they are read in threads."""
    size, message = int(scope.sizes[numbers].sum()), scope.message(len(numbers))

    def read(number: int, tick: Tick) -> tuple[bytes, Check]:
        return examine(number, tick, find_check)

    yield from read_in_threads(read, numbers.tolist(), lambda done: on_progress(message, min(1.0, done / max(1, size))))


def _as_result(facts: np.void) -> tuple[bytes, Check]:
    return facts["content"].item(), Check("", int(facts["pixels"]), int(facts["peak"]))


def _read_array(file: Path, dtype: np.dtype) -> np.ndarray:
    """Return the array (N,) in a file of the cache; an empty one if it is missing or damaged, which costs reading."""
    with suppress(OSError, ValueError, EOFError):
        array = np.load(file, allow_pickle=False)
        if array.dtype == dtype and array.ndim == 1:
            return np.asarray(array)
    return np.empty(0, dtype)


def _write_array(file: Path, array: np.ndarray) -> None:
    with suppress(OSError):  # in a folder without write permission every start reads all files
        write_whole(file, lambda out: np.save(out, array))
        remove_old_partials(file.parent)
