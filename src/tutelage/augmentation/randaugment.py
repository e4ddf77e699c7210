"""RandAugment (Cubuk et al. 2020) over uint8 images.

Operations and ranges follow torchvision v2's table with 31 bins, on which a magnitude M from 0 to 30 is linear. Every
drawn operation fires, and a larger magnitude never changes an image less.
"""

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from pydantic import Field

from tutelage.augmentation.library import albumentations

MAX_MAGNITUDE = 30
MAX_DEGREES = 30.0
MAX_SHEAR = 0.3  # tangent
MAX_TRANSLATION = 150 / 331  # of the side
MAX_FACTOR_CHANGE = 0.9
POSTERIZE_BITS_DROPPED = 4
LEVELS = 256
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601-2, as PIL's convert("L")
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13  # PIL's ImageFilter.SMOOTH

SIGNED = frozenset({"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"}) | frozenset(
    {"Brightness", "Color", "Contrast", "Sharpness"}
)


_LEVELS = np.arange(LEVELS, dtype=np.float32)


def _warp(image: np.ndarray, matrix: list[list[float]], fill: float) -> np.ndarray:
    """Return ``image`` warped by the inverse map ``matrix`` (output pixel to input pixel)."""
    height, width = image.shape[:2]
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        image, np.array(matrix, dtype=np.float64), (width, height), flags=flags, borderValue=(fill,) * 4
    )


def rotate(image: np.ndarray, degrees: float, fill: float) -> np.ndarray:
    """Rotate counter-clockwise about the image's centre."""
    height, width = image.shape[:2]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (width - 1) / 2, (height - 1) / 2
    return _warp(image, [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]], fill)


def shear_x(image: np.ndarray, tangent: float, fill: float) -> np.ndarray:
    """Shear along x about the top left corner (half a pixel before the first pixel's centre)."""
    return _warp(image, [[1, tangent, tangent / 2], [0, 1, 0]], fill)


def shear_y(image: np.ndarray, tangent: float, fill: float) -> np.ndarray:
    """Shear along y about the top left corner."""
    return _warp(image, [[1, 0, 0], [tangent, 1, tangent / 2]], fill)


def translate_x(image: np.ndarray, pixels: float, fill: float) -> np.ndarray:
    """Move to the right by whole ``pixels``."""
    return _warp(image, [[1, 0, -int(pixels)], [0, 1, 0]], fill)


def translate_y(image: np.ndarray, pixels: float, fill: float) -> np.ndarray:
    """Move down by whole ``pixels``."""
    return _warp(image, [[1, 0, 0], [0, 1, -int(pixels)]], fill)


