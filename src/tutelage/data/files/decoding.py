"""An image file of any mode becomes uint8 pixels, grey or RGB."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np

from tutelage.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF")  # none that decodes, or runs, when it is opened
ORIENTATION = 0x0112  # the EXIF tag
PNG_ORIENTATIONS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # chunks that may hold one
SIDEWAYS = range(5, 9)  # orientations that exchange height and width
SIXTEEN_TO_EIGHT = 257  # 65535 / 255

# of OpenCV, by how much the size is reduced
GREY_BY = {1: "IMREAD_GRAYSCALE", **{n: f"IMREAD_REDUCED_GRAYSCALE_{n}" for n in (2, 4, 8)}}
COLOUR_BY = {1: "IMREAD_COLOR", **{n: f"IMREAD_REDUCED_COLOR_{n}" for n in (2, 4, 8)}}

# of JPEG: after a mark of 255 a scan may have 0 (a 255 of its data) or the numbers of restarts (ITU-T T.81, B.1.1.2)
MARK, START_OF_SCAN, END_OF_IMAGE = 0xFF, b"\xff\xda", b"\xff\xd9"
_UNEXPECTED = np.ones(256, dtype=bool)
_UNEXPECTED[[0, *range(0xD0, 0xD8)]] = False

# what turns pixels (H, W, ...) upright, by their EXIF orientation
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda pixels: pixels[::-1, ::-1],
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


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
    return _opened(file, "", channels, background, max_pixels).decoded()


def picture(
    file: Path | IO[bytes], name: str, channels: int, background: Sequence[int], max_pixels: int
) -> "FilePicture":
    """Return what decodes an image once it is known at which size; arguments are those of ``read_pixels``.

    Raises:
        UserError: it is no image, which the message tells of ``name``. Damage within an image shows when it is read.
    """
    with _named(name):
        return _opened(file, name, channels, background, max_pixels)


class FilePicture:
    """An image file that is decoded when its pixels are asked for.

    JPEGs, grey or RGB, are decoded by OpenCV, to the same pixels as by Pillow: it takes about two thirds of Pillow's
    time, and decodes at a half, a quarter or an eighth of the size for less.

    Attributes:
        shape: (H, W, C) of the whole image, upright.
    """

    def __init__(self, content: bytes, header: Any, channels: int, background: Sequence[int], name: str) -> None:
        """Take up a whole file, its header as Pillow opened it, and what messages call it."""
        self._content = content
        self._background = background
        self._name = name
        self._orientation = _orientation(header) if _may_lie(header.format, content) else 1
        self._grey = header.mode == "L" and channels == 1
        self._by_opencv = header.format == "JPEG" and header.mode in {"L", "RGB"} and _is_regular(content, header)
        width, height = header.size
        turned = self._orientation in SIDEWAYS
        self.shape = (width, height, channels) if turned else (height, width, channels)

    def read(self, reduce: int = 1) -> np.ndarray:
        """Return the pixels (h, w, C) uint8, of a JPEG at 1 / ``reduce`` (1, 2, 4 or 8) of the size, rounded up.

        Raises:
            UserError: the file is damaged.
        """
        with _named(self._name):
            return self.decoded(reduce)

    def decoded(self, reduce: int = 1) -> np.ndarray:
        """Return what ``read`` does.

        Raises:
            BadImage: the file is damaged.
        """
        channels = self.shape[-1]
        with _told(None):
            pixels = _by_opencv(self._content, self._grey, reduce) if self._by_opencv else None
            if pixels is None:
                image = _pillow().open(io.BytesIO(self._content), formats=FORMATS)
                return _by_pillow(image, channels, self._background)
            if channels == 1 and not self._grey:
                pixels = np.asarray(_pillow().fromarray(pixels).convert("L"))
            pixels = _upright(pixels, self._orientation)
            return pixels.reshape(*pixels.shape[:2], channels)


def _opened(
    file: Path | IO[bytes], name: str, channels: int, background: Sequence[int], max_pixels: int
) -> FilePicture:
    """Return what ``picture`` does; raise a BadImage where it raises a UserError."""
    with _told(file):
        content = file.read_bytes() if isinstance(file, Path) else _bytes(file)
        return FilePicture(content, _header(io.BytesIO(content), max_pixels), channels, background, name)


def _by_opencv(content: bytes, grey: bool, reduce: int) -> np.ndarray | None:
    """Return the pixels (h, w) or (h, w, 3) of a JPEG as they lie in the file; None where they are not to be had."""
    import cv2

    kinds = GREY_BY if grey else COLOUR_BY
    try:
        flags = getattr(cv2, kinds[reduce]) | cv2.IMREAD_IGNORE_ORIENTATION
        pixels: np.ndarray | None = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    except cv2.error:
        return None
    if pixels is not None and not grey:
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    return pixels


def _is_regular(content: bytes, header: Any) -> bool:
    """Return whether nothing stands in a JPEG's last scan but its data, and nothing after it but the end.

    Pillow refuses what is cut off, and what has other marks in its data; another decoder may fill up with grey. What
    does not look regular is left to Pillow, whatever it makes of it.
    """
    if not content.endswith(END_OF_IMAGE):
        return False
    several = "progressive" in header.info
    start = content.rfind(START_OF_SCAN) + len(START_OF_SCAN) if several else header.fp.tell()  # Pillow stops there
    scan = np.frombuffer(content, dtype=np.uint8)[start:]
    return not _UNEXPECTED[scan[1:-1][scan[:-2] == MARK]].any()


def _by_pillow(image: Any, channels: int, background: Sequence[int]) -> np.ndarray:
    """Return the pixels (H, W, channels) uint8 of an image that Pillow has opened."""
    image.load()
    flat = _flat(_of_eight_bits(image), background)
    pixels = np.asarray(flat.convert("L" if channels == 1 else "RGB"))
    pixels = _upright(pixels, _orientation(image))
    return pixels.reshape(*pixels.shape[:2], channels)


def complaint(file: Path | IO[bytes], max_pixels: int) -> str:
    """Return why an image file gives no pixels; empty where it does.

    A JPEG is decoded at an eighth of its size, which costs less and meets the same errors.

    Raises:
        UserError: the file cannot be opened, which says nothing of the image.
    """
    try:
        with _told(file), _header(file, max_pixels) as image:
            image.draft(None, (1, 1))
            image.load()
            return ""
    except BadImage as error:
        return str(error)


def _bytes(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _header(file: Path | IO[bytes], max_pixels: int) -> Any:
    """Return an image as Pillow opens it, nothing decoded yet."""
    image = _pillow().open(file, formats=FORMATS)
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(
            f"{width} x {height} are more than data.max_pixels={max_pixels:,}; "
            f"if you trust it, set data.max_pixels={width * height}"
        )
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise BadImage("pixels of 32 bits have no fixed range; save it with 8 or 16 bits")
    return image


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Let a BadImage become a UserError that names the image."""
    try:
        yield
    except BadImage as error:
        raise UserError(f"{name}: cannot be read as an image ({error}); mend or remove it") from None


