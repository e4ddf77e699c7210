"""RandAugment's operations on uint8 images (H, W, 1 or 3), by OpenCV.

What PIL computes is what is meant; where a value here is rounded once and PIL's twice, they differ by one level.
Enhancements are one colour matrix each: on an image of 224 pixels that takes a quarter of the time of a lookup. Where a
table is needed, it is held back, and the operations next to it that only look at a pixel's value change the table, not
the pixels. Operations that move pixels are affine maps; neighbours among them become one map where the image is sampled
at the nearest pixel and nothing that has left the image would come back.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from tutelage.augmentation.geometry import (
    FLAGS,
    Interpolation,
    Map,
    one_map,
    rotation,
    shear_x,
    shear_y,
    shifted,
    translation,
)

LEVELS = 256
MAX_LEVEL = LEVELS - 1
RGB = 3
SMOOTH_BOX, SMOOTH_CENTRE = 9 / 13, 4 / 13  # PIL's ImageFilter.SMOOTH: ones about a five, over 13
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601-2, as PIL's convert("L")
DOWN = -0.499  # makes OpenCV's rounding PIL's cutting off; whole numbers stay
CACHED_STEPS = 4096

Change = Callable[[np.ndarray], np.ndarray]
LARGEST_IN_FLOAT32 = 1 << 22  # pixels, of which a count over a step has the right whole part
_RAMP = np.arange(LEVELS, dtype=np.uint8)
_BINS, _LIMITS = [LEVELS], [0, LEVELS]


@dataclass(frozen=True)
class Ranges:
    """How far operations go at full strength.

    Attributes:
        degrees: of a rotation.
        shear: tangent of a shear's angle.
        translation: pixels, or a share of the side.
        of_side: whether ``translation`` is a share.
        factor: change of an enhancement's factor about 1.
        bits: that posterize keeps, at no and at full strength.
    """

    degrees: float
    shear: float
    translation: float
    of_side: bool
    factor: float
    bits: tuple[int, int]

    def pixels(self, side: int) -> float:
        """Return the translation at full strength in pixels."""
        return self.translation * (side if self.of_side else 1)

    def bits_kept(self, strength: float) -> int:
        """Return how many bits posterize keeps."""
        most, least = self.bits
        return most - round((most - least) * strength)


# torchvision v2's table with 31 bins, in which 150 / 331 is the share of the paper's (Cubuk et al. 2020) images.
RANDAUGMENT = Ranges(degrees=30, shear=0.3, translation=150 / 331, of_side=True, factor=0.9, bits=(8, 4))
# The wide space of TrivialAugment (Mueller and Hutter 2021, table 6).
WIDE = Ranges(degrees=135, shear=0.99, translation=32, of_side=False, factor=0.99, bits=(8, 2))
# AugMix's own code (Hendrycks et al. 2020).
AUGMIX = Ranges(degrees=30, shear=0.3, translation=1 / 3, of_side=True, factor=0.9, bits=(4, 0))


@dataclass(frozen=True, eq=False)
class Look:
    """What holds for every operation of a transform.

    Attributes:
        ranges: what a strength of 1 is.
        fill: value of the pixels that come from outside, for each channel.
        interpolation: how pixels are sampled where they move.
    """

    ranges: Ranges = RANDAUGMENT
    fill: tuple[float, ...] = (0, 0, 0)
    interpolation: Interpolation = "nearest"


class Step(NamedTuple):
    """An operation at a strength, on images of one shape."""

    run: Change
    by: Map | None = None  # where it moves pixels
    of_value: bool = False  # whether it looks at nothing but the value of a pixel's channel


def moving(by: Map, look: Look, height: int, width: int) -> Step:
    """Return the step that moves pixels by a map."""
    if by.shifts:
        return Step(lambda image: shifted(image, -int(by.c), -int(by.f), look.fill), by)
    matrix, size, flags = np.array(by).reshape(2, 3), (width, height), FLAGS[look.interpolation] | cv2.WARP_INVERSE_MAP

    def run(image: np.ndarray) -> np.ndarray:
        moved = cv2.warpAffine(image, matrix, size, flags=flags, borderValue=look.fill)
        return moved if moved.ndim == RGB else moved[..., None]

    return Step(run, by)


def brightness(factor: float, channels: int) -> Step:
    """Blend with black."""
    matrix = _blend(factor, channels)
    return Step(lambda image: cv2.transform(image, matrix).reshape(image.shape), of_value=True)


def color(factor: float, channels: int) -> Step:
    """Blend with the image's own grey; a grey image stays as it is."""
    if channels != RGB:
        return Step(_same, of_value=True)
    matrix = _blend(factor, channels)
    matrix[:, :RGB] += np.float32(1 - factor) * GREY
    return Step(lambda image: cv2.transform(image, matrix))


