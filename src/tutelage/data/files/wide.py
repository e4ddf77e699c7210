"""Images with 16 bits a sample: their values, and how these become 8 bits."""

from functools import lru_cache
from typing import Any

import numpy as np

WIDE_FORMATS = ("PNG", "TIFF", "PPM")  # that may have 16 bits a sample
WIDE_MODES = ("RGB", "RGBA", "LA")  # of colours in a file, by Pillow's names, whose 16 bits are read by OpenCV
LARGEST = 65535  # value of 16 bits
COLOURS, AXES = 3, 3  # channels of a colour without its alpha; axes of an array of colours
EIGHT_TO_SIXTEEN_BITS = 257  # 65535 / 255


def is_wide_colour(image: Any) -> bool:
    """Return whether a colour or transparent image, not loaded yet, has 16 bits a sample that can be read.

    Of all others, among them CMYK and TIFFs with a fourth channel that is no alpha or that colours were multiplied by,
    the upper 8 bits are known, as Pillow keeps them.
    """
    if image.format not in WIDE_FORMATS or not image.tile:
        return False
    arguments = image.tile[0].args
    if image.format == "PPM":
        return bool(arguments == ("RGB", LARGEST))
    mode, *order = (arguments if isinstance(arguments, str) else str(arguments[0])).split(";16")
    return bool(order) and mode in WIDE_MODES


def read_peak(image: Any, is_colour: bool, content: bytes) -> int:
    """Return the largest value, without alpha, of a loaded image with 16 bits a sample; 0 for other images.

    Args:
        image: as Pillow loaded it.
        is_colour: what ``is_wide_colour`` said of it.
        content: of its file.
    """
    if is_colour:
        return int(read_colours(image, content)[..., :COLOURS].max())
    return int(np.asarray(image).max()) if _is_wide_grey(image) else 0


def reduce_to_8_bits(image: Any, is_colour: bool, content: bytes, white: int | None) -> Any:
    """Return a loaded image with 16 bits a sample as one with 8 bits; return others unchanged.

    The arguments are those of ``read_peak``, and ``white``: the value that becomes 255, as larger ones do; None for
    65535, by which colours are left as Pillow reduced them: to their upper 8 bits.
    """
    from PIL import Image

    if is_colour and white is not None:
        return scale_colours(read_colours(image, content), white)
    if not _is_wide_grey(image):
        return image
    values = np.asarray(image)
    grey = Image.fromarray(_scale(values, white or LARGEST))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def read_colours(image: Any, content: bytes) -> np.ndarray:
    """Return the values (H, W, 3) uint16 of an image, (H, W, 4) with its alpha last if it is transparent.

    OpenCV turns TIFFs, and no other files, by their orientation, and so does Pillow when it loads them. Of a file that
    OpenCV cannot decode, the upper 8 bits are known.
    """
    import cv2

    values: np.ndarray | None = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if values is not None and values.dtype == np.uint16 and values.ndim == AXES:
        order = cv2.COLOR_BGR2RGB if values.shape[-1] == COLOURS else cv2.COLOR_BGRA2RGBA
        return cv2.cvtColor(values, order, dst=values)  # in place: there is one copy
    colours = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return np.asarray(colours).astype(np.uint16) * EIGHT_TO_SIXTEEN_BITS


def scale_colours(values: np.ndarray, white: int) -> Any:
    """Return colours (H, W, 3 or 4) of 16 bits, with their alpha last, as an image of 8 bits; ``white`` becomes 255."""
    from PIL import Image

    colours, alpha = _scale(values[..., :COLOURS], white), _scale(values[..., COLOURS:], LARGEST)
    return Image.fromarray(np.concatenate([colours, alpha], axis=-1))


def describe_range(peak: int, white: int | None) -> tuple[str, ...]:
    """Return a note if images with 16 bits a sample use a small part of their range, or more than ``data.white``.

    Args:
        peak: the largest of their values; 0 if there are no such images.
        white: ``data.white``.
    """
    used = (1 << peak.bit_length()) - 1  # by as many bits as the largest value has
    if white is None and 0 < used < LARGEST:
        return (
            f"16-bit pictures use values up to {peak:,} only: data.white={used} spreads {used.bit_length()} bits over "
            "the whole range",
        )
    if white is not None and not peak:
        return (f"data.white={white} changes nothing: no picture has 16 bits",)
    if white is not None and peak > white:
        return (f"data.white={white}: 16-bit pictures have values up to {peak:,}; those above become white too",)
    return ()


def _is_wide_grey(image: Any) -> bool:
    return bool(image.mode.startswith("I"))


def _scale(values: np.ndarray, white: int) -> np.ndarray:
    """Return values of 16 bits with 0 to ``white`` spread over 0 to 255, rounded, as uint8; larger ones become 255."""
    scaled: np.ndarray = _make_scale(white)[values]
    return scaled


@lru_cache(maxsize=2)  # of an image with alpha: that of its colours and that of its alpha
def _make_scale(white: int) -> np.ndarray:
    """Return the 8 bits (65536,) of each value of 16 bits: a table is 40 times as fast as to compute each pixel."""
    values = np.arange(LARGEST + 1).clip(max=white)
    return ((2 * 255 * values + white) // (2 * white)).astype(np.uint8)
