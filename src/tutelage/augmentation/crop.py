"""RandomResizedCrop for whole batches: boxes drawn by Albumentations' rule, crops resized with antialiasing.

It replaces the calls of Albumentations' RandomResizedCrop, image by image, because it draws the boxes of a batch at
once, decodes a JPEG at a reduced size where the crop allows that, and resizes as PIL does in a quarter of the time of
Albumentations' area average.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np

from tutelage.augmentation.fit import Box, FittedPicture, place
from tutelage.augmentation.library import albumentations

TRIES = 10  # to find a box that fits into the image, as in Albumentations
NUMBERS_PER_CROP = 2 * TRIES + 2  # random numbers that the box of one image takes
REDUCTIONS = (8, 4, 2)  # of a JPEG while it is decoded
RGB = 3


class Picture(Protocol):
    """An image that is decoded only when its pixels are read."""

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
        size: height and width in pixels of the crop that is returned.
        scale: range of the crop's share of the image's area.
        ratio: range of the crop's width over its height.
        interpolation: OpenCV's number, for images that are not made smaller, or not antialiased.
        antialias: whether images are made smaller by torch's antialiased bilinear filter, which is PIL's.
            (Albumentations has OpenCV's area average for that, ``area_for_downscale``, which takes four times as long.)
        mask_interpolation: as in Albumentations.
        area_for_downscale: as in Albumentations, where ``antialias`` is off.
        p: the probability that it is applied at all.
    """

    class InitSchema(albumentations.RandomResizedCrop.InitSchema):  # type: ignore[misc]
        """The allowed ranges of the arguments, as Albumentations checks them."""

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
        """Return the pixels of ``img`` in the box ``crop_coords``, at the transform's size."""
        crop = crop_and_resize(self, img.reshape(*img.shape[:2], -1), crop_coords)
        return crop.reshape(*self.size, *img.shape[2:])


def draw_boxes(
    transform: albumentations.RandomResizedCrop, shapes: Sequence[tuple[int, ...]], numbers: np.ndarray
) -> list[Box]:
    """Return the crop's box for each image, by Albumentations' rule.

    Args:
        transform: defines which shares of the area and which ratios are allowed.
        shapes: height and width of each image.
        numbers: (B, ``NUMBERS_PER_CROP``) float64 in [0, 1): area and ratio of each try, then the position along y and
            along x.
    """
    height, width = np.array([shape[:2] for shape in shapes]).T
    (smallest, largest), (narrowest, widest) = transform.scale, np.log(transform.ratio)
    image_area = (height * width)[:, None]
    area = smallest * image_area + (largest * image_area - smallest * image_area) * numbers[:, : 2 * TRIES : 2]
    ratio = np.exp(narrowest + (widest - narrowest) * numbers[:, 1 : 2 * TRIES : 2])
    w, h = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    first = fits.argmax(axis=1)[:, None]
    w, h = np.take_along_axis(w, first, axis=1)[:, 0], np.take_along_axis(h, first, axis=1)[:, 0]
    top, left = (height - h + 1) * numbers[:, -2], (width - w + 1) * numbers[:, -1]
    corners = np.stack([left.astype(np.int64), top.astype(np.int64), w.astype(np.int64), h.astype(np.int64)], axis=1)
    corners[:, 2:] += corners[:, :2]
    boxes: list[Box] = [tuple(box) for box in corners.tolist()]
    for n in np.flatnonzero(~fits.any(axis=1)):
        boxes[n] = _largest_central_box(transform, int(height[n]), int(width[n]))
    return boxes


def _largest_central_box(transform: albumentations.RandomResizedCrop, height: int, width: int) -> Box:
    """Return the largest central box whose ratio is allowed."""
    narrowest, widest = transform.ratio
    h, w = height, width
    if width / height < narrowest:
        h = max(1, round(width / narrowest))
    elif width / height > widest:
        w = max(1, round(height * widest))
    top, left = (height - h) // 2, (width - w) // 2
    return left, top, left + w, top + h


