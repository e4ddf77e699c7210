"""Every image is tried before a run begins, in parallel; what was sound is remembered."""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

import numpy as np

from tutelage.data.datasets.download import OnProgress, cache_folder
from tutelage.data.loading.shared_memory import cores
from tutelage.errors import UserError
from tutelage.storage import digest, write_whole

IMAGES_A_TASK = 64
SECONDS_BETWEEN_SAVES = 20.0  # a scan that is stopped loses no more
MARK_BYTES = 16
MOST_REMEMBERED = 4  # times the images: other listings of the same place, other limits
MOST_BAD_NAMED = 20


def unreadable(place: str, states: Sequence[str], complaint: Callable[[int], str], tell: OnProgress) -> dict[int, str]:
    """Return the reason for each image, by its number, that gives no pixels.

    Images that were sound before and are in the same state since are not tried again.

    Args:
        place: where they are; each place has a file of its own in the cache.
        states: for each image, what it is as far as can be told without reading it: path, size, time.
        complaint: tries an image and says what is wrong; empty where nothing is.
        tell: is told of the progress.
    """
    file = cache_folder("scans") / f"{digest(place)[:MARK_BYTES]}.npy"
    known = _read(file)
    marks = [hashlib.blake2b(s.encode(errors="surrogateescape"), digest_size=MARK_BYTES).digest() for s in states]
    new = [number for number, mark in enumerate(marks) if mark not in known]
    sound = known if len(known) <= MOST_REMEMBERED * len(marks) else known.intersection(marks)
    before, done, saved_at = len(known), 0, time.monotonic()
    bad: dict[int, str] = {}
    try:
        for numbers, reasons in _tried(new, complaint):
            for number, reason in zip(numbers, reasons, strict=True):
                if reason:
                    bad[number] = reason
                else:
                    sound.add(marks[number])
            done += len(numbers)
            tell(f"checking {len(new):,} images", done / len(new))
            if time.monotonic() - saved_at > SECONDS_BETWEEN_SAVES:
                _write(file, sound)
                saved_at = time.monotonic()
    finally:
        if len(sound) != before:
            _write(file, sound)
    return dict(sorted(bad.items()))


def stop_at(bad: dict[int, str], names: Sequence[str], where: str, count: int | None = None) -> None:
    """Name the images that give no pixels, and raise a UserError, if there are any; ``count`` where names lacks some.

    Raises:
        UserError: see above.
    """
    if not bad:
        return
    lines = [f"{names[number]}: {reason}" for number, reason in bad.items()]
    if len(lines) > MOST_BAD_NAMED:
        lines[MOST_BAD_NAMED:] = [f"... and {len(lines) - MOST_BAD_NAMED:,} more"]
    print(*lines, sep=os.linesep, file=sys.stderr)
    told = "1 image" if len(bad) == 1 else f"{len(bad):,} images"
    raise UserError(
        f"{where}: {told} of {count or len(names):,} cannot be read (listed above): "
        "mend or remove them, or leave them out with data.on_bad_image=skip"
    )


def _tried(numbers: Sequence[int], complaint: Callable[[int], str]) -> Iterator[tuple[Sequence[int], Sequence[str]]]:
    """Yield numbers of images with what is wrong with each, as they are done.

    Threads do: decoders run without Python's lock, and nothing has to be imported again.
    """

    def complaints(task: Sequence[int]) -> list[str]:
        return [complaint(number) for number in task]

    tasks = [numbers[start : start + IMAGES_A_TASK] for start in range(0, len(numbers), IMAGES_A_TASK)]
    pool = ThreadPoolExecutor(cores())
    try:
        waiting = {pool.submit(complaints, task): task for task in tasks}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


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
