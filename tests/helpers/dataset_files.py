"""Files of public datasets as their makers write them, with few images."""

from pathlib import Path

import numpy as np

from helpers.images import random_images

TRAIN, TEST, UNLABELLED = 20, 10, 7  # images in each part
STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def make_labels(count: int, classes: int = 10) -> np.ndarray:
    """Return labels (N,) in which every class comes up in turn."""
    return (np.arange(count) * 7 + count) % classes


def colour_columns(image: np.ndarray) -> bytes:
    """Return an image (H, W, C) as its colours one after the other, each column by column."""
    return b"".join(image[..., colour].T.tobytes() for colour in range(image.shape[2]))


def write_stl10(folder: Path) -> None:
    """Write what https://cs.stanford.edu/~acoates/stl10 calls the binary files."""
    inner = folder / "stl10_binary"
    inner.mkdir(parents=True)
    for part, count in (("train", TRAIN), ("test", TEST), ("unlabeled", UNLABELLED)):
        (inner / f"{part}_X.bin").write_bytes(b"".join(map(colour_columns, random_images(count, 96, 3))))
        if part != "unlabeled":
            (inner / f"{part}_y.bin").write_bytes(bytes((make_labels(count) + 1).tolist()))
    (inner / "class_names.txt").write_text("\n".join(STL10_CLASSES) + "\n")
