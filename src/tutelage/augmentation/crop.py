"""Random crops brought to size, drawn as Albumentations draws them."""

from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np

from tutelage.augmentation.library import albumentations

TRIES = 10
NUMBERS = 2 * TRIES + 2  # of a draw
REDUCTIONS = (8, 4, 2)  # of a JPEG while it is decoded
RGB = 3

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


class Picture(Protocol):
    """An image that is decoded when its pixels are asked for."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the whole image."""
        ...

    def read(self, reduce: int = 1) -> np.ndarray:
        """Return the image (h, w, C) uint8 at about 1 / ``reduce`` (1, 2, 4 or 8) of its size, or at its whole size."""
        ...


class RandomResizedCrop(albumentations.RandomResizedCrop):  # type: ignore[misc]
    """Albumentations' RandomResizedCrop, with antialiasing where it makes an image smaller.

    Args:
        size: height and width in pixels of what comes out.
        scale: range of the crop's share of the area.
        ratio: range of the crop's width over its height.
        interpolation: OpenCV's number, for images that are not made smaller, or not antialiased.
        antialias: whether images are made smaller by torch's antialiased bilinear filter, which is PIL's.
            (Albumentations has OpenCV's area average for that, ``area_for_downscale``, which takes four times as long.)
        mask_interpolation: as Albumentations has it.
        area_for_downscale: as Albumentations has it, where ``antialias`` is off.
        p: the probability that it is applied at all.
    """

    class InitSchema(albumentations.RandomResizedCrop.InitSchema):  # type: ignore[misc]
        """Ranges of the arguments, in Albumentations' way."""

        antialias: bool

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: int = cv2.INTER_LINEAR,
        antialias: bool = True,
        mask_interpolation: int = cv2.INTER_NEAREST,
        area_for_downscale: str | None = None,
        p: float = 1.0,
    ) -> None:
        super().__init__(size, scale, ratio, interpolation, mask_interpolation, area_for_downscale, p)
        self.antialias = antialias

    def apply(self, img: np.ndarray, crop_coords: Box, **_: Any) -> np.ndarray:
        """Return what lies in the box, at the transform's size."""
        return cut(self, img.reshape(*img.shape[:2], -1), crop_coords).reshape(*self.size, *img.shape[2:])


def draw_boxes(
    transform: albumentations.RandomResizedCrop, shapes: Sequence[tuple[int, ...]], numbers: np.ndarray
) -> list[Box]:
    """Return the box of each image, by Albumentations' rule.

    Args:
        transform: says which shares of the area and which ratios are allowed.
        shapes: height and width of each image.
        numbers: (B, ``NUMBERS``) float64 in [0, 1): area and ratio of each try, then the place along y and along x.
    """
    height, width = np.array([shape[:2] for shape in shapes]).T
    (least, most), (narrow, wide) = transform.scale, np.log(transform.ratio)
    area = (height * width)[:, None]
    size = least * area + (most * area - least * area) * numbers[:, : 2 * TRIES : 2]
    ratio = np.exp(narrow + (wide - narrow) * numbers[:, 1 : 2 * TRIES : 2])
    w, h = np.rint(np.sqrt(size * ratio)), np.rint(np.sqrt(size / ratio))
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    first = fits.argmax(axis=1)[:, None]
    w, h = np.take_along_axis(w, first, axis=1)[:, 0], np.take_along_axis(h, first, axis=1)[:, 0]
    top, left = (height - h + 1) * numbers[:, -2], (width - w + 1) * numbers[:, -1]
    found = np.stack([left.astype(np.int64), top.astype(np.int64), w.astype(np.int64), h.astype(np.int64)], axis=1)
    found[:, 2:] += found[:, :2]
    drawn: list[Box] = [tuple(box) for box in found.tolist()]
    for n in np.flatnonzero(~fits.any(axis=1)):
        drawn[n] = _largest(transform, int(height[n]), int(width[n]))
    return drawn


def _largest(transform: albumentations.RandomResizedCrop, height: int, width: int) -> Box:
    """Return the largest central box whose ratio is allowed."""
    narrow, wide = transform.ratio
    h, w = height, width
    if width / height < narrow:
        h = max(1, round(width / narrow))
    elif width / height > wide:
        w = max(1, round(height * wide))
    top, left = (height - h) // 2, (width - w) // 2
    return left, top, left + w, top + h


def cut(
    transform: albumentations.RandomResizedCrop,
    image: np.ndarray | Picture,
    box: Box,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Return what lies in ``box`` of an image (H, W, C) uint8, at the transform's size (h, w).

    A picture is decoded at a reduced size where the crop allows it.

    Args:
        transform: says the size and how to sample.
        image: is never written to.
        box: left, top, right and bottom in pixels.
        out: (h, w, C) uint8, may take the crop.
    """
    left, top, right, bottom = box
    height, width = transform.size
    if not isinstance(image, np.ndarray):
        image, left, top, right, bottom = _decoded(image, box, height, width)
    crop = image[top:bottom, left:right]
    how = transform.interpolation
    if bottom - top > height or right - left > width:
        if type(transform) is RandomResizedCrop and transform.antialias:
            return _antialiased(crop, height, width)
        if transform.area_for_downscale is not None:
            how = cv2.INTER_AREA
    view = cv2.resize(crop, (width, height), out, interpolation=how)
    return view if view.ndim == RGB else view.reshape(height, width, -1)


def _decoded(picture: Picture, box: Box, least_height: int, least_width: int) -> tuple[np.ndarray, int, int, int, int]:
    """Return pixels of a picture and the box in them; both are reduced where the box stays large enough."""
    (height, width, _), (left, top, right, bottom) = picture.shape, box
    fits = (n for n in REDUCTIONS if bottom - top >= n * least_height and right - left >= n * least_width)
    pixels = picture.read(next(fits, 1))
    by_y, by_x = pixels.shape[0] / height, pixels.shape[1] / width
    if by_y != 1 or by_x != 1:
        left, right = round(left * by_x), max(round(right * by_x), round(left * by_x) + 1)
        top, bottom = round(top * by_y), max(round(bottom * by_y), round(top * by_y) + 1)
    return pixels, left, top, right, bottom


def _antialiased(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return ``image`` (H, W, C) uint8 at another size, filtered by triangles as wide as a pixel of it."""
    import torch
    from torch.nn import functional

    dense = np.require(image, requirements=["C", "W"])  # torch warns of what is read-only
    batch = torch.from_numpy(dense)[None].permute(0, 3, 1, 2)  # a dense batch of one: no copies
    small = functional.interpolate(batch, size=(height, width), mode="bilinear", antialias=True)
    view: np.ndarray = small[0].permute(1, 2, 0).numpy()
    return view
