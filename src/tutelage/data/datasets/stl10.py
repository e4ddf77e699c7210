"""STL-10 (Coates et al. 2011): few labelled images and many unlabelled ones."""

from pathlib import Path

import numpy as np

from tutelage.data.datasets.download import Archive, OnProgress, Remote, silent, unpacked
from tutelage.data.source import Part, Source, class_names, from_parts
from tutelage.errors import UserError

HOME = "http://ai.stanford.edu/~acoates/stl10"
STL10 = Archive(
    what="STL-10",
    name="stl10",
    remote=Remote(f"{HOME}/stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb", 2_640_397_119),
    inner="stl10_binary",
    marker="train_X.bin",
)
SIDE, COLOURS = 96, 3
PIXELS = COLOURS * SIDE * SIDE


def stl10(root: str | None, image_size: int, channels: int, tell: OnProgress = silent) -> Source:
    """Return STL-10 (Coates et al. 2011); its images stay on the disk until they are asked for.

    Args:
        root: the folder with stl10_binary.tar.gz, the folder stl10_binary or its parent; None: our cache, where it is
            downloaded to.
        image_size: of the images returned; they are 96 pixels wide.
        channels: 1 or 3.
        tell: is told of the download.

    Raises:
        UserError: it is nowhere, cannot be downloaded, or is damaged.
    """
    folder = unpacked(STL10, root, tell)
    train, test = (
        Part(_images(folder / f"{part}_X.bin"), _labels(folder / f"{part}_y.bin")) for part in ("train", "test")
    )
    classes = class_names(folder / "class_names.txt")
    return from_parts(folder, train, test, classes, image_size, channels, _images(folder / "unlabeled_X.bin"))


def _images(file: Path) -> np.ndarray:
    """Return the images (N, 96, 96, 3) of a file, memory-mapped; they are stored by colour, column and row."""
    try:
        size = file.stat().st_size
        if not size or size % PIXELS:
            raise UserError(
                f"{file}: {size:,} bytes, not a multiple of {PIXELS:,}; remove the folder to unpack it again"
            )
        stored = np.memmap(file, dtype=np.uint8, mode="r", shape=(size // PIXELS, COLOURS, SIDE, SIDE))
    except OSError as error:
        raise _unread(file, error) from None
    return stored.transpose(0, 3, 2, 1)


def _labels(file: Path) -> np.ndarray:
    """Return the labels (N,) int64 of a file, in which they count from 1."""
    try:
        return np.fromfile(file, dtype=np.uint8).astype(np.int64) - 1
    except OSError as error:
        raise _unread(file, error) from None


def _unread(file: Path, error: OSError) -> UserError:
    return UserError(f"{file}: cannot be read ({error.strerror}); remove the folder to unpack it again")
