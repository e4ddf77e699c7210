"""Fashion-MNIST (Xiao et al. 2017), in LeCun's IDX files."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from tutelage.data.source import Numbered, Source, no_images, resized, with_channels
from tutelage.errors import UserError

PIXELS = 28 * 28
IDX_HEADER_BYTES = {"images": 16, "labels": 8}
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def fashion_mnist(root: str | None, image_size: int, channels: int) -> Source:
    """Return Fashion-MNIST (Xiao et al. 2017) from ``root``, Debian's package, or torchvision's download.

    Raises:
        UserError: it is nowhere and cannot be downloaded.
    """
    folder = _folder(root)
    images, labels = [], []
    for part in ("train", "t10k"):
        pixels = _idx(folder, f"{part}-images-idx3-ubyte", "images")
        images.append(pixels[: len(pixels) // PIXELS * PIXELS].reshape(-1, 28, 28, 1))
        labels.append(_idx(folder, f"{part}-labels-idx1-ubyte", "labels").astype(np.int64))
        if len(images[-1]) != len(labels[-1]):
            raise UserError(f"{folder}: {part} has {len(images[-1])} images and {len(labels[-1])} labels")
    both = np.concatenate(images)
    if image_size != both.shape[1]:
        both = np.stack([resized(image, image_size) for image in both])
    count = len(images[0])
    return Source(
        images=with_channels(both, channels),
        labels=np.concatenate(labels),
        classes=CLASSES,
        train=np.arange(count),
        test=np.arange(count, len(both)),
        val=no_images(),
        unlabelled=no_images(),
        names=Numbered(len(both)),
    )


def _folder(root: str | None) -> Path:
    if root is not None:
        folder = Path(root).expanduser()
        for candidate in (folder, folder / "FashionMNIST" / "raw"):
            if next(candidate.glob("train-images-idx3-ubyte*"), None):
                return candidate
        raise UserError(f"data.root={root}: no Fashion-MNIST there (looked for train-images-idx3-ubyte.gz)")
    if DEBIAN_FOLDER.is_dir():
        return DEBIAN_FOLDER
    cache = Path("~/.cache/tutelage").expanduser()
    folder = cache / "FashionMNIST" / "raw"
    if not next(folder.glob("t10k-labels-idx1-ubyte*"), None):
        from torchvision.datasets import FashionMNIST

        try:
            print(f"Fashion-MNIST: downloading 31 MB to {folder}", flush=True)
            FashionMNIST(str(cache), download=True)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"data=fashion_mnist: not on this machine, and the download failed ({reason}): "
                "apt-get install dataset-fashion-mnist, or data.root=FOLDER with its four files"
            ) from None
    return folder


def _idx(folder: Path, name: str, kind: str) -> np.ndarray:
    """Return the bytes of an IDX file (LeCun's format), gzipped or not, without its header."""
    packed, plain = folder / f"{name}.gz", folder / name
    try:
        content = gzip.decompress(packed.read_bytes()) if packed.is_file() else plain.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{packed}: cannot be read ({error}); fetch the file again") from None
    return np.frombuffer(content, dtype=np.uint8)[IDX_HEADER_BYTES[kind] :]
