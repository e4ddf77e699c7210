"""Affine maps of the plane: how pixels move, and when two moves are one."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np

HALF_PIXEL = 0.5

Interpolation = Literal["nearest", "bilinear"]
FLAGS = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR}


class Map(NamedTuple):
    """An affine map from a pixel of the output to one of the input: ``x' = a x + b y + c``, ``y' = d x + e y + f``."""

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 1.0
    f: float = 0.0

    @property
    def shifts(self) -> bool:
        """Whether it only moves, by whole pixels."""
        return (self.a, self.b, self.d, self.e) == (1, 0, 0, 1) and self.c == int(self.c) and self.f == int(self.f)

    def after(self, later: "Map") -> "Map":
        """Return this operation's map followed by a later operation's."""
        a, b, c, d, e, f = self
        g, h, i, j, k, m = later
        return Map(a * g + b * j, a * h + b * k, a * i + b * m + c, d * g + e * j, d * h + e * k, d * i + e * m + f)

    def of(self, points: np.ndarray) -> np.ndarray:
        """Return where ``points`` (N, 2) come from."""
        found: np.ndarray = points @ np.array([[self.a, self.d], [self.b, self.e]]) + (self.c, self.f)
        return found

    def before(self, points: np.ndarray) -> np.ndarray:
        """Return where ``points`` (N, 2) of the input go."""
        matrix = np.array([[self.a, self.b], [self.d, self.e]])
        found: np.ndarray = np.linalg.solve(matrix, (points - (self.c, self.f)).T).T
        return found


def rotation(degrees: float, height: int, width: int) -> Map:
    """Rotate counter-clockwise about the image's centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (width - 1) / 2, (height - 1) / 2
    return Map(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def shear_x(tangent: float) -> Map:
    """Shear along x about the top left corner (half a pixel before the first pixel's centre)."""
    return Map(b=tangent, c=tangent / 2)


def shear_y(tangent: float) -> Map:
    """Shear along y about the top left corner."""
    return Map(d=tangent, f=tangent / 2)


def translation(right: float = 0, down: float = 0) -> Map:
    """Move by whole pixels."""
    return Map(c=-int(right), f=-int(down))


def one_map(first: Map, then: Map, height: int, width: int) -> Map | None:
    """Return both maps as one, or None where a pixel that the first moves out would come back by the second.

    The pixels whose source lies in the image are a convex polygon. Where the second map takes all of its corners to
    places in the image, half a pixel beside it at most, none of them has been outside in between.
    """
    both = first.after(then)
    if first == Map():
        return both
    frame = np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=np.float32) - HALF_PIXEL
    area, seen = cv2.intersectConvexConvex(frame, both.before(frame).astype(np.float32))
    if not area:
        return both
    between = then.of(seen.reshape(-1, 2))
    return both if (between > -2 * HALF_PIXEL).all() and (between < (width, height)).all() else None


def shifted(image: np.ndarray, right: int, down: int, fill: Sequence[float]) -> np.ndarray:
    """Return an image (H, W, C) uint8 moved by whole pixels; what comes from outside has the values ``fill``."""
    height, width, channels = image.shape
    if abs(right) >= width or abs(down) >= height:
        return np.broadcast_to(np.rint(fill[:channels]).astype(np.uint8), image.shape).copy()
    left = image[max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)]
    border = max(down, 0), max(-down, 0), max(right, 0), max(-right, 0)  # top, bottom, left, right
    return cv2.copyMakeBorder(left, *border, cv2.BORDER_CONSTANT, value=fill).reshape(image.shape)
