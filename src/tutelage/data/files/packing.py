"""A pack: the images of a dataset of files as evaluation sees them, decoded once, in one file that processes map."""

import json
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from tutelage import __version__
from tutelage.config import DataConfig
from tutelage.data.datasets.download import OnProgress, alone, cache_folder, silent, size_told
from tutelage.data.loading.shared_memory import cores
from tutelage.data.source import Images
from tutelage.errors import UserError
from tutelage.storage import TRAILER_LENGTH, digest, is_sound, remove_partials, write_checked, write_json

PACK_VERSION = 1  # raised where the same files give other pixels, or a pack is laid out otherwise
NAME, CHECKED = "images", "checked.json"
KEY_LENGTH = 32
IMAGES_A_TASK = 16
TASKS_AHEAD = 2  # for each thread: what is decoded before its turn to be written


def packed(images: Images, states: Sequence[str], config: DataConfig, tell: OnProgress = silent) -> np.ndarray:
    """Return all images (N, S, S, C) uint8, memory-mapped; they are packed first unless that was done before.

    The pack lies in our cache, in a folder named by all that it depends on: which files in which order, with their
    sizes and times, ``data.image_size``, ``channels`` and ``background``, the decoders and this version. It is written
    whole or not at all, followed by its SHA-256. That is compared when a pack is first opened and whenever its size or
    time is another than then; not at each start, since reading 100 GB takes minutes and a program that wrote to the
    file would have changed its time.

    Of several processes one packs, and the others wait for it.

    Args:
        images: the images.
        states: for each image, what it is as far as can be told without reading it.
        config: the dataset's config.
        tell: is told of the progress; may raise to stop, which leaves nothing.

    Raises:
        UserError: an image gives no pixels, or the pack cannot be written.
    """
    shape = (len(images), config.image_size, config.image_size, config.channels)
    folder = cache_folder("packs") / digest([_versions(), shape, config.background, *states])[:KEY_LENGTH]
    file = folder / NAME
    if not _is_whole(file, math.prod(shape), tell):
        told = f"another process is packing the {len(images):,} images"
        with alone(folder, NAME, told, tell, "let XDG_CACHE_HOME name a folder that can, or set data.pack=false"):
            if not _is_whole(file, math.prod(shape), tell):
                remove_partials(folder)
                _write(file, images, math.prod(shape), config, tell)
    return np.memmap(file, dtype=np.uint8, mode="r", shape=shape)


def _versions() -> list[str | int | None]:
    import cv2
    import PIL
    from PIL import features

    return [PACK_VERSION, __version__, cv2.__version__, PIL.__version__, features.version("libjpeg_turbo")]


def _is_whole(file: Path, size: int, tell: OnProgress) -> bool:
    """Return whether a pack of ``size`` bytes is there, and as it was written."""
    try:
        if file.stat().st_size != size + TRAILER_LENGTH:
            return False
        with suppress(OSError, ValueError):
            if json.loads((file.parent / CHECKED).read_text()) == _state(file):
                return True
    except OSError:
        return False
    tell("checking the packed images", 0.0)
    whole = is_sound(file)
    if whole:
        _note(file)
    return whole


def _state(file: Path) -> dict[str, int]:
    found = file.stat()
    return {"bytes": found.st_size, "time": found.st_mtime_ns, "inode": found.st_ino}


def _note(file: Path) -> None:
    """Note in which state a pack was found sound."""
    with suppress(OSError):  # where nothing may be written, every run checks
        write_json(file.parent / CHECKED, _state(file))


def _write(file: Path, images: Images, size: int, config: DataConfig, tell: OnProgress) -> None:
    """Write the pack of all images."""
    count = len(images)

    def squares(numbers: range) -> np.ndarray:
        return np.stack([images[number] for number in numbers])

    def write(out: IO[bytes]) -> None:
        done = 0
        tasks = [range(start, min(start + IMAGES_A_TASK, count)) for start in range(0, count, IMAGES_A_TASK)]
        for some in _in_order(squares, tasks, cores() if config.num_workers == "auto" else config.num_workers or 1):
            out.write(some.data)
            done += len(some)
            tell(f"packing {count:,} images", done / count)

    try:
        free = shutil.disk_usage(file.parent).free
        if free < size:
            raise _no_room(file, count, size, f"{size_told(free)} are free")
        write_checked(file, write)
    except OSError as error:
        raise _no_room(file, count, size, error.strerror or str(error)) from None
    _note(file)


def _no_room(file: Path, count: int, size: int, reason: str) -> UserError:
    return UserError(
        f"{file.parent}: the {size_told(size)} of {count:,} packed images cannot be stored ({reason}): make room, "
        "let XDG_CACHE_HOME name another folder, or set data.pack=false"
    )


def _in_order(work: Callable[[range], np.ndarray], tasks: Sequence[range], threads: int) -> Iterator[np.ndarray]:
    """Yield what ``work`` makes of each task, in their order; threads do, since decoders run without Python's lock."""
    pool, waiting = ThreadPoolExecutor(threads), deque[Future[Any]]()
    try:
        for task in tasks:
            waiting.append(pool.submit(work, task))
            if len(waiting) > TASKS_AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