def contrast(factor: float, channels: int) -> Step:
    """Blend with the mean luminance, which PIL rounds."""
    matrix = _blend(factor, channels)

    def run(image: np.ndarray) -> np.ndarray:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if channels == RGB else image
        blend = matrix.copy()
        blend[:, -1] += (1 - factor) * int(cv2.mean(grey)[0] + 0.5)
        return cv2.transform(image, blend).reshape(image.shape)

    return Step(run)


def _blend(factor: float, channels: int) -> np.ndarray:
    """Return the colour matrix (C, C + 1) float32 that multiplies by ``factor`` and cuts off."""
    matrix = np.zeros((channels, channels + 1), dtype=np.float32)
    np.fill_diagonal(matrix, factor)
    matrix[:, -1] = DOWN
    return matrix


def _same(image: np.ndarray) -> np.ndarray:
    return image


def sharpness(factor: float, height: int, width: int) -> Step:
    """Blend with a smoothed copy; the outermost pixels stay as they are, so an image of two rows or columns does."""
    if height <= 2 or width <= 2:  # noqa: PLR2004 - no pixel has all its neighbours
        return Step(_same)
    own, box = factor + (1 - factor) * SMOOTH_CENTRE, (1 - factor) * SMOOTH_BOX

    def run(image: np.ndarray) -> np.ndarray:
        sharp = cv2.addWeighted(image, own, cv2.blur(image, (3, 3)).reshape(image.shape), box, DOWN)
        sharp = sharp.reshape(image.shape)
        sharp[:: height - 1] = image[:: height - 1]
        sharp[:, :: width - 1] = image[:, :: width - 1]
        return sharp

    return Step(run)


def posterize(bits: int) -> Step:
    """Keep the ``bits`` highest bits of each value."""
    mask = np.uint8(LEVELS - 2 ** (8 - bits))
    return Step(lambda image: image & mask, of_value=True)


def solarize(threshold: float) -> Step:
    """Invert the values at and above ``threshold``."""
    first = np.uint8(math.ceil(threshold))
    return Step(lambda image: image ^ -(image >= first).view(np.uint8), of_value=True)


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Stretch each channel's values to the whole range; a constant one stays as it is."""
    ranges = [cv2.minMaxLoc(plane)[:2] for plane in cv2.split(image)]
    scales = [MAX_LEVEL / (high - low) if high > low else 1.0 for low, high in ranges]
    matrix = np.zeros((len(scales), len(scales) + 1), dtype=np.float32)
    for c, ((low, high), scale) in enumerate(zip(ranges, scales, strict=True)):
        matrix[c, c], matrix[c, -1] = scale, DOWN - (low * scale if high > low else 0)
    return cv2.transform(image, matrix).reshape(image.shape)


