"""RandAugment's operations on uint8 images (H, W, 1 or 3), by OpenCV.

The results follow PIL's; where a value is rounded once here and twice in PIL, the two differ by one level.
Enhancements are one colour matrix each: on an image of 224 pixels that takes a quarter of the time of a lookup.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from tutelage.augmentation.geometry import (
    FLAGS,
    AffineMap,
    Interpolation,
    make_rotation,
    make_shear_x,
    make_shear_y,
    make_translation,
    shift_image,
)

LEVELS = 256
MAX_LEVEL = LEVELS - 1
RGB = 3
SMOOTH_BOX, SMOOTH_CENTRE = 9 / 13, 4 / 13  # PIL's ImageFilter.SMOOTH: ones around a five, divided by 13
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601-2, as PIL's convert("L")
CUT_OFF = -0.499  # added so that OpenCV's rounding cuts off, as PIL does; whole numbers stay

ImageFunction = Callable[[np.ndarray], np.ndarray]
MAX_PIXELS_IN_FLOAT32 = 1 << 22  # up to here a pixel count over a step has the right whole part in float32
_RAMP = np.arange(LEVELS, dtype=np.uint8)
_BINS, _LIMITS = [LEVELS], [0, LEVELS]


@dataclass(frozen=True)
class Ranges:
    """The effect of each operation at full strength.

    Attributes:
        degrees: angle of a rotation.
        shear: tangent of a shear's angle.
        translation: pixels, or a share of the side.
        translation_is_share: whether ``translation`` is a share of the side.
        factor: change of an enhancement's factor from 1.
        bits: that posterize keeps, at zero and at full strength.
    """

    degrees: float
    shear: float
    translation: float
    translation_is_share: bool
    factor: float
    bits: tuple[int, int]

    def translation_pixels(self, side: int) -> float:
        """Return the translation at full strength in pixels."""
        return self.translation * (side if self.translation_is_share else 1)

    def count_bits(self, strength: float) -> int:
        """Return how many bits posterize keeps at a strength from 0 to 1."""
        most, fewest = self.bits
        return most - round((most - fewest) * strength)


# torchvision v2's table with 31 bins; its 150 pixels are 150 / 331 of the side of the images in Cubuk et al. 2020.
RANDAUGMENT = Ranges(degrees=30, shear=0.3, translation=150 / 331, translation_is_share=True, factor=0.9, bits=(8, 4))
# The wide space of TrivialAugment (Mueller and Hutter 2021, table 6).
WIDE = Ranges(degrees=135, shear=0.99, translation=32, translation_is_share=False, factor=0.99, bits=(8, 2))
# AugMix's own code (Hendrycks et al. 2020).
AUGMIX = Ranges(degrees=30, shear=0.3, translation=1 / 3, translation_is_share=True, factor=0.9, bits=(4, 0))


@dataclass(frozen=True, eq=False)
class OperationSettings:
    """Settings that all operations of a transform share.

    Attributes:
        ranges: the effect of each operation at a strength of 1.
        fill: value of the pixels that come from outside the image, for each channel.
        interpolation: how an image is sampled when its pixels move.
    """

    ranges: Ranges = RANDAUGMENT
    fill: tuple[float, ...] = (0, 0, 0)
    interpolation: Interpolation = "nearest"


class Operation(NamedTuple):
    """One operation at a fixed strength, for images of one shape."""

    apply: ImageFunction
    affine_map: AffineMap | None = None  # of an operation that moves pixels
    is_lookup: bool = False  # whether a table of the values of one channel can do it


def make_move(affine_map: AffineMap, settings: OperationSettings, height: int, width: int) -> Operation:
    """Return the operation that moves pixels by a map."""
    if affine_map.is_whole_pixel_shift:
        right, down = -int(affine_map.c), -int(affine_map.f)
        return Operation(lambda image: shift_image(image, right, down, settings.fill), affine_map)
    matrix, size = np.array(affine_map).reshape(2, 3), (width, height)
    flags = FLAGS[settings.interpolation] | cv2.WARP_INVERSE_MAP

    def apply(image: np.ndarray) -> np.ndarray:
        moved = cv2.warpAffine(image, matrix, size, flags=flags, borderValue=settings.fill)
        return moved if moved.ndim == RGB else moved[..., None]

    return Operation(apply, affine_map)


def make_brightness(factor: float, channels: int) -> Operation:
    """Return the operation that blends with black."""
    matrix = _make_blend_matrix(factor, channels)
    return Operation(lambda image: cv2.transform(image, matrix).reshape(image.shape), is_lookup=True)


def make_color(factor: float, channels: int) -> Operation:
    """Return the operation that blends with the image's own grey version; a grey image stays unchanged."""
    if channels != RGB:
        return Operation(_return_unchanged, is_lookup=True)
    matrix = _make_blend_matrix(factor, channels)
    matrix[:, :RGB] += np.float32(1 - factor) * GREY
    return Operation(lambda image: cv2.transform(image, matrix))


