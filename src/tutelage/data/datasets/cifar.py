"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from the archives of plain bytes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tutelage.data.datasets.download import Archive, OnProgress, Remote, silent, unpacked
from tutelage.data.source import Part, Source, class_names, from_parts
from tutelage.errors import UserError

HOME = "https://www.cs.toronto.edu/~kriz"
CIFAR10 = Archive(
    what="CIFAR-10",
    name="cifar10",
    remote=Remote(f"{HOME}/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", 170_052_171),
    inner="cifar-10-batches-bin",
    marker="test_batch.bin",
)
CIFAR100 = Archive(
    what="CIFAR-100",
    name="cifar100",
    remote=Remote(f"{HOME}/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", 168_513_733),
    inner="cifar-100-binary",
    marker="train.bin",
)
SIDE, COLOURS = 32, 3
PIXELS = COLOURS * SIDE * SIDE


def cifar10(root: str | None, image_size: int, channels: int, tell: OnProgress = silent) -> Source:
    """Return CIFAR-10 (Krizhevsky 2009) from ``root``, or from our cache, where it is downloaded to.

    Args:
        root: the folder with cifar-10-binary.tar.gz, the folder cifar-10-batches-bin or its parent; None: our cache.
        image_size: of the images returned; they are 32 pixels wide.
        channels: 1 or 3.
        tell: is told of the download.

    Raises:
        UserError: it is nowhere, cannot be downloaded, or is damaged.
    """
    folder = unpacked(CIFAR10, root, tell)
    train = _part([folder / f"data_batch_{number}.bin" for number in range(1, 6)], label_bytes=1)
    test = _part([folder / "test_batch.bin"], label_bytes=1)
    return from_parts(folder, train, test, class_names(folder / "batches.meta.txt"), image_size, channels)


def cifar100(root: str | None, image_size: int, channels: int, tell: OnProgress = silent) -> Source:
    """Return CIFAR-100 (Krizhevsky 2009) with its 100 fine labels; see ``cifar10``.

    Raises:
        UserError: it is nowhere, cannot be downloaded, or is damaged.
    """
    folder = unpacked(CIFAR100, root, tell)
    train, test = (_part([folder / f"{part}.bin"], label_bytes=2) for part in ("train", "test"))
    return from_parts(folder, train, test, class_names(folder / "fine_label_names.txt"), image_size, channels)


def _part(files: Sequence[Path], label_bytes: int) -> Part:
    """Return the images and labels in ``files``, whose records are the labels, the fine one last, and the pixels.

    Pixels are stored by colour, row and column.
    """
    records = np.concatenate([_records(file, label_bytes + PIXELS) for file in files])
    images = records[:, label_bytes:].reshape(-1, COLOURS, SIDE, SIDE).transpose(0, 2, 3, 1)
    return Part(images, records[:, label_bytes - 1])


def _records(file: Path, length: int) -> np.ndarray:
    """Return the records (N, length) uint8 of a file."""
    try:
        content = np.fromfile(file, dtype=np.uint8)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); remove the folder to unpack it again") from None
    if not len(content) or len(content) % length:
        raise UserError(
            f"{file}: {len(content):,} bytes, not a multiple of {length:,}; remove the folder to unpack it again"
        )
    return content.reshape(-1, length)