def _table(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    mapped: np.ndarray = cv2.LUT(image, np.clip(values, 0, LEVELS - 1).astype(np.uint8)).reshape(image.shape)
    return mapped


def _blend(degenerate: np.ndarray | float, image: np.ndarray, factor: float) -> np.ndarray:
    """Return ``degenerate + factor * (image - degenerate)``, clipped, truncated to uint8."""
    mixed = degenerate + np.float32(factor) * (image.astype(np.float32) - degenerate)
    return np.clip(mixed, 0, LEVELS - 1).astype(np.uint8)


def _grey(image: np.ndarray) -> np.ndarray:
    """Return the luminance (H, W, 1) float32 of a 1- or 3-channel image, in whole levels."""
    if image.shape[-1] == 1:
        return image.astype(np.float32)
    levels: np.ndarray = np.floor(image @ GREY_WEIGHTS)
    return levels[..., None]


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black."""
    return _table(image, _LEVELS * np.float32(factor))


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the image's own grey; a grey image stays as it is."""
    return image if image.shape[-1] == 1 else _blend(_grey(image), image, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the mean luminance."""
    mean = np.float32(int(_grey(image).mean() + 0.5))
    return _table(image, mean + np.float32(factor) * (_LEVELS - mean))


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with a smoothed copy; the outermost pixels stay as they are, so an image of two rows or columns does."""
    height, width = image.shape[:2]
    if height <= 2 or width <= 2:  # noqa: PLR2004 - no pixel has all its neighbours
        return image
    smooth = image.copy()
    filtered = np.round(cv2.filter2D(image, cv2.CV_32F, SMOOTH).reshape(image.shape))
    smooth[1:-1, 1:-1] = filtered[1:-1, 1:-1]
    return _blend(smooth.astype(np.float32), image, factor)


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keep the ``bits`` highest bits of each value."""
    return image & np.uint8(LEVELS - 2 ** (8 - bits))


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Invert the values at and above ``threshold``."""
    values = np.arange(LEVELS)
    return _table(image, np.where(values >= threshold, LEVELS - 1 - values, values))


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Stretch each channel's values to the whole range; a constant channel stays as it is."""
    out = np.empty_like(image)
    for c in range(image.shape[-1]):
        low, high = int(image[..., c].min()), int(image[..., c].max())
        if low == high:
            out[..., c] = image[..., c]
        else:
            stretched = (np.arange(LEVELS) - low) * ((LEVELS - 1) / (high - low))
            out[..., c] = _table(np.ascontiguousarray(image[..., c : c + 1]), stretched)[..., 0]
    return out


def equalize(image: np.ndarray) -> np.ndarray:
    """Flatten each channel's histogram, by PIL's integer rule."""
    out = np.empty_like(image)
    for c in range(image.shape[-1]):
        channel = np.ascontiguousarray(image[..., c : c + 1])
        histogram = np.bincount(channel.ravel(), minlength=LEVELS)
        used = histogram[histogram > 0]
        step = int(used[:-1].sum()) // (LEVELS - 1)
        if step == 0:
            out[..., c] = channel[..., 0]
        else:
            before = np.concatenate([[0], np.cumsum(histogram)[:-1]])
            out[..., c] = _table(channel, (before + step // 2) // step)[..., 0]
    return out


Operation = Callable[[np.ndarray, float, float], np.ndarray]

# An operation's function of (image, strength in -1..1, fill value).
OPERATIONS: dict[str, Operation] = {
    "Identity": lambda image, strength, fill: image,
    "ShearX": lambda image, strength, fill: shear_x(image, MAX_SHEAR * strength, fill),
    "ShearY": lambda image, strength, fill: shear_y(image, MAX_SHEAR * strength, fill),
    "TranslateX": lambda image, strength, fill: translate_x(image, MAX_TRANSLATION * image.shape[1] * strength, fill),
    "TranslateY": lambda image, strength, fill: translate_y(image, MAX_TRANSLATION * image.shape[0] * strength, fill),
    "Rotate": lambda image, strength, fill: rotate(image, MAX_DEGREES * strength, fill),
    "Brightness": lambda image, strength, fill: brightness(image, 1 + MAX_FACTOR_CHANGE * strength),
    "Color": lambda image, strength, fill: color(image, 1 + MAX_FACTOR_CHANGE * strength),
    "Contrast": lambda image, strength, fill: contrast(image, 1 + MAX_FACTOR_CHANGE * strength),
    "Sharpness": lambda image, strength, fill: sharpness(image, 1 + MAX_FACTOR_CHANGE * strength),
    "Posterize": lambda image, strength, fill: posterize(image, 8 - round(POSTERIZE_BITS_DROPPED * strength)),
    "Solarize": lambda image, strength, fill: solarize(image, (LEVELS - 1) * (1 - strength)),
    "AutoContrast": lambda image, strength, fill: autocontrast(image),
    "Equalize": lambda image, strength, fill: equalize(image),
}


class RandAugment(albumentations.ImageOnlyTransform):  # type: ignore[misc]
    """``num_ops`` operations in sequence, drawn uniformly from the paper's 14, all at one magnitude.

    Args:
        num_ops: how many operations, N in the paper.
        magnitude: how strong, M in the paper, 0 to 30.
        fill: the value of pixels that come from outside the image.
        p: the probability that the transform is applied at all.
    """

    class InitSchema(albumentations.BasicTransform.InitSchema):  # type: ignore[misc]
        """Ranges of the arguments, in Albumentations' way."""

        num_ops: int = Field(ge=0, le=14)
        magnitude: float = Field(ge=0, le=MAX_MAGNITUDE)
        fill: float = Field(ge=0, le=LEVELS - 1)

    def __init__(self, num_ops: int = 2, magnitude: float = 9, fill: float = 0, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.num_ops = num_ops
        self.magnitude = magnitude
        self.fill = fill

    def get_params(self) -> dict[str, Any]:
        """Draw the operations' names and signs."""
        names = list(OPERATIONS)
        drawn = [names[self.py_random.randrange(len(names))] for _ in range(self.num_ops)]
        signs = [self.py_random.choice((-1, 1)) if name in SIGNED else 1 for name in drawn]
        return {"operations": list(zip(drawn, signs, strict=True))}

    def apply(self, img: np.ndarray, operations: list[tuple[str, int]], **_: Any) -> np.ndarray:
        """Return ``img`` (H, W, C) uint8 after ``operations``."""
        strength = self.magnitude / MAX_MAGNITUDE
        image = img.reshape(*img.shape[:2], -1)
        for name, sign in operations:
            image = OPERATIONS[name](image, sign * strength, self.fill).reshape(image.shape)
        return image.reshape(img.shape)
