"""STL-10 (Coates et al. 2011): few labelled images and many unlabelled ones."""

from pathlib import Path

import numpy as np

from tutelage.data.datasets.download import Archive, OnProgress, Remote, fetch_and_unpack, ignore_progress
from tutelage.data.source import Part, Source, from_parts, read_class_names
from tutelage.errors import UserError

HOME = "http://ai.stanford.edu/~acoates/stl10"
STL10 = Archive(
    title="STL-10",
    cache_name="stl10",
    remote=Remote(f"{HOME}/stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb", 2_640_397_119),
    top_folder="stl10_binary",
    marker="train_X.bin",
)
SIDE, COLOURS = 96, 3
IMAGE_BYTES = COLOURS * SIDE * SIDE


def fetch_stl10(root: str | None, on_progress: OnProgress = ignore_progress) -> Path:
    """Return the folder of STL-10's files, at ``root`` or in our cache, into which they are downloaded and unpacked.

    Raises:
        UserError: they are not there, or cannot be downloaded or unpacked.
    """
    return fetch_and_unpack(STL10, root, on_progress)


def stl10(root: str | None, image_size: int, channels: int, on_progress: OnProgress = ignore_progress) -> Source:
    """Return STL-10 (Coates et al. 2011); each of its images is read from the disk when it is used.

    Args:
        root: the folder with stl10_binary.tar.gz, the folder stl10_binary or its parent; None for our cache, into which
            it is downloaded.
        image_size: side of the images returned; the dataset's are 96 pixels wide.
        channels: 1 or 3.
        on_progress: receives the progress of the download.

    Raises:
        UserError: the dataset is not there, cannot be downloaded, or is damaged.
    """
    folder = fetch_stl10(root, on_progress)
    train, test = (
        Part(_map_images(folder / f"{part}_X.bin"), _read_labels(folder / f"{part}_y.bin"))
        for part in ("train", "test")
    )
    classes = read_class_names(folder / "class_names.txt")
    unlabelled = _map_images(folder / "unlabeled_X.bin")
    return from_parts(folder, train, test, classes, image_size, channels, unlabelled)


def _map_images(file: Path) -> np.ndarray:
    """Return the images (N, 96, 96, 3) of a file, memory-mapped; the file has them by colour, column and row."""
    try:
        size = file.stat().st_size
        if not size or size % IMAGE_BYTES:
            raise UserError(
                f"{file}: {size:,} bytes, not a multiple of {IMAGE_BYTES:,}; remove the folder to unpack it again"
            )
        stored = np.memmap(file, dtype=np.uint8, mode="r", shape=(size // IMAGE_BYTES, COLOURS, SIDE, SIDE))
    except OSError as error:
        raise _read_error(file, error) from None
    return stored.transpose(0, 3, 2, 1)


def _read_labels(file: Path) -> np.ndarray:
    """Return the labels (N,) int64 of a file; the file counts from 1."""
    try:
        return np.fromfile(file, dtype=np.uint8).astype(np.int64) - 1
    except OSError as error:
        raise _read_error(file, error) from None


def _read_error(file: Path, error: OSError) -> UserError:
    return UserError(f"{file}: cannot be read ({error.strerror}); remove the folder to unpack it again")
