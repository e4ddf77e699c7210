"""Fashion-MNIST (Xiao et al. 2017), in LeCun's IDX files."""

from pathlib import Path

from tutelage.data.datasets.download import OnProgress, Remote, silent
from tutelage.data.datasets.idx import IdxDataset, idx_folder, idx_source
from tutelage.data.source import Source
from tutelage.errors import UserError

MAKERS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
FASHION_MNIST = IdxDataset(
    what="Fashion-MNIST",
    name="fashion_mnist",
    inner="FashionMNIST/raw",
    files=(
        Remote(f"{MAKERS}/train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
        Remote(f"{MAKERS}/train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe", 29_515),
        Remote(f"{MAKERS}/t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79", 4_422_102),
        Remote(f"{MAKERS}/t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310", 5_148),
    ),
    classes=("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def fashion_mnist(root: str | None, image_size: int, channels: int, tell: OnProgress = silent) -> Source:
    """Return Fashion-MNIST (Xiao et al. 2017) from ``root``, Debian's package, or our cache, where it is downloaded to.

    Raises:
        UserError: it is nowhere, cannot be downloaded, or is damaged.
    """
    if root is None and DEBIAN_FOLDER.is_dir():
        root = str(DEBIAN_FOLDER)
    try:
        folder = idx_folder(FASHION_MNIST, root, tell)
    except UserError as error:
        raise UserError(f"{error}; or apt-get install dataset-fashion-mnist") from None
    return idx_source(folder, FASHION_MNIST.classes, image_size, channels)
