"""Decoding of an image file of any mode to uint8 pixels, grey or RGB.

Pillow and OpenCV decode. torchvision.io.read_image alone does not resolve transparency, nor limit the size before it
decodes.
"""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from tutelage import __version__
from tutelage.data.files.conversion import (
    average_pixels,
    check_pixels,
    import_pillow,
    read_orientation,
    to_pixels,
    to_shrunk_pixels,
    turn_upright,
)
from tutelage.data.files.memory import DECODED
from tutelage.data.files.names import printable
from tutelage.data.files.wide import is_wide_colour, read_peak
from tutelage.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF")  # without those that decode or run code when opened
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")
PNG_ORIENTATION_CHUNKS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # chunks that may hold an orientation
SIDEWAYS = range(5, 9)  # orientations that exchange height and width

PILLOW_BYTES = 4  # of a pixel of a colour
DECODED_BYTES = 2 * PILLOW_BYTES  # of a pixel: as Pillow has it, and as an array
LARGEST_REDUCTION = 8  # of a JPEG's height and width while it is decoded

# names of OpenCV's flags, by the factor by which the size is reduced
GREY_FLAGS = {1: "IMREAD_GRAYSCALE", **{n: f"IMREAD_REDUCED_GRAYSCALE_{n}" for n in (2, 4, 8)}}
COLOUR_FLAGS = {1: "IMREAD_COLOR", **{n: f"IMREAD_REDUCED_COLOR_{n}" for n in (2, 4, 8)}}

# of JPEG: in a scan a byte of 255 may be followed by 0 (then 255 is data) or by a restart marker (ITU-T T.81, B.1.1.2)
MARKER, START_OF_SCAN, END_OF_IMAGE = 0xFF, b"\xff\xda", b"\xff\xd9"
_IS_UNEXPECTED = np.ones(256, dtype=bool)
_IS_UNEXPECTED[[0, *range(0xD0, 0xD8)]] = False


class BadImage(Exception):  # noqa: N818 - names the file, not the error
    """A file that cannot be decoded to pixels; the text says why."""


