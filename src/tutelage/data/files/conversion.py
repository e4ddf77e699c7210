"""From an image as Pillow has opened it to upright pixels of 8 bits, grey or RGB, at its size or a fraction of it."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tutelage.data.files.wide import is_wide_colour, read_colours, reduce_to_8_bits, scale_colours

ORIENTATION = 0x0112  # the EXIF tag
PLAIN_MODES = ("L", "RGB")  # each of which becomes the other without fail
PALETTE_MODES = ("P", "PA")
STRIP_PIXELS = 1 << 20  # of a large image, converted at once

# functions that turn pixels (H, W, ...) upright, by their EXIF orientation
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda pixels: pixels[::-1, ::-1],
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def import_pillow() -> ModuleType:
    """Return PIL.Image without its size limit: ours is checked instead, before anything is decoded."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    return Image


def to_pixels(image: Any, content: bytes, channels: int, background: Sequence[int], white: int | None) -> np.ndarray:
    """Return the pixels (H, W, channels) uint8 of an image that Pillow has opened; see ``decoding.read_pixels``."""
    is_colour = is_wide_colour(image)
    _load(image)
    opaque = _convert(reduce_to_8_bits(image, is_colour, content, white), channels, background)
    pixels = turn_upright(np.asarray(opaque), read_orientation(image))
    return pixels.reshape(*pixels.shape[:2], channels)


def to_shrunk_pixels(
    image: Any, content: bytes, channels: int, background: Sequence[int], white: int | None, factor: int
) -> np.ndarray:
    """Return averages of ``factor`` by ``factor`` pixels of what ``to_pixels`` returns, not turned; fewer at the ends.

    Strips of the image are converted one after another, so that there is one copy of it at its size.
    """
    if is_wide_colour(image) and white is not None:
        values = read_colours(image, content)
        height, width = values.shape[:2]

        def read_strip(top: int, bottom: int) -> Any:
            return scale_colours(values[top:bottom], white)
    else:
        _load(image)
        width, height = image.size

        def read_strip(top: int, bottom: int) -> Any:
            return reduce_to_8_bits(image.crop((0, top, width, bottom)), False, content, white)

    pixels = np.empty((-(-height // factor), -(-width // factor), channels), dtype=np.uint8)
    rows = max(1, STRIP_PIXELS // (width * factor)) * factor
    for top in range(0, height, rows):
        strip = np.asarray(_convert(read_strip(top, min(top + rows, height)), channels, background))
        averages = average_pixels(strip.reshape(*strip.shape[:2], channels), factor)
        pixels[top // factor : top // factor + len(averages)] = averages
    return pixels


def average_pixels(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Return averages of ``factor`` by ``factor`` pixels (H, W, C) uint8; of fewer at the ends."""
    if factor == 1:
        return pixels
    image = import_pillow().fromarray(pixels if pixels.shape[2] > 1 else pixels[..., 0])
    averages = np.asarray(image.reduce(factor))
    return averages.reshape(*averages.shape[:2], pixels.shape[2])


def check_pixels(image: Any) -> None:
    """Raise the error that ``to_pixels`` would raise; the image is loaded then.

    Conversions fail for reasons that one pixel shows: the mode, the palette and what the header says of transparency.
    """
    _load(image)
    if image.mode in PLAIN_MODES and "transparency" not in image.info:
        return
    pixel = image.crop((0, 0, 1, 1))
    for channels in (1, 3):
        _convert(reduce_to_8_bits(pixel, False, b"", None), channels, (0, 0, 0))


def _load(image: Any) -> None:
    """Decode an image; raise a ValueError if it has indices into a palette that is not there."""
    image.load()
    if image.mode in PALETTE_MODES and image.palette is None:
        raise ValueError("its palette is missing")


def read_orientation(image: Any) -> int:
    """Return an image's EXIF orientation, 1 to 8; 1, upright, also if the EXIF block is damaged."""
    try:
        orientation = image.getexif().get(ORIENTATION)
        return int(orientation) if orientation in _TURNS else 1
    except Exception:
        return 1


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return pixels (H, W, ...) turned upright, contiguous."""
    turn = _TURNS.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _convert(image: Any, channels: int, background: Sequence[int]) -> Any:
    """Return an image of 8 bits as L or RGB, its transparent pixels laid over the background."""
    return _remove_transparency(image, background).convert("L" if channels == 1 else "RGB")


def _remove_transparency(image: Any, background: Sequence[int]) -> Any:
    """Return the image as L or RGB, its transparent pixels laid over the background."""
    if image.has_transparency_data:
        foreground = image.convert("RGBA")
        canvas = import_pillow().new("RGBA", foreground.size, (*background, 255))
        return import_pillow().alpha_composite(canvas, foreground).convert("RGB")
    if image.mode in PLAIN_MODES:
        return image
    return image.convert("L" if image.mode == "1" else "RGB")