def make_contrast(factor: float, channels: int) -> Operation:
    """Return the operation that blends with the mean luminance, rounded as in PIL."""
    matrix = _make_blend_matrix(factor, channels)

    def apply(image: np.ndarray) -> np.ndarray:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if channels == RGB else image
        blend = matrix.copy()
        blend[:, -1] += (1 - factor) * int(cv2.mean(grey)[0] + 0.5)
        return cv2.transform(image, blend).reshape(image.shape)

    return Operation(apply)


def _make_blend_matrix(factor: float, channels: int) -> np.ndarray:
    """Return the colour matrix (C, C + 1) float32 that multiplies by ``factor`` and cuts fractions off."""
    matrix = np.zeros((channels, channels + 1), dtype=np.float32)
    np.fill_diagonal(matrix, factor)
    matrix[:, -1] = CUT_OFF
    return matrix


def _return_unchanged(image: np.ndarray) -> np.ndarray:
    return image


def make_sharpness(factor: float, height: int, width: int) -> Operation:
    """Return the operation that blends with a smoothed copy.

    The outermost pixels stay unchanged, and so does an image of at most two rows or columns.
    """
    if height <= 2 or width <= 2:  # noqa: PLR2004 - no pixel has all its neighbours
        return Operation(_return_unchanged)
    image_weight, box_weight = factor + (1 - factor) * SMOOTH_CENTRE, (1 - factor) * SMOOTH_BOX

    def apply(image: np.ndarray) -> np.ndarray:
        blurred = cv2.blur(image, (3, 3)).reshape(image.shape)
        sharp = cv2.addWeighted(image, image_weight, blurred, box_weight, CUT_OFF)
        sharp = sharp.reshape(image.shape)
        sharp[:: height - 1] = image[:: height - 1]
        sharp[:, :: width - 1] = image[:, :: width - 1]
        return sharp

    return Operation(apply)


def make_posterize(bits: int) -> Operation:
    """Return the operation that keeps the ``bits`` highest bits of each value."""
    mask = np.uint8(LEVELS - 2 ** (8 - bits))
    return Operation(lambda image: image & mask, is_lookup=True)


def make_solarize(threshold: float) -> Operation:
    """Return the operation that inverts the values at and above ``threshold``."""
    first = np.uint8(math.ceil(threshold))
    return Operation(lambda image: image ^ -(image >= first).view(np.uint8), is_lookup=True)


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Stretch each channel's values to the whole range; a constant channel stays unchanged."""
    ranges = [cv2.minMaxLoc(plane)[:2] for plane in cv2.split(image)]
    scales = [MAX_LEVEL / (high - low) if high > low else 1.0 for low, high in ranges]
    matrix = np.zeros((len(scales), len(scales) + 1), dtype=np.float32)
    for c, ((low, high), scale) in enumerate(zip(ranges, scales, strict=True)):
        matrix[c, c], matrix[c, -1] = scale, CUT_OFF - (low * scale if high > low else 0)
    return cv2.transform(image, matrix).reshape(image.shape)