@contextmanager
def _told(file: Path | IO[bytes] | None) -> Iterator[None]:
    """Let what a decoder or a conversion raises become a BadImage."""
    from PIL import UnidentifiedImageError

    try:
        yield
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
    return grey


def _orientation(image: Any) -> int:
    """Return how an image lies in its file, 1 to 8 as in EXIF; 1, upright, also where the EXIF block is damaged."""
    try:
        found = image.getexif().get(ORIENTATION)
        return int(found) if found in _TURNS else 1
    except Exception:
        return 1


def _may_lie(kind: str, content: bytes) -> bool:
    """Return whether an image of a format may need turning.

    Pillow turns TIFFs by itself, and decodes a PNG to see whether its orientation stands at the end.
    """
    return any(word in content for word in PNG_ORIENTATIONS) if kind == "PNG" else kind != "TIFF"


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return pixels (H, W, ...) as they were meant to be seen, contiguous."""
    turn = _TURNS.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _flat(image: Any, background: Sequence[int]) -> Any:
    """Return the image as L or RGB, its transparent pixels laid over the background."""
    if image.has_transparency_data:
        whole = image.convert("RGBA")
        under = _pillow().new("RGBA", whole.size, (*background, 255))
        return _pillow().alpha_composite(under, whole).convert("RGB")
    if image.mode in {"L", "RGB"}:
        return image
    return image.convert("L" if image.mode == "1" else "RGB")