class UnreadableImageError(UserError):
    """A UserError about one image alone: its file cannot be decoded, or cannot be opened.

    Attributes:
        reason: why, without the image's name and without the way out.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class Check(NamedTuple):
    """What decoding an image has shown.

    Attributes:
        reason: why it cannot be decoded; empty if it can.
        pixels: their number, width times height; 0 if it cannot be decoded, or is no image.
        peak: the largest value of an image with 16 bits a sample; 0 for images with fewer bits.
    """

    reason: str
    pixels: int = 0
    peak: int = 0


class Header(NamedTuple):
    """What the header of an image file says.

    Attributes:
        width: in pixels, as it is stored.
        height: likewise.
        is_grey: whether it has no colours; a palette counts as colours.
        format: Pillow's name of it, such as JPEG.
    """

    width: int
    height: int
    is_grey: bool
    format: str


def read_pixels(
    file: Path | IO[bytes], channels: int, background: Sequence[int], max_pixels: int, white: int | None = None
) -> np.ndarray:
    """Return the pixels (H, W, channels) uint8 of an image file, turned as its EXIF orientation says.

    Palettes are resolved, transparent pixels are laid over the background, CMYK becomes RGB, and of an animation the
    first frame is used. 16 bits become 8 by scaling 0 to ``white`` to 0 to 255, rounded; without ``white`` colours keep
    their upper 8 bits, as do always those of which ``is_wide_colour`` is false.

    Args:
        file: a path, or a seekable file.
        channels: 1 for grey (ITU-R 601), 3 for RGB.
        background: red, green and blue, 0 to 255, under transparent pixels.
        max_pixels: larger images are refused before they are decoded.
        white: the value of 16 bits that becomes white, as larger ones do; None for 65535.

    Raises:
        BadImage: it cannot be decoded, is too large, or has pixels without a defined range.
        UserError: the file cannot be opened, which says nothing about the image.
    """
    return _open_file(file, "", channels, background, max_pixels, white).decode()


def open_picture(
    file: Path | IO[bytes],
    name: str,
    channels: int,
    background: Sequence[int],
    max_pixels: int,
    white: int | None = None,
) -> "FilePicture":
    """Return an image that is not decoded yet, because its size is not chosen yet.

    The arguments are those of ``read_pixels``, and ``name``, by which messages call the image.

    Raises:
        UserError: it is not an image. Damage inside an image is found only when it is read.
    """
    with _bad_image_as_user_error(name):
        return _open_file(file, name, channels, background, max_pixels, white)


def read_header(file: Path | IO[bytes], name: str, max_pixels: int) -> Header:
    """Return what the header of an image file says; nothing else of it is read.

    Raises:
        UserError: it is not an image, is too large, or cannot be opened; the message calls it by ``name``.
    """
    path = file if isinstance(file, Path) else None
    with _bad_image_as_user_error(name), _errors_as_bad_image(path), _open_header(file, max_pixels) as image:
        width, height = image.size
        return Header(width, height, image.mode in GREY_MODES, str(image.format))


class FilePicture:
    """An image file that is decoded when its pixels are read.

    JPEGs, grey or RGB, are decoded by OpenCV, to the same pixels as by Pillow: it takes about two thirds of Pillow's
    time, and decodes at a half, a quarter or an eighth of the size for less.

    Attributes:
        shape: (H, W, C) of the whole image, upright.
    """

    def __init__(
        self, content: bytes, header: Any, channels: int, background: Sequence[int], white: int | None, name: str
    ) -> None:
        """Take the content of a whole file, the image as Pillow opened it, and its name in messages."""
        self._content = content
        self._background = background
        self._white = white
        self._name = name
        self._orientation = read_orientation(header) if _may_be_turned(header.format, content) else 1
        self._is_grey = header.mode == "L" and channels == 1
        self._by_opencv = header.format == "JPEG" and header.mode in {"L", "RGB"} and _is_regular(content, header)
        width, height = header.size
        is_sideways = self._orientation in SIDEWAYS
        self.shape = (width, height, channels) if is_sideways else (height, width, channels)

    def read(self, reduce: int = 1) -> np.ndarray:
        """Return the pixels (h, w, C) uint8, of a JPEG at 1 / ``reduce`` (1, 2, 4 or 8) of the size, rounded up.

        Raises:
            UserError: the file is damaged.
        """
        with _bad_image_as_user_error(self._name):
            return self.decode(reduce)

    def decode(self, reduce: int = 1) -> np.ndarray:
        """Return the same pixels as ``read``.

        Raises:
            BadImage: the file is damaged.
        """
        with self._hold_memory(reduce), _errors_as_bad_image(None):
            pixels = self._decode_jpeg(reduce)
            if pixels is not None:
                return pixels
            return to_pixels(self._open(), self._content, self.shape[-1], self._background, self._white)

    def shrink(self, factor: int) -> np.ndarray:
        """Return the pixels (h, w, C) uint8 at 1 / ``factor`` (a power of 2) of the size, rounded up: averages.

        There is one copy of the whole image in memory; of a JPEG, one at a reduced size.

        Raises:
            UserError: the file is damaged.
        """
        reduce = min(factor, LARGEST_REDUCTION) if self._by_opencv else 1
        with _bad_image_as_user_error(self._name), self._hold_memory(reduce), _errors_as_bad_image(None):
            pixels = self._decode_jpeg(reduce)
            if pixels is not None:
                return average_pixels(pixels, factor // reduce)
            pixels = to_shrunk_pixels(
                self._open(), self._content, self.shape[-1], self._background, self._white, factor
            )
            return turn_upright(pixels, self._orientation)

    def _hold_memory(self, reduce: int) -> AbstractContextManager[None]:
        height, width, _ = self.shape
        return DECODED.hold(DECODED_BYTES * height * width // reduce**2)

    def _open(self) -> Any:
        return import_pillow().open(io.BytesIO(self._content), formats=FORMATS)

    def _decode_jpeg(self, reduce: int) -> np.ndarray | None:
        """Return the pixels (h, w, C) of a JPEG at 1 / ``reduce`` of the size; None if OpenCV is not to decode it."""
        pixels = _decode_by_opencv(self._content, self._is_grey, reduce) if self._by_opencv else None
        if pixels is None:
            return None
        channels = self.shape[-1]
        if channels == 1 and not self._is_grey:
            pixels = np.asarray(import_pillow().fromarray(pixels).convert("L"))
        pixels = turn_upright(pixels, self._orientation)
        return pixels.reshape(*pixels.shape[:2], channels)


def _open_file(
    file: Path | IO[bytes], name: str, channels: int, background: Sequence[int], max_pixels: int, white: int | None
) -> FilePicture:
    """Return the same as ``open_picture``, but raise a BadImage where it raises a UserError."""
    with _errors_as_bad_image(file):
        content = file.read_bytes() if isinstance(file, Path) else _read_from_start(file)
        return FilePicture(content, _open_header(io.BytesIO(content), max_pixels), channels, background, white, name)


def _decode_by_opencv(content: bytes, is_grey: bool, reduce: int) -> np.ndarray | None:
    """Return the pixels (h, w) or (h, w, 3) of a JPEG, not turned; None if OpenCV cannot decode it."""
    import cv2

    flag_names = GREY_FLAGS if is_grey else COLOUR_FLAGS
    try:
        flags = getattr(cv2, flag_names[reduce]) | cv2.IMREAD_IGNORE_ORIENTATION
        pixels: np.ndarray | None = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    except cv2.error:
        return None
    if pixels is not None and not is_grey:
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    return pixels


def _is_regular(content: bytes, header: Any) -> bool:
    """Return whether a JPEG's last scan contains only data, with the end of the image right after it.

    Pillow refuses a file that is cut off or has other markers in its data; another decoder may fill the missing part
    with grey. A file that does not look regular is left to Pillow, whatever it makes of it.
    """
    if not content.endswith(END_OF_IMAGE):
        return False
    is_progressive = "progressive" in header.info
    # in a file with one scan Pillow has read the header up to where the data begins
    start = content.rfind(START_OF_SCAN) + len(START_OF_SCAN) if is_progressive else header.fp.tell()
    scan = np.frombuffer(content, dtype=np.uint8)[start:]
    return not _IS_UNEXPECTED[scan[1:-1][scan[:-2] == MARKER]].any()


def check_image(content: bytes, max_pixels: int) -> Check:
    """Return whether an image file of this content can be decoded, and what that showed.

    A JPEG is decoded at an eighth of its size, which costs less and meets the same errors.
    """
    try:
        with _errors_as_bad_image(None), _open_header(io.BytesIO(content), max_pixels) as image:
            pixels, is_colour = image.width * image.height, is_wide_colour(image)
            image.draft(None, (1, 1))
            is_held = is_colour or "progressive" in image.info  # 16 bits, or coefficients, beside the pixels
            with DECODED.hold(2 * PILLOW_BYTES * pixels if is_held else PILLOW_BYTES * math.prod(image.size)):
                check_pixels(image)
                return Check("", pixels, read_peak(image, is_colour, content))
    except BadImage as error:
        return Check(str(error))


def _read_from_start(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _open_header(file: Path | IO[bytes], max_pixels: int) -> Any:
    """Return an image as Pillow opens it, nothing decoded yet."""
    image = import_pillow().open(file, formats=FORMATS)
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
def _bad_image_as_user_error(name: str) -> Iterator[None]:
    """Raise a BadImage again as a UserError that names the image."""
    try:
        yield
    except BadImage as error:
        message = f"{name}: cannot be read as an image ({error}); repair or remove it"
        raise UnreadableImageError(message, reason=str(error)) from None


@contextmanager
def _errors_as_bad_image(file: Path | IO[bytes] | None) -> Iterator[None]:
    """Raise the errors of decoders and conversions again as a BadImage; a file that cannot be opened as a UserError."""
    from PIL import UnidentifiedImageError

    try:
        yield
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # decoders raise errors of many kinds on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            reason = f"cannot be opened ({error.strerror})"
            message = f"{printable(str(file))}: {reason}; make it readable or remove it"
            raise UnreadableImageError(message, reason) from None
        is_unknown = isinstance(error, UnidentifiedImageError)
        reason = "" if is_unknown else " ".join(str(error).split()) or type(error).__name__
        raise BadImage(reason or f"no image, or not one of {', '.join(FORMATS)}") from None


def _may_be_turned(image_format: str, content: bytes) -> bool:
    """Return whether an image may need turning.

    Pillow turns TIFFs by itself, and would decode a whole PNG to find an orientation at its end.
    """
    if image_format == "PNG":
        return any(chunk in content for chunk in PNG_ORIENTATION_CHUNKS)
    return image_format != "TIFF"


def decoder_versions() -> list[str | int | None]:
    """Return the versions of all that decides which pixels an image file gives."""
    import cv2
    import PIL
    from PIL import features

    return [__version__, cv2.__version__, PIL.__version__, features.version("libjpeg_turbo")]
