"""Affine maps between the pixels of an image before and after an operation, and when two of them can be merged."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np

HALF_PIXEL = 0.5

Interpolation = Literal["nearest", "bilinear"]
FLAGS = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR}


class AffineMap(NamedTuple):
    """An affine map from an output pixel to an input pixel: ``x' = a x + b y + c``, ``y' = d x + e y + f``."""

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 1.0
    f: float = 0.0

    @property
    def is_whole_pixel_shift(self) -> bool:
        """Whether the map only shifts the image, by whole pixels."""
        return (self.a, self.b, self.d, self.e) == (1, 0, 0, 1) and self.c == int(self.c) and self.f == int(self.f)

    def compose(self, later: "AffineMap") -> "AffineMap":
        """Return the map of this operation followed by a later one."""
        a, b, c, d, e, f = self
        g, h, i, j, k, m = later
        return AffineMap(
            a * g + b * j, a * h + b * k, a * i + b * m + c, d * g + e * j, d * h + e * k, d * i + e * m + f
        )

    def locate_inputs(self, points: np.ndarray) -> np.ndarray:
        """Return the input points (N, 2) from which the output ``points`` (N, 2) take their values."""
        inputs: np.ndarray = points @ np.array([[self.a, self.d], [self.b, self.e]]) + (self.c, self.f)
        return inputs

    def locate_outputs(self, points: np.ndarray) -> np.ndarray:
        """Return the output points (N, 2) to which the input ``points`` (N, 2) move."""
        matrix = np.array([[self.a, self.b], [self.d, self.e]])
        outputs: np.ndarray = np.linalg.solve(matrix, (points - (self.c, self.f)).T).T
        return outputs


def make_rotation(degrees: float, height: int, width: int) -> AffineMap:
    """Return the counter-clockwise rotation about the image's centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (width - 1) / 2, (height - 1) / 2
    return AffineMap(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def make_shear_x(tangent: float) -> AffineMap:
    """Return the shear along x about the top left corner (half a pixel before the first pixel's centre)."""
    return AffineMap(b=tangent, c=tangent / 2)


def make_shear_y(tangent: float) -> AffineMap:
    """Return the shear along y about the top left corner."""
    return AffineMap(d=tangent, f=tangent / 2)


def make_translation(right: float = 0, down: float = 0) -> AffineMap:
    """Return the shift by whole pixels; fractions of a pixel are cut off."""
    return AffineMap(c=-int(right), f=-int(down))


def merge_maps(first: AffineMap, second: AffineMap, height: int, width: int) -> AffineMap | None:
    """Return both maps as one, or None where the second would bring back a pixel that the first moves out.

    The output pixels whose source lies in the image form a convex polygon. If the second map takes all of its corners
    to points in the image, or at most half a pixel beside it, then none of these pixels was outside in between.
    """
    merged = first.compose(second)
    if first == AffineMap():
        return merged
    frame = np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=np.float32) - HALF_PIXEL
    area, polygon = cv2.intersectConvexConvex(frame, merged.locate_outputs(frame).astype(np.float32))
    if not area:
        return merged
    between = second.locate_inputs(polygon.reshape(-1, 2))
    return merged if (between > -2 * HALF_PIXEL).all() and (between < (width, height)).all() else None


def shift_image(image: np.ndarray, right: int, down: int, fill: Sequence[float]) -> np.ndarray:
    """Return an image (H, W, C) uint8 shifted by whole pixels; pixels from outside have the values ``fill``."""
    height, width, channels = image.shape
    if abs(right) >= width or abs(down) >= height:
        return np.broadcast_to(np.rint(fill[:channels]).astype(np.uint8), image.shape).copy()
    overlap = image[max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)]
    border = max(down, 0), max(-down, 0), max(right, 0), max(-right, 0)  # top, bottom, left, right
    return cv2.copyMakeBorder(overlap, *border, cv2.BORDER_CONSTANT, value=fill).reshape(image.shape)
