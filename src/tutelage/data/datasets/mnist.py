"""MNIST (LeCun et al. 1998)."""

from tutelage.data.datasets.download import OnProgress, Remote, silent
from tutelage.data.datasets.idx import IdxDataset, idx_folder, idx_source
from tutelage.data.source import Source

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist"  # PyTorch's
MNIST = IdxDataset(
    what="MNIST",
    name="mnist",
    inner="MNIST/raw",
    files=(
        Remote(f"{MIRROR}/train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
        Remote(f"{MIRROR}/train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432", 28_881),
        Remote(f"{MIRROR}/t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3", 1_648_877),
        Remote(f"{MIRROR}/t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c", 4_542),
    ),
    classes=tuple(map(str, range(10))),
)


def mnist(root: str | None, image_size: int, channels: int, tell: OnProgress = silent) -> Source:
    """Return MNIST (LeCun et al. 1998) from ``root``, or from our cache, where it is downloaded to.

    Raises:
        UserError: it is nowhere, cannot be downloaded, or is damaged.
    """
    return idx_source(idx_folder(MNIST, root, tell), MNIST.classes, image_size, channels)
