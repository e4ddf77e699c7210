"""Every image file is tried before a run begins, in parallel; what was sound is remembered by size and time."""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

import numpy as np

from tutelage.data.download import Tell, cache_folder
from tutelage.data.listing import Entry, Listing
from tutelage.data.pixels import BadImage, read_pixels
from tutelage.storage import digest, write_whole

FILES_A_TASK = 64
SECONDS_BETWEEN_SAVES = 20.0  # a scan that is stopped loses no more
MARK_BYTES = 16
GREY, BLACK = 1, (0, 0, 0)


def unreadable(listing: Listing, max_pixels: int, tell: Tell) -> dict[int, str]:
    """Return the reason for each entry, by its number, that gives no pixels.

    Files that were sound before and have the same path, size and time since are not tried again.
    """
    file = cache_folder("scans") / f"{digest(str(listing.place.resolve()))[:MARK_BYTES]}.npy"
    known = _read(file)
    marks = [_mark(entry, max_pixels) for entry in listing.entries]
    new = [number for number, mark in enumerate(marks) if mark not in known]
    bad: dict[int, str] = {}
    sound, done, saved_at = known.intersection(marks), 0, time.monotonic()
    try:
        for numbers, reasons in _tried(listing.entries, new, max_pixels):
            for number, reason in zip(numbers, reasons, strict=True):
                if reason:
                    bad[number] = reason
                else:
                    sound.add(marks[number])
            done += len(numbers)
            tell(f"checking {len(new):,} image files", done / len(new))
            if time.monotonic() - saved_at > SECONDS_BETWEEN_SAVES:
                _write(file, sound)
                saved_at = time.monotonic()
    finally:
        if sound != known:
            _write(file, sound)
    return dict(sorted(bad.items()))


def _tried(
    entries: Sequence[Entry], numbers: Sequence[int], max_pixels: int
) -> Iterator[tuple[Sequence[int], Sequence[str]]]:
    """Yield numbers of entries with what is wrong with each (nothing: empty), as they are done.

    Threads do: decoders run without Python's lock, and nothing has to be imported again.
    """

    def complaints(task: Sequence[int]) -> list[str]:
        return [_complaint(entries[number].path, max_pixels) for number in task]

    tasks = [numbers[start : start + FILES_A_TASK] for start in range(0, len(numbers), FILES_A_TASK)]
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        waiting = {pool.submit(complaints, task): task for task in tasks}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _complaint(path: str, max_pixels: int) -> str:
    """Return why a file gives no pixels; empty where it does."""
    try:
        read_pixels(Path(path), GREY, BLACK, max_pixels, reduced=True)
    except BadImage as error:
        return str(error)
    return ""


def _mark(entry: Entry, max_pixels: int) -> bytes:
    """Return what stands for a sound file in the cache."""
    told = f"{os.path.abspath(entry.path)}\0{entry.size}\0{entry.time}\0{max_pixels}"  # noqa: PTH100 - many times faster
    return hashlib.blake2b(told.encode(errors="surrogateescape"), digest_size=MARK_BYTES).digest()


def _read(file: Path) -> set[bytes]:
    """Return the marks of a cache; none where it is missing or damaged, which costs a scan."""
    try:
        stored = np.load(file, allow_pickle=False)
        return set(map(bytes, stored.reshape(-1, MARK_BYTES)))
    except (OSError, ValueError, EOFError):
        return set()


def _write(file: Path, marks: set[bytes]) -> None:
    array = np.frombuffer(b"".join(sorted(marks)), dtype=np.uint8).reshape(-1, MARK_BYTES)
    with suppress(OSError):  # where nothing may be written, every run scans
        write_whole(file, lambda out: np.save(out, array))