def equalized(images: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Return each image's table (1, 256, C) uint8 that flattens its channels' histograms, by PIL's integer rule."""
    height, width, channels = images[0].shape
    exact = np.float32 if height * width <= LARGEST_IN_FLOAT32 else np.float64  # and faster than integers divide
    counts = np.empty((len(images), channels, LEVELS), dtype=exact)
    for image, own in zip(images, counts, strict=True):
        for c in range(channels):
            own[c] = cv2.calcHist([image], [c], None, _BINS, _LIMITS).ravel()
    up_to = counts.cumsum(axis=-1)
    below = np.where(up_to < height * width, up_to, exact(0)).max(axis=-1, keepdims=True)  # without the highest value's
    step = np.floor(below / MAX_LEVEL)
    flat = np.minimum((up_to - counts + step // 2) / np.maximum(step, 1), MAX_LEVEL)
    tables = (flat if step.all() else np.where(step > 0, flat, _RAMP)).astype(np.uint8)
    return list(np.ascontiguousarray(tables.transpose(0, 2, 1))[:, None])


EQUALIZE = Step(lambda image: cv2.LUT(image, equalized([image])[0]).reshape(image.shape))

# An operation's step at a strength in -1..1, or 0..1 without a sign, on images of a shape.
_OPERATIONS: dict[str, Callable[[float, Look, int, int, int], Step]] = {
    "Identity": lambda strength, look, h, w, c: Step(_same, of_value=True),
    "ShearX": lambda strength, look, h, w, c: moving(shear_x(look.ranges.shear * strength), look, h, w),
    "ShearY": lambda strength, look, h, w, c: moving(shear_y(look.ranges.shear * strength), look, h, w),
    "TranslateX": lambda strength, look, h, w, c: moving(
        translation(right=look.ranges.pixels(w) * strength), look, h, w
    ),
    "TranslateY": lambda strength, look, h, w, c: moving(
        translation(down=look.ranges.pixels(h) * strength), look, h, w
    ),
    "Rotate": lambda strength, look, h, w, c: moving(rotation(look.ranges.degrees * strength, h, w), look, h, w),
    "Brightness": lambda strength, look, h, w, c: brightness(1 + look.ranges.factor * strength, c),
    "Color": lambda strength, look, h, w, c: color(1 + look.ranges.factor * strength, c),
    "Contrast": lambda strength, look, h, w, c: contrast(1 + look.ranges.factor * strength, c),
    "Sharpness": lambda strength, look, h, w, c: sharpness(1 + look.ranges.factor * strength, h, w),
    "Posterize": lambda strength, look, h, w, c: posterize(look.ranges.bits_kept(strength)),
    "Solarize": lambda strength, look, h, w, c: solarize(MAX_LEVEL * (1 - strength)),
    "AutoContrast": lambda strength, look, h, w, c: Step(autocontrast),
    "Equalize": lambda strength, look, h, w, c: EQUALIZE,
}
OPERATIONS = tuple(_OPERATIONS)
SIGNED = frozenset(
    {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"}
)


@lru_cache(maxsize=CACHED_STEPS)
def _step(name: str, strength: float, look: Look, shape: tuple[int, int, int]) -> Step:
    return _OPERATIONS[name](strength, look, *shape)


_DEFAULT = Look()


def operate(image: np.ndarray, steps: Sequence[tuple[str, float]], look: Look = _DEFAULT) -> np.ndarray:
    """Return an image (H, W, 1 or 3) uint8 after operations in sequence.

    Args:
        image: may be what is returned, but is never written to.
        steps: names of ``OPERATIONS``, each with a strength in 0..1, or in -1..1 for those in ``SIGNED``.
        look: what holds for all of them.
    """
    return operate_all([image], [steps], look)[0]


def operate_all(
    images: Sequence[np.ndarray], chains: Sequence[Sequence[tuple[str, float]]], look: Look = _DEFAULT
) -> list[np.ndarray]:
    """Return images of one shape, each after its own chain of operations (see ``operate``).

    What two images have in common at the same place of their chains is done once for both.
    """
    shape = images[0].shape
    work = _Work(list(images), look, shape)
    for place in range(max(map(len, chains))):
        groups: dict[tuple[str, float], list[int]] = {}
        for number, chain in enumerate(chains):
            if place < len(chain):
                groups.setdefault(chain[place], []).append(number)
        for (name, strength), members in groups.items():
            work.take(_step(name, strength, look, shape), members)
    return work.done()


@lru_cache(maxsize=CACHED_STEPS)
def _both(first: Map, then: Map, look: Look, height: int, width: int) -> Step | None:
    """Return two moves as one, or None where that would be another image."""
    if look.interpolation != "nearest" and not (first.shifts and then.shifts):
        return None  # sampled twice, an image is smoother
    both = one_map(first, then, height, width)
    return None if both is None else moving(both, look, height, width)


class _Work:
    """Images under way; of each, a table or a move may be held back until the next operation needs its pixels."""

    def __init__(self, images: list[np.ndarray], look: Look, shape: tuple[int, ...]) -> None:
        self._images = images
        self._look = look
        self._shape = shape
        self._tables: dict[int, np.ndarray] = {}
        self._moves: dict[int, Step] = {}

    def take(self, step: Step, members: list[int]) -> None:
        """Take a step with some of the images."""
        if self._tables:
            members = [n for n in members if not self._tabulated(n, step)]
        if step.by is not None:
            for n in members:
                self._moves[n] = self._joined(n, step) if n in self._moves else step
            return
        if self._moves:
            for n in members:
                self._move(n)
        images = self._images
        if step is EQUALIZE and members:
            self._tables |= dict(zip(members, equalized([images[n] for n in members]), strict=True))
        else:
            for n in members:
                images[n] = step.run(images[n])

    def done(self) -> list[np.ndarray]:
        """Return the images with nothing held back."""
        for n in list(self._tables):
            self._look_up(n)
        for n in list(self._moves):
            self._move(n)
        return self._images

    def _tabulated(self, n: int, step: Step) -> bool:
        """Return whether a step of an image is done with its table; where it cannot be, the table is done with."""
        if n not in self._tables:
            return False
        if step.of_value:
            self._tables[n] = step.run(self._tables[n])
            return True
        self._look_up(n)
        return False

    def _look_up(self, n: int) -> None:
        self._images[n] = cv2.LUT(self._images[n], self._tables.pop(n)).reshape(self._shape)

    def _move(self, n: int) -> None:
        if n in self._moves:
            self._images[n] = self._moves.pop(n).run(self._images[n])

    def _joined(self, n: int, then: Step) -> Step:
        """Return the move that is held back and the next as one; where that would be another image, make the first."""
        both = _both(self._moves[n].by or Map(), then.by or Map(), self._look, *self._shape[:2])
        if both is None:
            self._move(n)
        return both or then
