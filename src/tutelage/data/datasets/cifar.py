"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from the archives of binary files.

torchvision reads the archives of Python pickles; we read plain bytes, because loading a pickle can run code.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tutelage.data.datasets.download import Archive, OnProgress, Remote, fetch_and_unpack, ignore_progress
from tutelage.data.source import Part, Source, from_parts, read_class_names
from tutelage.errors import UserError

HOME = "https://www.cs.toronto.edu/~kriz"
CIFAR10 = Archive(
    title="CIFAR-10",
    cache_name="cifar10",
    remote=Remote(f"{HOME}/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", 170_052_171),
    top_folder="cifar-10-batches-bin",
    marker="test_batch.bin",
)
CIFAR100 = Archive(
    title="CIFAR-100",
    cache_name="cifar100",
    remote=Remote(f"{HOME}/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", 168_513_733),
    top_folder="cifar-100-binary",
    marker="train.bin",
)
SIDE, COLOURS = 32, 3
PIXEL_BYTES = COLOURS * SIDE * SIDE


def fetch_cifar10(root: str | None, on_progress: OnProgress = ignore_progress) -> Path:
    """Return the folder of CIFAR-10's files, at ``root`` or in our cache, into which they are downloaded and unpacked.

    Raises:
        UserError: they are not there, or cannot be downloaded or unpacked.
    """
    return fetch_and_unpack(CIFAR10, root, on_progress)


def cifar10(root: str | None, image_size: int, channels: int, on_progress: OnProgress = ignore_progress) -> Source:
    """Return CIFAR-10 (Krizhevsky 2009) from ``root``, or from our cache; download it if the cache lacks it.

    Args:
        root: the folder with cifar-10-binary.tar.gz, the folder cifar-10-batches-bin or its parent; None for our cache.
        image_size: side of the images returned; the dataset's are 32 pixels wide.
        channels: 1 or 3.
        on_progress: receives the progress of the download.

    Raises:
        UserError: the dataset is not there, cannot be downloaded, or is damaged.
    """
    folder = fetch_cifar10(root, on_progress)
    train = _read_part([folder / f"data_batch_{number}.bin" for number in range(1, 6)], label_bytes=1)
    test = _read_part([folder / "test_batch.bin"], label_bytes=1)
    return from_parts(folder, train, test, read_class_names(folder / "batches.meta.txt"), image_size, channels)


def fetch_cifar100(root: str | None, on_progress: OnProgress = ignore_progress) -> Path:
    """Return the folder of CIFAR-100's files, at ``root`` or in our cache, into which they are downloaded and unpacked.

    Raises:
        UserError: they are not there, or cannot be downloaded or unpacked.
    """
    return fetch_and_unpack(CIFAR100, root, on_progress)


def cifar100(root: str | None, image_size: int, channels: int, on_progress: OnProgress = ignore_progress) -> Source:
    """Return CIFAR-100 (Krizhevsky 2009) with its 100 fine labels; see ``cifar10``.

    Raises:
        UserError: the dataset is not there, cannot be downloaded, or is damaged.
    """
    folder = fetch_cifar100(root, on_progress)
    train, test = (_read_part([folder / f"{part}.bin"], label_bytes=2) for part in ("train", "test"))
    return from_parts(folder, train, test, read_class_names(folder / "fine_label_names.txt"), image_size, channels)


def _read_part(files: Sequence[Path], label_bytes: int) -> Part:
    """Return the images and labels in ``files``.

    A record is ``label_bytes`` labels, the fine one last, and then the pixels by colour, row and column.
    """
    records = np.concatenate([_read_records(file, label_bytes + PIXEL_BYTES) for file in files])
    images = records[:, label_bytes:].reshape(-1, COLOURS, SIDE, SIDE).transpose(0, 2, 3, 1)
    return Part(images, records[:, label_bytes - 1])


def _read_records(file: Path, length: int) -> np.ndarray:
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
