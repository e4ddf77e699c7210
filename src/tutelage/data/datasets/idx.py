"""LeCun's IDX files, and datasets that are four of them."""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tutelage.data.datasets.download import OnProgress, Remote, cache_folder, fetch, silent
from tutelage.data.source import Part, Source, from_parts
from tutelage.errors import UserError

UNSIGNED_BYTES = 0x0800  # the magic number's type, to which the number of axes is added
IMAGE_AXES, LABEL_AXES = 3, 1
TRAIN, TEST = "train", "t10k"  # how the files' names begin


@dataclass(frozen=True)
class IdxDataset:
    """A dataset of four IDX files with the names that MNIST gave them.

    Attributes:
        what: its name, for messages.
        name: its folder in the cache.
        inner: its folder below a root, where torchvision has put it.
        files: the gzipped files on the network.
        classes: the classes' names.
    """

    what: str
    name: str
    inner: str
    files: tuple[Remote, ...]
    classes: tuple[str, ...]


def idx_folder(dataset: IdxDataset, root: str | None, tell: OnProgress = silent) -> Path:
    """Return the folder with a dataset's files: at ``root``, or in our cache, where they are downloaded to.

    Raises:
        UserError: they are not at ``root``, or cannot be downloaded.
    """
    if root is None:
        folder = cache_folder(dataset.name)
        for remote in dataset.files:
            fetch(remote, folder, dataset.what, tell)
        return folder
    folder = Path(root).expanduser()
    for candidate in (folder, folder / dataset.inner):
        if next(candidate.glob(f"{TRAIN}-images-idx3-ubyte*"), None):
            return candidate
    raise UserError(f"data.root={root}: no {dataset.what} there (looked for {TRAIN}-images-idx3-ubyte.gz)")


def idx_source(folder: Path, classes: tuple[str, ...], image_size: int, channels: int) -> Source:
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
    """Return the array uint8 with so many axes in the file ``path``.gz, or else ``path``.

    Raises:
        UserError: there is no such file, it is no IDX file of such an array, or it is not whole.
    """
    packed = path.with_name(f"{path.name}.gz")
    file = path if path.is_file() and not packed.is_file() else packed
    try:
        content = file.read_bytes() if file == path else gzip.decompress(file.read_bytes())
        magic, *shape = struct.unpack_from(f">{1 + axes}I", content)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"{file}: cannot be read ({error}); fetch the file again") from None
    values = content[struct.calcsize(f">{1 + axes}I") :]
    if magic != UNSIGNED_BYTES + axes:
        raise UserError(
            f"{file}: cannot be read (it begins with {magic:08x}, an IDX file of bytes with {axes} axes "
            f"with {UNSIGNED_BYTES + axes:08x}); fetch the file again"
        )
    if len(values) != math.prod(shape):
        raise UserError(
            f"{file}: cannot be read (its header announces {math.prod(shape):,} bytes, {len(values):,} follow); "
            "fetch the file again"
        )
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)
