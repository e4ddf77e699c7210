"""Copies of large pictures at a smaller size, made once, in files of our cache that processes map.

A picture of 169 million pixels takes seconds and 700 MB to decode, and a step shows a few thousand of its pixels.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.datasets.download import OnProgress, cache_folder, ignore_progress, wait_for_lock
from tutelage.data.files.decoding import FilePicture, decoder_versions
from tutelage.errors import UserError
from tutelage.storage import digest, remove_partials, write_whole

LARGE_PIXELS = 1 << 25  # of a picture that is shrunk, and of no camera's that is in wide use
LEAST_SIDES = 4  # times data.image_size, of a copy's shorter side: a crop of 8 % of its area need not be made larger
CACHE_NAME, KEY_LENGTH, VERSION = "large", 32, 1
HINT = "let XDG_CACHE_HOME name a folder that can"


@dataclass(frozen=True)
class StoredPicture:
    """A picture that is decoded already.

    Attributes:
        pixels: (H, W, C) uint8.
    """

    pixels: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the picture."""
        height, width, channels = self.pixels.shape
        return height, width, channels

    def read(self, reduce: int = 1) -> np.ndarray:
        """Return the picture (H, W, C) uint8 at its whole size, whatever ``reduce`` allows."""
        return self.pixels


def shrink_large(picture: FilePicture, config: DataConfig) -> FilePicture | StoredPicture:
    """Return a picture itself, or the copy of a large one (see ``open_copy``)."""
    height, width, _ = picture.shape
    if height * width <= LARGE_PIXELS:
        return picture
    return open_copy(hashlib.sha256(picture.content).digest(), lambda: picture, config)


def name_shrinking(fingerprint: str, pixels: np.ndarray) -> str:
    """Return the fingerprint of files with these numbers of pixels (N,): another one if large ones are among them.

    Without it, runs would have the names of those of versions that did not shrink, or shrank in another way.
    """
    return digest([fingerprint, "shrunk", VERSION]) if (pixels > LARGE_PIXELS).any() else fingerprint


def open_copy(
    content: bytes,
    open_picture: Callable[[], FilePicture],
    config: DataConfig,
    on_progress: OnProgress = ignore_progress,
) -> StoredPicture:
    """Return the copy of a large picture, memory-mapped; make it if there is none.

    Height and width are divided by the largest power of 2 that leaves ``LEAST_SIDES`` times ``data.image_size``, so
    that a copy depends on the file and the config alone. Of all processes one makes a copy at a time, because each
    needs the memory of a whole picture.

    Args:
        content: the SHA-256 of the picture's file.
        open_picture: returns the picture, not decoded yet; called if there is no copy.
        config: the dataset's config.
        on_progress: called while another process makes a copy; may raise to stop.

    Raises:
        UserError: the file is damaged, or the copy cannot be stored.
    """
    settings = [VERSION, decoder_versions(), config.image_size, config.channels, config.background, config.white]
    folder = cache_folder(CACHE_NAME)
    file = folder / f"{digest([*settings, content.hex()])[:KEY_LENGTH]}.npy"
    if not file.exists():
        with wait_for_lock(folder, "lock", "another process is shrinking a large picture", on_progress, HINT):
            if not file.exists():
                remove_partials(folder)
                _write_copy(file, open_picture(), config)
    return StoredPicture(np.asarray(np.load(file, mmap_mode="r")))


def _write_copy(file: Path, picture: FilePicture, config: DataConfig) -> None:
    height, width, _ = picture.shape
    factor = 1
    while min(height, width) >= 2 * factor * LEAST_SIDES * config.image_size:
        factor *= 2
    pixels = picture.shrink(factor)
    try:
        write_whole(file, lambda out: np.save(out, pixels))
    except OSError as error:
        raise UserError(
            f"{file}: the copy of a large picture cannot be stored ({error.strerror}): make room, or {HINT}"
        ) from None
