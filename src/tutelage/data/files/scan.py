"""Check that every image can be decoded, in parallel, before a run begins; sound images are remembered in a cache."""

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
from tutelage.data.loading.shared_memory import count_cores
from tutelage.errors import UserError
from tutelage.storage import digest, write_whole

IMAGES_A_TASK = 64
SECONDS_BETWEEN_SAVES = 20.0  # of work that a scan loses at most when it is stopped
MARK_BYTES = 16
MAX_REMEMBERED = 4  # times the number of images: the cache also holds other listings of the same folder, other limits
MAX_PRINTED = 20  # unreadable images that are printed one by one


def find_unreadable(
    location: str, states: Sequence[str], check: Callable[[int], str], on_progress: OnProgress
) -> dict[int, str]:
    """Return the images that cannot be decoded: a dict of their numbers and the reasons.

    An image that was sound in an earlier scan and has the same state since is not checked again.

    Args:
        location: where the images are; each location has its own file in the cache.
        states: for each image, what identifies its content without reading it: path, size, time.
        check: returns what is wrong with the image of a number; an empty string if it is sound.
        on_progress: receives the progress.
    """
    file = cache_folder("scans") / f"{digest(location)[:MARK_BYTES]}.npy"
    known = _read_marks(file)
    marks = [hashlib.blake2b(s.encode(errors="surrogateescape"), digest_size=MARK_BYTES).digest() for s in states]
    new = [number for number, mark in enumerate(marks) if mark not in known]
    sound = known if len(known) <= MAX_REMEMBERED * len(marks) else known.intersection(marks)
    known_count, done, saved_at = len(known), 0, time.monotonic()
    unreadable: dict[int, str] = {}
    try:
        for numbers, reasons in _check_in_threads(new, check):
            for number, reason in zip(numbers, reasons, strict=True):
                if reason:
                    unreadable[number] = reason
                else:
                    sound.add(marks[number])
            done += len(numbers)
            on_progress(f"checking {len(new):,} images", done / len(new))
            if time.monotonic() - saved_at > SECONDS_BETWEEN_SAVES:
                _write_marks(file, sound)
                saved_at = time.monotonic()
    finally:
        if len(sound) != known_count:
            _write_marks(file, sound)
    return dict(sorted(unreadable.items()))


def raise_for_unreadable(reasons: dict[int, str], names: Sequence[str], setting: str, count: int | None = None) -> None:
    """Print the images that cannot be decoded and raise a UserError, if there are any.

    Args:
        reasons: why an image cannot be decoded, by its number.
        names: the names of the images.
        setting: what the user typed to name the data, for the message.
        count: of all images; None if ``names`` has them all.

    Raises:
        UserError: ``reasons`` is not empty.
    """
    if not reasons:
        return
    lines = [f"{names[number]}: {reason}" for number, reason in reasons.items()]
    if len(lines) > MAX_PRINTED:
        lines[MAX_PRINTED:] = [f"... and {len(lines) - MAX_PRINTED:,} more"]
    print(*lines, sep=os.linesep, file=sys.stderr)
    unreadable = "1 image" if len(reasons) == 1 else f"{len(reasons):,} images"
    raise UserError(
        f"{setting}: {unreadable} of {count or len(names):,} cannot be read (listed above): "
        "repair or remove them, or leave them out with data.on_bad_image=skip"
    )


def _check_in_threads(
    numbers: Sequence[int], check: Callable[[int], str]
) -> Iterator[tuple[Sequence[int], Sequence[str]]]:
    """Yield numbers of images and what is wrong with each, as tasks finish.

    Threads rather than processes: decoders release the GIL, and nothing has to be imported again.
    """

    def check_task(task: Sequence[int]) -> list[str]:
        return [check(number) for number in task]

    tasks = [numbers[start : start + IMAGES_A_TASK] for start in range(0, len(numbers), IMAGES_A_TASK)]
    executor = ThreadPoolExecutor(count_cores())
    try:
        task_of_future = {executor.submit(check_task, task): task for task in tasks}
        for future in as_completed(task_of_future):
            yield task_of_future[future], future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def _read_marks(file: Path) -> set[bytes]:
    """Return the marks in a cache file; none if it is missing or damaged, which costs a scan."""
    try:
        stored = np.load(file, allow_pickle=False)
        return set(map(bytes, stored.reshape(-1, MARK_BYTES)))
    except (OSError, ValueError, EOFError):
        return set()


def _write_marks(file: Path, marks: set[bytes]) -> None:
    array = np.frombuffer(b"".join(sorted(marks)), dtype=np.uint8).reshape(-1, MARK_BYTES)
    with suppress(OSError):  # in a folder without write permission every run scans
        write_whole(file, lambda out: np.save(out, array))
