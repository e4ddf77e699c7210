"""Where images and labels come from: in memory or in files, one index space for a whole dataset."""

import gzip
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from tutelage.errors import UserError
from tutelage.randomness import Key
from tutelage.storage import digest

UNKNOWN = -1  # the label of an image that has none
DIGITS_TEST_IMAGES = 450
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})
IDX_HEADER_BYTES = {"images": 16, "labels": 8}
PARTS = ("train", "val", "test", "unlabelled")


class Images(Protocol):
    """A sequence of uint8 images (H, W, C), all of one size."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Source:
    """A dataset before any split: images, what is known of them, and the parts its makers gave it.

    Attributes:
        images: all images; the index arrays below point into them.
        labels: (N,) int64, ``UNKNOWN`` where there is none.
        classes: the classes' names, in the order of their labels.
        train: indices of labelled images to learn from.
        test: indices of the test set.
        val: indices of a validation set of its own, empty where there is none.
        unlabelled: indices of images without labels.
        names: a name for each image (a path, or its number).
    """

    images: Images
    labels: np.ndarray
    classes: tuple[str, ...]
    train: np.ndarray
    test: np.ndarray
    val: np.ndarray
    unlabelled: np.ndarray
    names: Sequence[str]


def _none() -> np.ndarray:
    return np.empty(0, dtype=np.int64)


class Numbered(Sequence[str]):
    """The names of images that have no file: their numbers."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        return str(range(self._count)[index])


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """Return ``image`` (H, W, C) with its shorter side at ``size`` and the longer one cropped to it, centred."""
    import cv2

    height, width, channels = image.shape
    if (height, width) == (size, size):
        return image
    scale = size / min(height, width)
    shape = (max(size, round(width * scale)), max(size, round(height * scale)))
    image = cv2.resize(image, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return np.ascontiguousarray(image[top : top + size, left : left + size]).reshape(size, size, channels)


def with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Return images (..., 1) with their grey value in each of ``channels`` channels."""
    return images if channels == images.shape[-1] else np.repeat(images, channels, axis=-1)


def digits(image_size: int, channels: int) -> Source:
    """Return scikit-learn's 1,797 handwritten digits, enlarged from 8x8.

    The test set is 450 of them, stratified and the same for every seed.
    """
    from sklearn.datasets import load_digits

    from tutelage.data.splits import stratified

    loaded = load_digits()
    grey = np.round(loaded.images * (255 / 16)).astype(np.uint8)[..., None]
    images = np.stack([resized(image, image_size) for image in grey])
    labels = loaded.target.astype(np.int64)
    everything = np.arange(len(labels))
    test = stratified(everything, labels, DIGITS_TEST_IMAGES, Key(0, "digits", "test"))
    return Source(
        images=with_channels(images, channels),
        labels=labels,
        classes=tuple(map(str, range(10))),
        train=np.setdiff1d(everything, test),
        test=test,
        val=_none(),
        unlabelled=_none(),
        names=Numbered(len(labels)),
    )


FASHION_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def fashion_mnist(root: str | None, image_size: int, channels: int) -> Source:
    """Return Fashion-MNIST (Xiao et al. 2017) from ``root``, Debian's package, or torchvision's download.

    Raises:
        UserError: it is nowhere and cannot be downloaded.
    """
    folder = _fashion_folder(root)
    images, labels = [], []
    for part in ("train", "t10k"):
        images.append(_idx(folder, f"{part}-images-idx3-ubyte", "images").reshape(-1, 28, 28, 1))
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
        classes=FASHION_CLASSES,
        train=np.arange(count),
        test=np.arange(count, len(both)),
        val=_none(),
        unlabelled=_none(),
        names=Numbered(len(both)),
    )


def _fashion_folder(root: str | None) -> Path:
    if root is not None:
        folder = Path(root).expanduser()
        for candidate in (folder, folder / "FashionMNIST" / "raw"):
            if next(candidate.glob("train-images-idx3-ubyte*"), None):
                return candidate
        raise UserError(f"data.root={root}: no Fashion-MNIST there (looked for train-images-idx3-ubyte.gz)")
    if DEBIAN_FASHION.is_dir():
        return DEBIAN_FASHION
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
    except (OSError, EOFError) as error:
        raise UserError(f"{packed}: cannot be read ({error}); fetch the file again") from None
    return np.frombuffer(content, dtype=np.uint8, offset=IDX_HEADER_BYTES[kind])


class FileImages:
    """Image files, read when asked for and brought to one size."""

    def __init__(self, paths: Sequence[Path], image_size: int, channels: int) -> None:
        self._paths = paths
        self._size = image_size
        self._mode = "L" if channels == 1 else "RGB"

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        from PIL import Image, ImageOps

        try:
            with Image.open(self._paths[index]) as image:
                pixels = np.asarray(ImageOps.exif_transpose(image).convert(self._mode))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{self._paths[index]}: cannot be read as an image ({error}); mend or remove it") from None
        return resized(pixels.reshape(*pixels.shape[:2], -1), self._size)


@dataclass(frozen=True)
class FolderListing:
    """What an image folder holds: (part, relative path, class or None) of each image, sorted."""

    root: Path
    entries: tuple[tuple[str, str, str | None], ...]
    classes: tuple[str, ...]

    def fingerprint(self) -> str:
        """Return a digest of the sorted relative names, sizes and labels: what the folder *is*, wherever it lies."""
        whole = hashlib.sha256()
        for part, name, label in self.entries:
            whole.update(digest([part, name, label, (self.root / name).stat().st_size]).encode())
        return whole.hexdigest()


def list_folder(root: str | None) -> FolderListing:
    """Return the images under ``root``: ``train/CLASS/``, ``val/``, ``test/`` and ``unlabelled/``; or ``CLASS/`` alone.

    Raises:
        UserError: no folder, no class or no image.
    """
    if root is None:
        raise UserError("data=image_folder needs data.root=FOLDER (with train/CLASS/..., or CLASS/... to be split)")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.root={root}: no such folder")
    entries: list[tuple[str, str, str | None]] = []
    in_parts = (folder / "train").is_dir()
    labelled_parts = {part: folder / part for part in ("train", "val", "test")} if in_parts else {"all": folder}
    for part, top in labelled_parts.items():
        for label in sorted(p.name for p in top.iterdir() if p.is_dir()) if top.is_dir() else ():
            if not in_parts and label == "unlabelled":
                continue
            entries += [(part, path, label) for path in _image_files(folder, top / label)]
    entries += [("unlabelled", path, None) for path in _image_files(folder, folder / "unlabelled")]
    classes = tuple(sorted({label for part, _, label in entries if label is not None and part in {"train", "all"}}))
    if len(classes) < 2:  # noqa: PLR2004 - one class is nothing to tell apart
        where = "train/CLASS/" if in_parts else "CLASS/"
        raise UserError(
            f"data.root={root}: images of {len(classes)} classes found under {where}; at least 2 are needed"
        )
    strange = sorted({label for _, _, label in entries if label is not None} - set(classes))
    if strange:
        raise UserError(f"data.root={root}: classes in val/ or test/ that train/ lacks: {', '.join(strange[:5])}")
    return FolderListing(folder, tuple(entries), classes)


def _image_files(root: Path, folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(
        path.relative_to(root).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )


def image_folder(listing: FolderListing, image_size: int, channels: int) -> Source:
    """Return a folder's images as a source; a folder without ``test/`` has a fifth of each class set aside for it."""
    from tutelage.data.splits import stratified

    number = {label: index for index, label in enumerate(listing.classes)}
    labels = np.array([UNKNOWN if label is None else number[label] for _, _, label in listing.entries], dtype=np.int64)
    parts = np.array([part for part, _, _ in listing.entries])
    indices = {part: np.flatnonzero(parts == part) for part in (*PARTS, "all")}
    train, test = np.concatenate([indices["train"], indices["all"]]), indices["test"]
    if not len(test):
        test = stratified(train, labels, max(1, len(train) // 5), Key(0, "image_folder", "test"))
        train = np.setdiff1d(train, test)
    paths = [listing.root / name for _, name, _ in listing.entries]
    return Source(
        images=FileImages(paths, image_size, channels),
        labels=labels,
        classes=listing.classes,
        train=train,
        test=test,
        val=indices["val"],
        unlabelled=indices["unlabelled"],
        names=[name for _, name, _ in listing.entries],
    )
