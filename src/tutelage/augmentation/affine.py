"""The affine transform that moves three corners of an image to random positions."""

from typing import Any

import cv2
import numpy as np
from pydantic import Field

from tutelage.augmentation.geometry import FLAGS, Interpolation
from tutelage.augmentation.library import albumentations
from tutelage.augmentation.operations import MAX_LEVEL

CORNERS = np.array([(0, 0), (1, 0), (0, 1)], dtype=np.float32)  # x and y of three corners, as shares of the sides


class ThreePoints(albumentations.ImageOnlyTransform):  # type: ignore[misc]
    """An affine map that moves three corners to positions drawn around them: it turns, scales, shears and shifts.

    Args:
        shift: how far a corner may move along x and along y, as a share of the side.
        fill: the value of pixels that come from outside the image.
        interpolation: nearest or bilinear.
        p: the probability that it is applied at all.
    """

    class InitSchema(albumentations.BasicTransform.InitSchema):  # type: ignore[misc]
        """The allowed ranges of the arguments, as Albumentations checks them."""

        shift: float = Field(ge=0, lt=0.5)
        fill: float = Field(ge=0, le=MAX_LEVEL)
        interpolation: Interpolation

    def __init__(
        self, shift: float = 0.15, fill: float = 0, interpolation: Interpolation = "bilinear", p: float = 1.0
    ) -> None:
        super().__init__(p=p)
        self.shift = shift
        self.fill = fill
        self.interpolation: Interpolation = interpolation

    def get_params(self) -> dict[str, Any]:
        """Draw the new positions (3, 2) of the corners, as shares of the sides."""
        shifts = [[self.py_random.uniform(-self.shift, self.shift) for _ in range(2)] for _ in CORNERS]
        return {"corners": CORNERS + np.array(shifts, dtype=np.float32)}

    def apply(self, img: np.ndarray, corners: np.ndarray, **_: Any) -> np.ndarray:
        """Return ``img`` (H, W, C) uint8 with its corners moved to ``corners`` (3, 2)."""
        height, width = img.shape[:2]
        last_pixel = np.array([max(width - 1, 1), max(height - 1, 1)], dtype=np.float32)
        matrix = cv2.getAffineTransform(CORNERS * last_pixel, (corners * last_pixel).astype(np.float32))
        flags, fill = FLAGS[self.interpolation], (self.fill,) * 4
        return cv2.warpAffine(img, matrix, (width, height), flags=flags, borderValue=fill).reshape(img.shape)
