"""An image file of any mode becomes uint8 pixels, grey or RGB."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np

from tutelage.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF")  # none that decodes, or runs, when it is opened
ORIENTATION = 0x0112  # the EXIF tag
SIXTEEN_TO_EIGHT = 257  # 65535 / 255


class BadImage(Exception):  # noqa: N818 - what it is, not what went wrong
    """A file that gives no pixels; the text says why."""


def read_pixels(file: Path | IO[bytes], channels: int, background: Sequence[int], max_pixels: int) -> np.ndarray:
    """Return the pixels (H, W, channels) uint8 of an image file, turned as its EXIF orientation says.

    Palettes are resolved, transparent pixels lie over the background, 16 bits become 8 by their range (not by
    clipping), CMYK becomes RGB, and of an animation the first frame counts.

    Args:
        file: a path, or a file that can be sought.
        channels: 1 for grey (ITU-R 601), 3 for RGB.
        background: red, green and blue, 0 to 255, under transparent pixels.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        BadImage: it cannot be read, is too large, or has pixels without a defined range.
        UserError: the file cannot be opened, which says nothing of the image.
    """
    with _opened(file, max_pixels) as image:
        flat = _flat(_upright(_of_eight_bits(image)), background)
        pixels = np.asarray(flat.convert("L" if channels == 1 else "RGB"))
        return pixels.reshape(*pixels.shape[:2], channels)


def complaint(file: Path | IO[bytes], max_pixels: int) -> str:
    """Return why an image file gives no pixels; empty where it does.

    A JPEG is decoded at an eighth of its size, which costs less and meets the same errors.

    Raises:
        UserError: the file cannot be opened, which says nothing of the image.
    """
    try:
        with _opened(file, max_pixels, reduced=True):
            return ""
    except BadImage as error:
        return str(error)


@contextmanager
def _opened(file: Path | IO[bytes], max_pixels: int, reduced: bool = False) -> Iterator[Any]:
    """Open and decode an image; what a decoder or a conversion raises becomes a BadImage."""
    from PIL import UnidentifiedImageError

    try:
        with _pillow().open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadImage(
                    f"{width} x {height} are more than data.max_pixels={max_pixels:,}; "
                    f"if you trust it, set data.max_pixels={width * height}"
                )
            if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
                raise BadImage("pixels of 32 bits have no fixed range; save it with 8 or 16 bits")
            if reduced:
                image.draft(None, (1, 1))
            image.load()
            yield image
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever they like on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{file}: cannot be opened ({error.strerror}); put that right, or remove it") from None
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "" if unknown else " ".join(str(error).split()) or type(error).__name__
        raise BadImage(reason or f"no image, or not one of {', '.join(FORMATS)}") from None


def _pillow() -> ModuleType:
    """Return PIL.Image with its limit off: ours is checked instead, before anything is decoded."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    return Image


def _of_eight_bits(image: Any) -> Any:
    """Return an image of 16 bits as one of 8, by its range, with its transparent value as alpha; others as they are."""
    if not image.mode.startswith("I"):
        return image
    wide = np.asarray(image).astype(np.int64).clip(0, 65535)
    grey = _pillow().fromarray(((wide + SIXTEEN_TO_EIGHT // 2) // SIXTEEN_TO_EIGHT).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(_pillow().fromarray(np.where(wide == image.info["transparency"], 0, 255).astype(np.uint8)))
    grey.info["exif"] = image.info.get("exif", b"")
    return grey


def _upright(image: Any) -> Any:
    """Return the image as it was meant to be seen; a damaged EXIF block turns nothing."""
    transpose = _pillow().Transpose
    turns = {
        2: transpose.FLIP_LEFT_RIGHT,
        3: transpose.ROTATE_180,
        4: transpose.FLIP_TOP_BOTTOM,
        5: transpose.TRANSPOSE,
        6: transpose.ROTATE_270,
        7: transpose.TRANSVERSE,
        8: transpose.ROTATE_90,
    }
    try:
        turn = turns.get(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def _flat(image: Any, background: Sequence[int]) -> Any:
    """Return the image as L or RGB, its transparent pixels laid over the background."""
    if image.has_transparency_data:
        whole = image.convert("RGBA")
        under = _pillow().new("RGBA", whole.size, (*background, 255))
        return _pillow().alpha_composite(under, whole).convert("RGB")
    if image.mode in {"L", "RGB"}:
        return image
    return image.convert("L" if image.mode == "1" else "RGB")
