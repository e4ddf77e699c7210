"""Packs: the images of a dataset of files at evaluation size, decoded once, in one file that processes map."""

import json
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from threading import Event
from typing import IO, Any

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.datasets.download import OnProgress, wait_for_lock
from tutelage.data.files.decoding import decoder_versions
from tutelage.data.loading.shared_memory import SharedArray, count_cores
from tutelage.data.source import DecodedImages, Images
from tutelage.errors import UserError
from tutelage.storage import (
    TRAILER_LENGTH,
    cache_folder,
    digest,
    format_size,
    is_sound,
    remove_partials,
    write_checked,
    write_json,
)

PACK_VERSION = 2  # to be raised when the same files give other pixels, or when the layout of a pack changes
PACK_FILE, CHECKED_FILE = "images", "checked.json"
KEY_LENGTH = 32
IMAGES_A_TASK = 16
TASKS_AHEAD = 2  # for each thread: images decoded before their turn to be written
SECONDS_BETWEEN_REPORTS = 0.2


class PackedImages(DecodedImages):
    """Images of files, read from packs of those that were prepared; others are decoded when they are read."""

    def __init__(self, files: Images, contents: Sequence[bytes], config: DataConfig) -> None:
        """Take the images, for each the SHA-256 of its file's content, and the dataset's config."""
        self._files = files
        self._contents = contents
        self._config = config
        self._packs: list[SharedArray] = []
        # (N, 2): of each image, the number of its pack, or -1, and its row there
        self._places = SharedArray(np.full((len(files), 2), (-1, 0), dtype=np.int64))
        self.preparable = len(files)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_contents"}  # to prepare, not to read

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> np.ndarray:
        pack, row = self._places.array[index].tolist()
        return self._files[index] if pack < 0 else np.array(self._packs[pack].array[row])  # a copy: packs are read only

    def picture(self, index: int) -> np.ndarray:
        """Return the image at evaluation size: nothing larger is stored."""
        return self[index]

    def prepare(self, indices: np.ndarray, on_progress: OnProgress) -> None:
        """Pack the images at ``indices`` (n,), ascending, unless they are all packed.

        Raises:
            UserError: as in ``pack_images``.
        """
        if (self._places.array[indices, 0] >= 0).all():
            return
        pack = pack_images(self._files, self._contents, self._config, indices, on_progress)
        places = self._places.array.copy()  # workers may have the old one
        places[indices] = np.stack([np.full(len(indices), len(self._packs)), np.arange(len(indices))], 1)
        self._packs, self._places = [*self._packs, SharedArray(pack)], SharedArray(places)


def pack_images(
    images: Images, contents: Sequence[bytes], config: DataConfig, indices: np.ndarray, on_progress: OnProgress
) -> np.ndarray:
    """Return images (N, S, S, C) uint8, memory-mapped; write the pack first if there is none.

    The pack is in our cache, in a folder named by all that it depends on: the contents of the files in their order,
    ``data.image_size``, ``channels``, ``background``, ``fit`` and ``white``, the decoders and this version. It is
    written whole or not at all, followed by its SHA-256. The checksum is compared when a pack is first opened and
    whenever its size or time has changed since; not at each start, because reading 100 GB takes minutes and a program
    that wrote to the file would have changed its time.

    Of several processes one packs and the others wait.

    Args:
        images: the images.
        contents: for each image, the SHA-256 of its file's content.
        config: the dataset's config.
        indices: (N,) of the images that are packed.
        on_progress: receives the progress; may raise to stop, which leaves no file.

    Raises:
        UserError: an image cannot be decoded, or the pack cannot be written.
    """
    numbers = indices.tolist()
    shape = (len(numbers), config.image_size, config.image_size, config.channels)
    settings = [[PACK_VERSION, *decoder_versions()], shape, config.background, config.fit, config.white]
    folder = cache_folder("packs") / digest([*settings, *(contents[number].hex() for number in numbers)])[:KEY_LENGTH]
    file = folder / PACK_FILE
    if not _is_intact(file, math.prod(shape), on_progress):
        wait_message = f"another process is packing the {len(numbers):,} images"
        hint = "let XDG_CACHE_HOME name a folder that can, or set data.pack=false"
        with wait_for_lock(folder, PACK_FILE, wait_message, on_progress, hint):
            if not _is_intact(file, math.prod(shape), on_progress):
                remove_partials(folder)
                _write_pack(file, images, numbers, math.prod(shape), config, on_progress)
    return np.memmap(file, dtype=np.uint8, mode="r", shape=shape)


