"""MNIST (LeCun et al. 1998)."""

from pathlib import Path

from tutelage.data.datasets.download import OnProgress, Remote, ignore_progress
from tutelage.data.datasets.idx import IdxDataset, fetch_idx_files, read_idx_source
from tutelage.data.source import Source

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist"  # PyTorch's
MNIST = IdxDataset(
    title="MNIST",
    cache_name="mnist",
    torchvision_folder="MNIST/raw",
    files=(
        Remote(f"{MIRROR}/train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
        Remote(f"{MIRROR}/train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432", 28_881),
        Remote(f"{MIRROR}/t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3", 1_648_877),
        Remote(f"{MIRROR}/t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c", 4_542),
    ),
    classes=tuple(map(str, range(10))),
)


def fetch_mnist(root: str | None, on_progress: OnProgress = ignore_progress) -> Path:
    """Return the folder of MNIST's files: ``root``, or our cache, into which they are downloaded.

    Raises:
        UserError: they are not there, or cannot be downloaded.
    """
    return fetch_idx_files(MNIST, root, on_progress)


def mnist(root: str | None, image_size: int, channels: int, on_progress: OnProgress = ignore_progress) -> Source:
    """Return MNIST (LeCun et al. 1998) from ``root``, or from our cache; download it if the cache lacks it.

    Raises:
        UserError: the dataset is not there, cannot be downloaded, or is damaged.
    """
    return read_idx_source(fetch_mnist(root, on_progress), MNIST.classes, image_size, channels)
