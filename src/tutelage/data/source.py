"""What a dataset is before any split: images, labels and its makers' parts, in one index space."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from tutelage.data.loading.shared_memory import Shared
from tutelage.errors import UserError

if TYPE_CHECKING:
    from tutelage.augmentation import Picture

UNKNOWN = -1  # the label of an image that has none
GREY = 1  # channels
LARGEST_IN_MEMORY = 1 << 30  # bytes of all images of a dataset


class Images(Protocol):
    """A sequence of images as evaluation sees them, uint8 (H, W, C), all of one size."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...

    def picture(self, index: int) -> "Picture | np.ndarray":
        """Return the image for training that takes any size: whole, as it is stored, where it is stored larger."""
        ...


def no_images() -> np.ndarray:
    """Return the indices of an empty part."""
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Source:
    """A dataset before any split: images, what is known of them, and the parts its makers gave it.

    Attributes:
        images: all images, or an array (N, H, W, C) uint8 of them; the index arrays below point into them.
        labels: (N,) int64, or a smaller integer where there are many images; ``UNKNOWN`` where there is none.
        classes: the classes' names, in the order of their labels.
        train: indices of labelled images to learn from.
        test: indices of the test set.
        val: indices of a validation set of its own, empty where there is none.
        unlabelled: indices of images without labels, of the smallest type that fits where there are many.
        names: a name for each image (a path, or its number).
        left_out: names of files that could not be read and are not among the images.
        notes: what the user should know about the data.
        others: indices of further test sets, by their names: the same classes, seen otherwise.
        blocks: (S,) the first image of each shard, ascending; the images from the first one on lie in shards, which
            are best read one after another. Empty without shards.
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
    others: Mapping[str, np.ndarray] = field(default_factory=dict)
    blocks: np.ndarray = field(default_factory=no_images)


class Numbered(Sequence[str]):
    """The names of images that have no file: their numbers."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        return str(range(self._count)[index])


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """Return the central square of ``image`` (H, W, C), its side at ``size``."""
    import cv2

    height, width, channels = image.shape
    if (height, width) == (size, size):
        return image
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    how = cv2.INTER_AREA if size < side else cv2.INTER_LINEAR
    return cv2.resize(square, (size, size), interpolation=how).reshape(size, size, channels)


