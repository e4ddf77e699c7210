"""A dataset before any split: its images, labels and published parts, in one index space."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np

from tutelage.data.loading.shared_memory import SharedArray
from tutelage.errors import UserError

if TYPE_CHECKING:
    from tutelage.augmentation import Picture

UNKNOWN = -1  # the label of an image that has none
GREY = 1  # channels
CHANNELS, IMAGE_AXES = (1, 3), 4
LARGEST_IN_MEMORY = 1 << 30  # bytes of all images of a dataset


class Images(Protocol):
    """A sequence of images at evaluation size, uint8 (H, W, C)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...

    def picture(self, index: int) -> "Picture | np.ndarray":
        """Return the image for a transform that takes any size: whole, if it is stored larger than evaluation size."""
        ...


@runtime_checkable
class PreparedImages(Protocol):
    """Images that one process decodes before all of them use them.

    Attributes:
        preparable: how many of the images, from the first on, may be prepared.
    """

    preparable: int

    def prepare(self, indices: np.ndarray, on_progress: Callable[[str, float], None]) -> None:
        """Prepare the images at ``indices`` (n,), ascending and all below ``preparable``, before workers are started.

        An image that is not prepared is decoded whenever it is read. ``on_progress`` may raise to stop.
        """
        ...


def empty_indices() -> np.ndarray:
    """Return the indices (0,) int64 of an empty part."""
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Source:
    """A dataset before any split: images, labels, names, and the parts its makers gave it.

    Attributes:
        images: all images, or an array (N, H, W, C) uint8 of them; the index arrays below point into them.
        labels: (N,) int64, or a smaller integer if there are many images; ``UNKNOWN`` for an image without a label.
        classes: the classes' names, in the order of their labels.
        train: indices of labelled images to learn from.
        test: indices of the test set; empty if it has none, and a part of ``train`` becomes it (see ``splits.split``).
        val: indices of the dataset's own validation set; empty if it has none.
        unlabelled: indices of images without labels, of the smallest integer type that fits if there are many.
        names: a name for each image (a path, or its number).
        left_out: names of files that cannot be decoded and are not among the images.
        notes: what the user should know about the data.
        further_tests: indices of further test sets, by their names: images of the same classes under other conditions.
        blocks: (S,) the index of the first image of each shard, ascending. All images from the first of these on are in
            shards, which are best read one after another. Empty without shards.
        groups: (M,) int32, of the first M images, the number of the group that must not be torn apart, such as a
            patient; ``UNKNOWN`` for an image that is a group of its own, as are all images behind these. None: no
            groups.
        duplicates: (D, 2) int64, the index and the number of its content for each image whose content another image has
            too; None if contents were not compared.
    """

    images: Images | np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    train: np.ndarray
    test: np.ndarray
    val: np.ndarray
    unlabelled: np.ndarray
    names: Sequence[str]
    left_out: Sequence[str] = ()
    notes: Sequence[str] = ()
    further_tests: Mapping[str, np.ndarray] = field(default_factory=dict)
    blocks: np.ndarray = field(default_factory=empty_indices)
    duplicates: np.ndarray | None = None
    groups: np.ndarray | None = None

    @property
    def has_file_names(self) -> bool:
        """Whether ``names`` are more than the images' indices."""
        return not isinstance(self.names, IndexNames)


class IndexNames(Sequence[str]):
    """The names of images that have no file: their indices."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        return str(range(self._count)[index])


def resize_center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Return the largest central square of ``image`` (H, W, C), resized to (``size``, ``size``, C)."""
    import cv2

    height, width, channels = image.shape
    if (height, width) == (size, size):
        return image
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    interpolation = cv2.INTER_AREA if size < side else cv2.INTER_LINEAR
    return cv2.resize(square, (size, size), interpolation=interpolation).reshape(size, size, channels)


