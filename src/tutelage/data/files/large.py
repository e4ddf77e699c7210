"""Copies of large pictures at a smaller size, made once, in files of our cache that processes map.

A picture of 169 million pixels takes seconds and 700 MB to decode, and a step shows a few thousand of its pixels.
"""

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.datasets.download import OnProgress, wait_for_lock
from tutelage.data.files.conversion import average_pixels
from tutelage.data.files.decoding import FilePicture, decoder_versions, read_header
from tutelage.data.files.names import printable
from tutelage.errors import UserError
from tutelage.storage import cache_folder, digest, format_size, remove_partials, write_whole

LARGE_PIXELS = 1 << 25  # pictures with more are shrunk; cameras and phones make some of 45 million and more
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


def fingerprint_with_shrinking(fingerprint: str, pixels: np.ndarray) -> str:
    """Return the fingerprint of files with these numbers of pixels (N,): another one if large ones are among them.

    Without it, runs would have the names of those of versions that did not shrink, or shrank in another way.
    """
    return digest([fingerprint, "shrunk", VERSION]) if (pixels > LARGE_PIXELS).any() else fingerprint


def open_copy(content: bytes, config: DataConfig) -> StoredPicture | None:
    """Return the copy of a large picture, memory-mapped, by its file's SHA-256; None if it is missing or damaged."""
    try:
        return StoredPicture(np.asarray(np.load(_copy_path(content, config), mmap_mode="r")))
    except (OSError, ValueError, EOFError):
        return None


def shrink_picture(picture: FilePicture, config: DataConfig) -> StoredPicture:
    """Return a large picture at the size of its copies.

    Height and width are divided by the largest power of 2 that leaves ``LEAST_SIDES`` times ``data.image_size``, so
    that the pixels depend on the file and the config alone.

    Raises:
        UserError: the file is damaged.
    """
    height, width, _ = picture.shape
    return StoredPicture(picture.shrink(_find_factor(height, width, config)))


def shrink_pixels(pixels: np.ndarray, config: DataConfig) -> np.ndarray:
    """Return pixels (H, W, C) uint8 as they are; those of a large picture at the size of its copies."""
    height, width, _ = pixels.shape
    return average_pixels(pixels, _find_factor(height, width, config)) if height * width > LARGE_PIXELS else pixels


def write_copies(
    paths: Mapping[bytes, str], open_file: Callable[[str], FilePicture], config: DataConfig, on_progress: OnProgress
) -> None:
    """Store the copies of large pictures that have none yet; of several processes one works and the others wait.

    Args:
        paths: of the pictures' files, by the SHA-256 of their contents.
        open_file: returns the picture of a path.
        config: the dataset's config.
        on_progress: receives the progress, also while another process works; may raise to stop.

    Raises:
        UserError: a file is damaged, or the copies cannot be stored.
    """

    def find_missing() -> list[bytes]:
        return [content for content in paths if open_copy(content, config) is None]

    if not find_missing():
        return
    folder = cache_folder(CACHE_NAME)
    with wait_for_lock(folder, "lock", "another process is shrinking large pictures", on_progress, HINT):
        missing = find_missing()
        if not missing:
            return
        remove_partials(folder)
        _announce(folder, [paths[content] for content in missing], config)
        for done, content in enumerate(missing):
            on_progress(f"shrinking {len(missing):,} large pictures", done / len(missing))
            _write_copy(_copy_path(content, config), shrink_picture(open_file(paths[content]), config).pixels)


def _write_copy(file: Path, pixels: np.ndarray) -> None:
    try:
        write_whole(file, lambda out: np.save(out, pixels))
    except OSError as error:
        raise _storage_error(file, error.strerror or str(error)) from None


def _announce(folder: Path, paths: Sequence[str], config: DataConfig) -> None:
    """Say how large the copies of files will be; raise a UserError where they do not fit."""
    size = 0
    for path in paths:
        width, height, *_ = read_header(Path(path), printable(path), config.max_pixels)
        factor = _find_factor(height, width, config)
        size += -(-height // factor) * -(-width // factor) * config.channels
    needed, free = format_size(size), shutil.disk_usage(folder).free
    if free < size:
        raise _storage_error(folder, f"{len(paths):,} need {needed}, {format_size(free)} are free")
    pictures = "1 large picture" if len(paths) == 1 else f"{len(paths):,} large pictures"
    print(f"shrinking {pictures} into {needed} in {folder}", file=sys.stderr, flush=True)


def _storage_error(place: Path, reason: str) -> UserError:
    return UserError(f"{place}: copies of large pictures cannot be stored ({reason}): make room, or {HINT}")


def _copy_path(content: bytes, config: DataConfig) -> Path:
    settings = [VERSION, decoder_versions(), config.image_size, config.channels, config.background, config.white]
    return cache_folder(CACHE_NAME) / f"{digest([*settings, content.hex()])[:KEY_LENGTH]}.npy"


def _find_factor(height: int, width: int, config: DataConfig) -> int:
    factor = 1
    while min(height, width) >= 2 * factor * LEAST_SIDES * config.image_size:
        factor *= 2
    return factor