def with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Return images (..., W, 1 or 3) with ``channels`` channels: grey is repeated, RGB becomes grey by ITU-R 601."""
    if channels == images.shape[-1]:
        return images
    if channels == GREY:
        import cv2

        rows = np.ascontiguousarray(images).reshape(-1, *images.shape[-2:])  # cv2 knows no axis of images
        return cv2.cvtColor(rows, cv2.COLOR_RGB2GRAY).reshape(*images.shape[:-1], GREY)
    return np.repeat(images, channels, axis=-1)


class WholeImages:
    """An array of uint8 images (N, H, W, C) at the size that evaluation sees, in memory or memory-mapped."""

    def __init__(self, array: np.ndarray) -> None:
        self._shared = Shared(array)

    def __len__(self) -> int:
        return len(self._shared.array)

    def __getitem__(self, index: int) -> np.ndarray:
        image: np.ndarray = self._shared.array[index]
        return image if image.flags.writeable else np.array(image)  # no view of a read-only file

    def picture(self, index: int) -> np.ndarray:
        """Return the image: more of it is not stored."""
        return self[index]

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """Return the images (B, H, W, C) at ``indices`` (B,)."""
        return np.asarray(self._shared.array[indices])


class ArrayImages:
    """Arrays of uint8 images (N, H, W, C) one behind the other, each image brought to size when it is asked for.

    The arrays may be memory-mapped and views in any order: no image is read before its turn.
    """

    def __init__(self, arrays: Sequence[np.ndarray], image_size: int, channels: int) -> None:
        self._arrays = [Shared(array) for array in arrays]
        self._starts = np.cumsum([0, *map(len, arrays)])
        self._size = image_size
        self._channels = channels

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        stored = self._arrays[place].array[index - self._starts[place]]
        image = np.array(stored, order="C")  # no view of a read-only file
        return with_channels(resized(image, self._size), self._channels)

    def picture(self, index: int) -> np.ndarray:
        """Return the image at its size: what is stored has about that size."""
        return self[index]


class Joined:
    """Images of several kinds, one behind the other."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        part, within = self._find(index)
        return part[within]

    def picture(self, index: int) -> "Picture | np.ndarray":
        """Return the whole image as its kind has it."""
        part, within = self._find(index)
        return part.picture(within)

    def _find(self, index: int) -> tuple[Images, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[number], index - int(self._ends[number]) + len(self._parts[number])


class JoinedNames(Sequence[str]):
    """Names of images of two kinds, one behind the other."""

    def __init__(self, first: Sequence[str], second: Sequence[str]) -> None:
        self._first = first
        self._second = second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        behind = int(index) - len(self._first)
        return self._first[int(index)] if behind < 0 else self._second[behind]


def is_ready(images: Images) -> bool:
    """Return whether images are pixels already, in memory or memory-mapped, and not files to be decoded."""
    return isinstance(images, WholeImages | ArrayImages)


def gathered(images: Images, indices: np.ndarray) -> np.ndarray:
    """Return the images (B, H, W, C) at ``indices`` (B,)."""
    if isinstance(images, WholeImages):
        return images.gather(indices)
    return np.stack([images[index] for index in indices.tolist()])


def from_arrays(arrays: Sequence[np.ndarray], image_size: int, channels: int) -> Images | np.ndarray:
    """Return arrays of uint8 images (N, H, W, C), one behind the other, at a size: in memory where they fit well.

    Memory-mapped arrays, and what would become larger than ``LARGEST_IN_MEMORY``, are brought to size image by image.
    """
    lazy = ArrayImages(arrays, image_size, channels)
    if any(isinstance(array, np.memmap) for array in arrays):
        return lazy
    shape = (len(lazy), image_size, image_size, channels)
    if math.prod(shape) > LARGEST_IN_MEMORY:
        return lazy
    whole = np.empty(shape, dtype=np.uint8)
    for index in range(len(lazy)):
        whole[index] = lazy[index]
    return whole


class Part(NamedTuple):
    """What a dataset's makers labelled: images (N, H, W, C) uint8 and labels (N,) of any integers."""

    images: np.ndarray
    labels: np.ndarray


def from_parts(
    place: Path,
    train: Part,
    test: Part,
    classes: tuple[str, ...],
    image_size: int,
    channels: int,
    unlabelled: np.ndarray | None = None,
) -> Source:
    """Return a source of a training set, a test set and perhaps unlabelled images (N, H, W, C) uint8, in this order.

    Raises:
        UserError: a part, read from ``place``, has no images, another number of labels or labels beyond the classes.
    """
    for name, (images, labels) in {"train": train, "test": test}.items():
        if len(images) != len(labels) or not len(images):
            raise UserError(f"{place}: {name} has {len(images)} images and {len(labels)} labels; fetch the files again")
        wrong = labels[(labels < 0) | (labels >= len(classes))]
        if len(wrong):
            raise UserError(
                f"{place}: {name} has label {wrong[0]}, but there are {len(classes)} classes; fetch the files again"
            )
    arrays = [train.images, test.images] + ([] if unlabelled is None else [unlabelled])
    ends = np.cumsum([0, *map(len, arrays)])
    labels = np.full(ends[-1], UNKNOWN, dtype=np.int64)
    labels[: ends[2]] = np.concatenate([train.labels, test.labels])
    return Source(
        images=from_arrays(arrays, image_size, channels),
        labels=labels,
        classes=classes,
        train=np.arange(ends[1]),
        test=np.arange(ends[1], ends[2]),
        val=no_images(),
        unlabelled=np.arange(ends[2], ends[-1]),
        names=Numbered(len(labels)),
    )


def class_names(file: Path) -> tuple[str, ...]:
    """Return the lines of a text file that are not empty.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); remove the folder to unpack it again") from None