def convert_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Return images (..., W, 1 or 3) with ``channels`` channels: grey is repeated, RGB becomes grey by ITU-R 601."""
    if channels == images.shape[-1]:
        return images
    if channels == GREY:
        import cv2

        rows = np.ascontiguousarray(images).reshape(-1, *images.shape[-2:])  # cv2 takes one image, so all rows are one
        return cv2.cvtColor(rows, cv2.COLOR_RGB2GRAY).reshape(*images.shape[:-1], GREY)
    return np.repeat(images, channels, axis=-1)


class DecodedImages:
    """Images that need no decoding: they are pixels in memory or memory-mapped, not files."""


class WholeImages(DecodedImages):
    """An array of uint8 images (N, H, W, C) at evaluation size, in memory or memory-mapped."""

    def __init__(self, array: np.ndarray) -> None:
        self._shared = SharedArray(array)

    def __len__(self) -> int:
        return len(self._shared.array)

    def __getitem__(self, index: int) -> np.ndarray:
        image: np.ndarray = self._shared.array[index]
        return image if image.flags.writeable else np.array(image)  # a copy, not a view of a read-only file

    def picture(self, index: int) -> np.ndarray:
        """Return the image at evaluation size: nothing larger is stored."""
        return self[index]

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """Return the images (B, H, W, C) at ``indices`` (B,)."""
        return np.asarray(self._shared.array[indices])


class ArrayImages(DecodedImages):
    """Several arrays of uint8 images (N, H, W, C) as one sequence; each image is resized when it is read.

    The arrays may be memory-mapped, and views with any order of axes: only the images that are used are read.
    """

    def __init__(self, arrays: Sequence[np.ndarray], image_size: int, channels: int) -> None:
        self._arrays = [SharedArray(array) for array in arrays]
        self._starts = np.cumsum([0, *map(len, arrays)])
        self._size = image_size
        self._channels = channels

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        stored = self._arrays[number].array[index - self._starts[number]]
        image = np.array(stored, order="C")  # a copy, not a view of a read-only file
        return convert_channels(resize_center_crop(image, self._size), self._channels)

    def picture(self, index: int) -> np.ndarray:
        """Return the image at evaluation size: the stored one is about as large."""
        return self[index]


class JoinedImages:
    """Several sequences of images as one; only the first of them is ever prepared."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self.preparable = parts[0].preparable if isinstance(parts[0], PreparedImages) else 0

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        part, position = self._find(index)
        return part[position]

    def picture(self, index: int) -> "Picture | np.ndarray":
        """Return the whole image as it is stored."""
        part, position = self._find(index)
        return part.picture(position)

    def prepare(self, indices: np.ndarray, on_progress: Callable[[str, float], None]) -> None:
        """Prepare images of the first sequence."""
        if isinstance(self._parts[0], PreparedImages):
            self._parts[0].prepare(indices, on_progress)

    def _find(self, index: int) -> tuple[Images, int]:
        """Return the sequence that has an image, and the image's position in it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[number], index - int(self._ends[number]) + len(self._parts[number])


class JoinedNames(Sequence[str]):
    """Two sequences of names as one."""

    def __init__(self, first: Sequence[str], second: Sequence[str]) -> None:
        self._first = first
        self._second = second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        position = int(index) - len(self._first)
        return self._first[int(index)] if position < 0 else self._second[position]


def as_images(images: Images | np.ndarray) -> Images:
    """Return images, or an array (N, H, W, C) uint8 of them, as a sequence of images."""
    return WholeImages(images) if isinstance(images, np.ndarray) else images


def is_ready(images: Images) -> bool:
    """Return whether images need no decoding."""
    return isinstance(images, DecodedImages)


def stack_images(images: Images, indices: np.ndarray) -> np.ndarray:
    """Return the images (B, H, W, C) at ``indices`` (B,)."""
    if isinstance(images, WholeImages):
        return images.gather(indices)
    return np.stack([images[index] for index in indices.tolist()])


def join_arrays(arrays: Sequence[np.ndarray], image_size: int, channels: int) -> Images | np.ndarray:
    """Return several arrays of uint8 images (N, H, W, C) as one sequence at a size: an array in memory if it fits well.

    Memory-mapped arrays, and those that would become larger than ``LARGEST_IN_MEMORY``, are resized image by image.
    """
    lazy = ArrayImages(arrays, image_size, channels)
    if any(isinstance(array, np.memmap) for array in arrays):
        return lazy
    shape = (len(lazy), image_size, image_size, channels)
    if math.prod(shape) > LARGEST_IN_MEMORY:
        return lazy
    images = np.empty(shape, dtype=np.uint8)
    for index in range(len(lazy)):
        images[index] = lazy[index]
    return images


class Part(NamedTuple):
    """A labelled part of a dataset: images (N, H, W, C) uint8 and labels (N,) of any integer type."""

    images: np.ndarray
    labels: np.ndarray


def from_parts(
    path: Path | str,
    train: Part,
    test: Part,
    classes: tuple[str, ...],
    image_size: int,
    channels: int,
    unlabelled: np.ndarray | None = None,
) -> Source:
    """Return a source of a training set, a test set and perhaps unlabelled images (N, H, W, C) uint8, in this order.

    Images are resized to squares of ``image_size`` when they are read, and get ``channels`` channels, 1 or 3.

    Raises:
        UserError: images are no such arrays, a part has no images, another number of labels than of images, or a label
            that no class has. The message names ``path``, from which the parts were read.
    """
    pool = {} if unlabelled is None else {"unlabelled": unlabelled}
    for name, images in {"train": train.images, "test": test.images, **pool}.items():
        if images.dtype != np.uint8 or images.ndim != IMAGE_AXES or images.shape[-1] not in CHANNELS:
            raise UserError(
                f"{path}: {name} has images of {images.dtype} {images.shape}; they are to be uint8 (N, H, W, 1 or 3)"
            )
    for name, (images, labels) in {"train": train, "test": test}.items():
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise UserError(f"{path}: {name} has labels of {labels.dtype} {labels.shape}; they are to be integers (N,)")
        if len(images) != len(labels) or not len(images):
            raise UserError(f"{path}: {name} has {len(images)} images and {len(labels)} labels; fetch the files again")
        invalid = labels[(labels < 0) | (labels >= len(classes))]
        if len(invalid):
            raise UserError(
                f"{path}: {name} has label {invalid[0]}, but there are {len(classes)} classes; fetch the files again"
            )
    arrays = [train.images, test.images] + ([] if unlabelled is None else [unlabelled])
    ends = np.cumsum([0, *map(len, arrays)])
    labels = np.full(ends[-1], UNKNOWN, dtype=np.int64)
    labels[: ends[2]] = np.concatenate([train.labels, test.labels])
    return Source(
        images=join_arrays(arrays, image_size, channels),
        labels=labels,
        classes=classes,
        train=np.arange(ends[1]),
        test=np.arange(ends[1], ends[2]),
        val=empty_indices(),
        unlabelled=np.arange(ends[2], ends[-1]),
        names=IndexNames(len(labels)),
    )


def read_class_names(file: Path) -> tuple[str, ...]:
    """Return the classes' names in a text file: its lines that are not empty.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); remove the folder to unpack it again") from None