def _is_intact(file: Path, size: int, on_progress: OnProgress) -> bool:
    """Return whether a pack of ``size`` bytes exists and has not changed since it was written."""
    try:
        if file.stat().st_size != size + TRAILER_LENGTH:
            return False
        with suppress(OSError, ValueError):
            if json.loads((file.parent / CHECKED_FILE).read_text()) == _pack_state(file):
                return True
    except OSError:
        return False
    on_progress("checking the packed images", 0.0)
    sound = is_sound(file)
    if sound:
        _record_checked(file)
    return sound


def _pack_state(file: Path) -> dict[str, int]:
    state = file.stat()
    return {"bytes": state.st_size, "time": state.st_mtime_ns, "inode": state.st_ino}


def _record_checked(file: Path) -> None:
    """Write down the state in which a pack's checksum was right."""
    with suppress(OSError):  # in a folder without write permission every run checks
        write_json(file.parent / CHECKED_FILE, _pack_state(file))


def _write_pack(
    file: Path, images: Images, numbers: Sequence[int], size: int, config: DataConfig, on_progress: OnProgress
) -> None:
    """Write the pack of the images of some numbers."""
    count = len(numbers)
    threads = count_cores() if config.num_workers == "auto" else config.num_workers or 1
    done = 0

    def report() -> None:
        on_progress(f"packing {count:,} images", done / count)

    def write_images(pack: IO[bytes]) -> None:
        nonlocal done
        tasks = [range(start, min(start + IMAGES_A_TASK, count)) for start in range(0, count, IMAGES_A_TASK)]
        for decoded in _map_in_order(lambda row: images[numbers[row]], tasks, threads, report):
            pack.write(decoded.data)
            done += len(decoded)
            report()

    try:
        free = shutil.disk_usage(file.parent).free
        if free < size:
            raise _storage_error(file, count, size, f"{format_size(free)} are free")
        write_checked(file, write_images)
    except OSError as error:
        raise _storage_error(file, count, size, error.strerror or str(error)) from None
    _record_checked(file)


def _storage_error(file: Path, count: int, size: int, reason: str) -> UserError:
    return UserError(
        f"{file.parent}: the {format_size(size)} of {count:,} packed images cannot be stored ({reason}): make room, "
        "let XDG_CACHE_HOME name another folder, or set data.pack=false"
    )


def _map_in_order(
    function: Callable[[int], np.ndarray], tasks: Sequence[range], threads: int, on_wait: Callable[[], None]
) -> Iterator[np.ndarray]:
    """Yield the stacked results of ``function`` for each task, in order; threads run it: decoders release the GIL.

    ``on_wait`` is called here while threads work; if it raises, each thread ends after its current image.
    """
    executor, pending, is_stopped = ThreadPoolExecutor(threads), deque[Future[np.ndarray]](), Event()

    def run(task: range) -> np.ndarray:
        return np.stack(list(takewhile(lambda _: not is_stopped.is_set(), map(function, task))))

    def take_first() -> np.ndarray:
        future = pending.popleft()
        while not wait([future], SECONDS_BETWEEN_REPORTS).done:
            on_wait()
        return future.result()

    try:
        for task in tasks:
            pending.append(executor.submit(run, task))
            if len(pending) > TASKS_AHEAD * threads:
                yield take_first()
        while pending:
            yield take_first()
    finally:
        is_stopped.set()
        executor.shutdown(cancel_futures=True)
