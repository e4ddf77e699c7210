"""LeCun's IDX files, and datasets of four such files.

torchvision.datasets.MNIST reads them too, but only unpacked and in a folder of its own naming.
"""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tutelage.data.datasets.download import OnProgress, Remote, fetch, ignore_progress
from tutelage.data.source import LARGEST_IN_MEMORY, Part, Source, from_parts
from tutelage.errors import UserError
from tutelage.storage import cache_folder

UNSIGNED_BYTES = 0x0800  # the data type in the magic number, to which the number of axes is added
IMAGE_AXES, LABEL_AXES = 3, 1
TRAIN, TEST = "train", "t10k"  # prefixes of the files' names


@dataclass(frozen=True)
class IdxDataset:
    """A dataset of four IDX files with the names that MNIST gave them.

    Attributes:
        title: its name in messages.
        cache_name: its folder in the cache.
        torchvision_folder: the folder below a root in which torchvision stores it.
        files: the gzipped files on the network.
        classes: the classes' names.
    """

    title: str
    cache_name: str
    torchvision_folder: str
    files: tuple[Remote, ...]
    classes: tuple[str, ...]


def fetch_idx_files(dataset: IdxDataset, root: str | None, on_progress: OnProgress = ignore_progress) -> Path:
    """Return the folder with a dataset's files: at ``root``, or in our cache, into which missing files are downloaded.

    Raises:
        UserError: the files are not at ``root``, or cannot be downloaded.
    """
    if root is None:
        folder = cache_folder(dataset.cache_name)
        for remote in dataset.files:
            fetch(remote, folder, dataset.title, on_progress)
        return folder
    folder = Path(root).expanduser()
    for candidate in (folder, folder / dataset.torchvision_folder):
        if next(candidate.glob(f"{TRAIN}-images-idx3-ubyte*"), None):
            return candidate
    raise UserError(f"data.root={root}: no {dataset.title} there (looked for {TRAIN}-images-idx3-ubyte.gz)")


def read_idx_source(folder: Path, classes: tuple[str, ...], image_size: int, channels: int) -> Source:
    """Return the dataset in the four IDX files of ``folder``.

    Raises:
        UserError: a file is missing or damaged.
    """
    train, test = (
        Part(
            read_idx(folder / f"{part}-images-idx3-ubyte", IMAGE_AXES)[..., None],
            read_idx(folder / f"{part}-labels-idx1-ubyte", LABEL_AXES),
        )
        for part in (TRAIN, TEST)
    )
    return from_parts(folder, train, test, classes, image_size, channels)


def read_idx(path: Path, axes: int) -> np.ndarray:
    """Return the uint8 array with ``axes`` axes in the file ``path``.gz, or else in ``path``.

    Raises:
        UserError: there is no such file, it is not an IDX file of such an array, or it is not whole. No more of it is
            read, or unpacked, than its header announces, and ``LARGEST_IN_MEMORY`` at most.
    """
    gzipped = path.with_name(f"{path.name}.gz")
    file = path if path.is_file() and not gzipped.is_file() else gzipped
    try:
        with file.open("rb") if file == path else gzip.open(file) as content:
            header = content.read(struct.calcsize(f">{1 + axes}I"))
            magic, *shape = struct.unpack(f">{1 + axes}I", header)
            size = math.prod(shape)
            values = content.read(size + 1 if size <= LARGEST_IN_MEMORY else 0)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"{file}: cannot be read ({error}); fetch the file again") from None
    if magic != UNSIGNED_BYTES + axes:
        raise UserError(
            f"{file}: cannot be read (it begins with {magic:08x}, but an IDX file of bytes with {axes} axes begins "
            f"with {UNSIGNED_BYTES + axes:08x}); fetch the file again"
        )
    if len(values) != size:
        following = f"{len(values):,} follow" if len(values) < size else "more follow"
        if size > LARGEST_IN_MEMORY:
            following = f"{LARGEST_IN_MEMORY:,} are allowed"
        raise UserError(
            f"{file}: cannot be read (its header announces {size:,} bytes, {following}); fetch the file again"
        )
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)
