"""An image file of any mode becomes uint8 pixels, grey or RGB."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np

ORIENTATION = 0x0112  # the EXIF tag
SIXTEEN_TO_EIGHT = 257  # 65535 / 255


class BadImage(Exception):  # noqa: N818 - what it is, not what went wrong
    """A file that gives no pixels; the text says why."""


def read_pixels(
    file: Path | IO[bytes], channels: int, background: Sequence[int], max_pixels: int, reduced: bool = False
) -> np.ndarray:
    """Return the pixels (H, W, channels) uint8 of an image file, turned as its EXIF orientation says.

    Palettes are resolved, transparent pixels lie over the background, 16 bits become 8 by their range (not by
    clipping), CMYK becomes RGB, and of an animation the first frame counts.

    Args:
        file: a path, or a file that can be sought.
        channels: 1 for grey (ITU-R 601), 3 for RGB.
        background: red, green and blue, 0 to 255, under transparent pixels.
        max_pixels: larger images are refused before they are decoded.
        reduced: decode a JPEG at an eighth of its size, to learn cheaply whether it can be decoded.

    Raises:
        BadImage: it cannot be read, is too large, or has pixels without a defined range.
    """
    pillow = _pillow()
    try:
        with pillow.open(file) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadImage(
                    f"{width} x {height} are more than data.max_pixels={max_pixels:,}; "
                    f"if you trust it, set data.max_pixels={width * height}"
                )
            if reduced:
                image.draft(None, (1, 1))
            image.load()
            return _as_array(_flat(_upright(image), background), channels)
    except BadImage:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(file, Path):  # named by the caller
            reason = reason.replace(f" '{file}'", "").replace(f": {str(file)!r}", "")
        raise BadImage(reason) from None


def _pillow() -> ModuleType:
    """Return PIL.Image with its limit off: ours is checked instead, before anything is decoded."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    return Image


def _upright(image: Any) -> Any:
    """Return the image as it was meant to be seen; a damaged EXIF block turns nothing."""
    from PIL import ImageOps

    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except Exception:
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _flat(image: Any, background: Sequence[int]) -> Any:
    """Return the image as L, RGB or with 16 or more bits; transparent pixels laid over the background."""
    if image.mode == "F":
        raise BadImage("floating-point pixels have no fixed range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return image
    if image.has_transparency_data:
        whole = image.convert("RGBA")
        under = _pillow().new("RGBA", whole.size, (*background, 255))
        return _pillow().alpha_composite(under, whole).convert("RGB")
    if image.mode in {"L", "RGB"}:
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _as_array(image: Any, channels: int) -> np.ndarray:
    """Return pixels (H, W, channels) uint8."""
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = ((wide + SIXTEEN_TO_EIGHT // 2) // SIXTEEN_TO_EIGHT).astype(np.uint8)[..., None]
        return grey if channels == 1 else np.repeat(grey, channels, axis=2)
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)
