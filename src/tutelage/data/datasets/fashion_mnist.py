"""Fashion-MNIST (Xiao et al. 2017), in LeCun's IDX files."""

from pathlib import Path

from tutelage.data.datasets.download import OnProgress, Remote, ignore_progress
from tutelage.data.datasets.idx import IdxDataset, fetch_idx_files, read_idx_source
from tutelage.data.source import Source
from tutelage.errors import UserError

HOME = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
FASHION_MNIST = IdxDataset(
    title="Fashion-MNIST",
    cache_name="fashion_mnist",
    torchvision_folder="FashionMNIST/raw",
    files=(
        Remote(f"{HOME}/train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
        Remote(f"{HOME}/train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe", 29_515),
        Remote(f"{HOME}/t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79", 4_422_102),
        Remote(f"{HOME}/t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310", 5_148),
    ),
    classes=("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def fetch_fashion_mnist(root: str | None, on_progress: OnProgress = ignore_progress) -> Path:
    """Return the folder of the files: ``root``, else Debian's package, else our cache, into which they are downloaded.

    Raises:
        UserError: they are not there, or cannot be downloaded.
    """
    if root is None and DEBIAN_FOLDER.is_dir():
        root = str(DEBIAN_FOLDER)
    try:
        return fetch_idx_files(FASHION_MNIST, root, on_progress)
    except UserError as error:
        raise UserError(f"{error}; or apt-get install dataset-fashion-mnist") from None


def fashion_mnist(
    root: str | None, image_size: int, channels: int, on_progress: OnProgress = ignore_progress
) -> Source:
    """Return Fashion-MNIST (Xiao et al. 2017) from ``root``, else from Debian's package, else from our cache.

    It is downloaded if the cache lacks it.

    Raises:
        UserError: the dataset is not there, cannot be downloaded, or is damaged.
    """
    folder = fetch_fashion_mnist(root, on_progress)
    return read_idx_source(folder, FASHION_MNIST.classes, image_size, channels)