def make_equalize_tables(images: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Return for each image the table (1, 256, C) uint8 that flattens its histograms, by PIL's integer rule."""
    height, width, channels = images[0].shape
    dtype = np.float32 if height * width <= MAX_PIXELS_IN_FLOAT32 else np.float64  # faster than integer division
    counts = np.empty((len(images), channels, LEVELS), dtype=dtype)
    for image, counts_of_image in zip(images, counts, strict=True):
        for c in range(channels):
            counts_of_image[c] = cv2.calcHist([image], [c], None, _BINS, _LIMITS).ravel()
    cumulative = counts.cumsum(axis=-1)
    below = np.where(cumulative < height * width, cumulative, dtype(0)).max(
        axis=-1, keepdims=True
    )  # the highest value's count left out
    step = np.floor(below / MAX_LEVEL)
    flat = np.minimum((cumulative - counts + step // 2) / np.maximum(step, 1), MAX_LEVEL)
    tables = (flat if step.all() else np.where(step > 0, flat, _RAMP)).astype(np.uint8)
    return list(np.ascontiguousarray(tables.transpose(0, 2, 1))[:, None])


EQUALIZE = Operation(lambda image: cv2.LUT(image, make_equalize_tables([image])[0]).reshape(image.shape))

# Each makes an operation from a strength (-1 to 1, or 0 to 1 without a sign), settings, height, width and channels.
_FACTORIES: dict[str, Callable[[float, OperationSettings, int, int, int], Operation]] = {
    "Identity": lambda strength, settings, h, w, c: Operation(_return_unchanged, is_lookup=True),
    "ShearX": lambda strength, settings, h, w, c: make_move(
        make_shear_x(settings.ranges.shear * strength), settings, h, w
    ),
    "ShearY": lambda strength, settings, h, w, c: make_move(
        make_shear_y(settings.ranges.shear * strength), settings, h, w
    ),
    "TranslateX": lambda strength, settings, h, w, c: make_move(
        make_translation(right=settings.ranges.translation_pixels(w) * strength), settings, h, w
    ),
    "TranslateY": lambda strength, settings, h, w, c: make_move(
        make_translation(down=settings.ranges.translation_pixels(h) * strength), settings, h, w
    ),
    "Rotate": lambda strength, settings, h, w, c: make_move(
        make_rotation(settings.ranges.degrees * strength, h, w), settings, h, w
    ),
    "Brightness": lambda strength, settings, h, w, c: make_brightness(1 + settings.ranges.factor * strength, c),
    "Color": lambda strength, settings, h, w, c: make_color(1 + settings.ranges.factor * strength, c),
    "Contrast": lambda strength, settings, h, w, c: make_contrast(1 + settings.ranges.factor * strength, c),
    "Sharpness": lambda strength, settings, h, w, c: make_sharpness(1 + settings.ranges.factor * strength, h, w),
    "Posterize": lambda strength, settings, h, w, c: make_posterize(settings.ranges.count_bits(strength)),
    "Solarize": lambda strength, settings, h, w, c: make_solarize(MAX_LEVEL * (1 - strength)),
    "AutoContrast": lambda strength, settings, h, w, c: Operation(autocontrast),
    "Equalize": lambda strength, settings, h, w, c: EQUALIZE,
}
OPERATIONS = tuple(_FACTORIES)
SIGNED = frozenset(
    {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"}
)


def make_operation(
    name: str, strength: float, settings: OperationSettings, height: int, width: int, channels: int
) -> Operation:
    """Return the operation ``name`` at a strength, for images of one shape.

    Args:
        name: one of ``OPERATIONS``.
        strength: from 0 to 1, or from -1 to 1 for the names in ``SIGNED``.
        settings: those of the transform.
        height: of the images, in pixels.
        width: of the images, in pixels.
        channels: 1 or 3.
    """
    return _FACTORIES[name](strength, settings, height, width, channels)
