"""SVHN, house numbers cropped to digits (Netzer et al. 2011), in MATLAB's files."""

from pathlib import Path

import numpy as np

from tutelage.data.datasets.download import OnProgress, Remote, fetch, ignore_progress
from tutelage.data.source import Part, Source, from_parts
from tutelage.errors import UserError
from tutelage.storage import cache_folder

HOME = "http://ufldl.stanford.edu/housenumbers"
FILES = (
    Remote(f"{HOME}/train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", 182_040_794),
    Remote(f"{HOME}/test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", 64_275_384),
)
CLASSES = tuple(map(str, range(10)))
LABEL_OF_ZERO = 10  # MATLAB counts from 1
AXES = 4


def fetch_svhn(root: str | None, on_progress: OnProgress = ignore_progress) -> Path:
    """Return the folder of SVHN's files: ``root``, or our cache, into which they are downloaded.

    Raises:
        UserError: they are not there, or cannot be downloaded.
    """
    if root is None:
        folder = cache_folder("svhn")
        for remote in FILES:
            fetch(remote, folder, "SVHN", on_progress)
        return folder
    folder = Path(root).expanduser()
    for remote in FILES:
        if not (folder / remote.name).is_file():
            raise UserError(f"data.root={root}: no SVHN there (looked for {remote.name})")
    return folder


def svhn(root: str | None, image_size: int, channels: int, on_progress: OnProgress = ignore_progress) -> Source:
    """Return SVHN (Netzer et al. 2011), format 2, without the 531,131 extra images.

    Args:
        root: the folder with train_32x32.mat and test_32x32.mat; None for our cache, into which they are downloaded.
        image_size: side of the images returned; the dataset's are 32 pixels wide.
        channels: 1 or 3.
        on_progress: receives the progress of the download.

    Raises:
        UserError: the dataset is not there, cannot be downloaded, or is damaged.
    """
    folder = fetch_svhn(root, on_progress)
    train, test = (_read_matlab_file(folder / remote.name) for remote in FILES)
    return from_parts(folder, train, test, CLASSES, image_size, channels)


def _read_matlab_file(file: Path) -> Part:
    """Return the images ``X`` (rows, columns, colours, N) and the labels ``y`` (N, 1), 1 to 10, of a MATLAB file."""
    from scipy.io import loadmat

    try:
        content = loadmat(file, variable_names=["X", "y"])
        images, labels = content["X"], content["y"].reshape(-1)
    except Exception as error:  # scipy does not document what it raises on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{file}: cannot be read ({reason}); fetch the file again") from None
    if images.dtype != np.uint8 or images.ndim != AXES:
        raise UserError(f"{file}: X is {images.dtype} {images.shape}, not uint8 of 4 axes; fetch the file again")
    return Part(images.transpose(3, 0, 1, 2), np.where(labels == LABEL_OF_ZERO, 0, labels))
