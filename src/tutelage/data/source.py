"""What a dataset is before any split: images, labels and its makers' parts, in one index space."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

UNKNOWN = -1  # the label of an image that has none


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


def no_images() -> np.ndarray:
    """Return the indices of an empty part."""
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
