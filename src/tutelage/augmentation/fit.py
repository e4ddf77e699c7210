"""Images that are not square as the square that a network sees: padded, or stretched (``data.fit``)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from tutelage.augmentation.crop import Picture

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


def fit_square(image: np.ndarray, size: int, fit: Literal["pad", "stretch"], background: tuple[int, ...]) -> np.ndarray:
    """Return a whole image (H, W, C) uint8 as a square (``size``, ``size``, C).

    Args:
        image: of any height and width.
        size: side in pixels.
        fit: ``pad``: the image lies in the middle of a square of one colour; ``stretch``: its sides become equal.
        background: that colour, one value for each channel.
    """
    height, width, channels = image.shape
    if fit == "stretch":
        return _resize(image, size, size)
    side, frame = max(height, width), _frame(height, width)
    left, top, right, bottom = place(frame, (0, 0, side, side), size, size)
    square = np.full((size, size, channels), background, dtype=np.uint8)
    square[top:bottom, left:right] = _resize(image, bottom - top, right - left)
    return square


@dataclass(frozen=True)
class FittedPicture:
    """A picture that is not square as a square, from which crops are cut; only what a crop shows is ever made.

    Attributes:
        picture: the picture as it is stored.
        fit: see ``fit_square``.
        background: see ``fit_square``.
    """

    picture: "Picture"
    fit: Literal["pad", "stretch"]
    background: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(S, S, C) of the square, whose side is the picture's longer one."""
        height, width, channels = self.picture.shape
        return max(height, width), max(height, width), channels

    @property
    def frame(self) -> Box:
        """Where in the square the picture lies that is padded."""
        return _frame(*self.picture.shape[:2])

    def read(self, reduce: int = 1) -> np.ndarray:
        """Return the square (s, s, C) uint8, with about as many pixels as the picture at 1 / ``reduce`` of its size."""
        pixels = self.picture.read(reduce)
        return fit_square(pixels, max(1, math.isqrt(pixels.shape[0] * pixels.shape[1])), self.fit, self.background)


def place(inner: Box, outer: Box, height: int, width: int) -> Box:
    """Return where a box within another one lies when that one is resized; at least a pixel.

    Args:
        inner: the box.
        outer: the box around it.
        height: of the outer box when it is resized.
        width: likewise.
    """
    scale_x, scale_y = width / (outer[2] - outer[0]), height / (outer[3] - outer[1])
    left, top = (inner[0] - outer[0]) * scale_x, (inner[1] - outer[1]) * scale_y
    right, bottom = (inner[2] - outer[0]) * scale_x, (inner[3] - outer[1]) * scale_y
    x, y = min(round(left), width - 1), min(round(top), height - 1)
    return x, y, max(round(right), x + 1), max(round(bottom), y + 1)


def _frame(height: int, width: int) -> Box:
    """Return the box of an image in the middle of the smallest square that holds it."""
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return left, top, left + width, top + height


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return ``image`` (H, W, C) at another size: by area averages where it shrinks, else linearly."""
    import cv2

    smaller = min(height, image.shape[0]), min(width, image.shape[1])
    for target, method in ((smaller, cv2.INTER_AREA), ((height, width), cv2.INTER_LINEAR)):
        if image.shape[:2] != target:
            image = cv2.resize(image, target[::-1], interpolation=method).reshape(*target, -1)
    return image