def crop_and_resize(
    transform: albumentations.RandomResizedCrop,
    image: np.ndarray | Picture,
    box: Box,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Return the pixels in ``box`` of an image (H, W, C) uint8, at the transform's size (h, w).

    A picture is decoded at a reduced size where the crop allows it. Of one that is padded or stretched to a square,
    only what the box shows is made.

    Args:
        transform: defines the size and the interpolation.
        image: is never written to.
        box: left, top, right and bottom in pixels.
        out: (h, w, C) uint8, memory that the crop may be written to; it need not be.
    """
    if isinstance(image, FittedPicture):
        return _crop_fitted(transform, image, box)
    height, width = transform.size
    return _crop_to_size(transform, image, box, height, width, out)


def _crop_fitted(transform: albumentations.RandomResizedCrop, square: FittedPicture, box: Box) -> np.ndarray:
    """Return the pixels in ``box`` of a square that is padded or stretched, at the transform's size."""
    height, width = transform.size
    (stored_height, stored_width, channels), side = square.picture.shape, square.shape[0]
    if square.fit == "stretch":
        stored_box = place(box, (0, 0, side, side), stored_height, stored_width)
        return _crop_to_size(transform, square.picture, stored_box, height, width)
    crop = np.full((height, width, channels), square.background, dtype=np.uint8)
    frame = square.frame
    seen = (max(box[0], frame[0]), max(box[1], frame[1]), min(box[2], frame[2]), min(box[3], frame[3]))
    if seen[0] < seen[2] and seen[1] < seen[3]:
        left, top, right, bottom = place(seen, box, height, width)
        stored_box = (seen[0] - frame[0], seen[1] - frame[1], seen[2] - frame[0], seen[3] - frame[1])
        pixels = _crop_to_size(transform, square.picture, stored_box, bottom - top, right - left)
        crop[top:bottom, left:right] = pixels
    return crop


def _crop_to_size(
    transform: albumentations.RandomResizedCrop,
    image: np.ndarray | Picture,
    box: Box,
    height: int,
    width: int,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Return the pixels in ``box`` of an image at a size (see ``crop_and_resize``)."""
    left, top, right, bottom = box
    if not isinstance(image, np.ndarray):
        image, left, top, right, bottom = _decode_for_crop(image, box, height, width)
    crop = image[top:bottom, left:right]
    interpolation = transform.interpolation
    if bottom - top > height or right - left > width:
        if type(transform) is RandomResizedCrop and transform.antialias:
            return _resize_antialiased(crop, height, width)
        if transform.area_for_downscale is not None:
            interpolation = cv2.INTER_AREA
    view = cv2.resize(crop, (width, height), out, interpolation=interpolation)
    return view if view.ndim == RGB else view.reshape(height, width, -1)


def _decode_for_crop(
    picture: Picture, box: Box, min_height: int, min_width: int
) -> tuple[np.ndarray, int, int, int, int]:
    """Return a picture's pixels and the box in them, reduced as far as the box keeps the minimum size."""
    (height, width, _), (left, top, right, bottom) = picture.shape, box
    fitting = (n for n in REDUCTIONS if bottom - top >= n * min_height and right - left >= n * min_width)
    pixels = picture.read(next(fitting, 1))
    scale_y, scale_x = pixels.shape[0] / height, pixels.shape[1] / width
    if scale_y != 1 or scale_x != 1:
        left, right = round(left * scale_x), max(round(right * scale_x), round(left * scale_x) + 1)
        top, bottom = round(top * scale_y), max(round(bottom * scale_y), round(top * scale_y) + 1)
    return pixels, left, top, right, bottom


def _resize_antialiased(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return ``image`` (H, W, C) uint8 at a smaller size, by a triangle filter as wide as a pixel of the result."""
    import torch
    from torch.nn import functional

    dense = np.require(image, requirements=["C", "W"])  # torch warns of read-only arrays
    batch = torch.from_numpy(dense)[None].permute(0, 3, 1, 2)  # a dense batch of one image: no copies
    resized = functional.interpolate(batch, size=(height, width), mode="bilinear", antialias=True)
    view: np.ndarray = resized[0].permute(1, 2, 0).numpy()
    return view
