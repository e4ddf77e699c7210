"""Lines of Python, for people without Tutelage, that bring a picture to the pixels that a network takes."""

from tutelage.config import DataConfig
from tutelage.data.files.large import LARGE_PIXELS
from tutelage.data.files.wide import LARGEST
from tutelage.data.fitting import RGB, background_colour

READ = """import cv2
import numpy as np
from PIL import Image, ImageOps


def read(file):
    image = ImageOps.exif_transpose(Image.open(file))
    if image.mode.startswith("I"):  # grey of 16 bits
        grey = np.minimum(image, {white}).astype(int)
        image = Image.fromarray(((510 * grey + {white}) // {twice_white}).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, {background}), image.convert("RGBA"))
    pixels = np.asarray(image.convert("RGB"){to_grey}).reshape(image.height, image.width, {channels})
{fit}
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
"""
CROP = """    side = min(image.size)
    top, left = (image.height - side) // 2, (image.width - side) // 2
    pixels = resize(pixels[top : top + side, left : left + side], {size}, {size})"""
STRETCH = """    pixels = resize(pixels, {size}, {size})"""
PAD = """    side, scale = max(image.size), {size} / max(image.size)
    ends = [((side - n) // 2 * scale, ((side - n) // 2 + n) * scale) for n in (image.height, image.width)]
    (top, bottom), (left, right) = (
        (first := min(round(low), {size} - 1), max(round(high), first + 1)) for low, high in ends
    )
    square = np.full(({size}, {size}, {channels}), {colour}, np.uint8)
    square[top:bottom, left:right] = resize(pixels, bottom - top, right - left)
    pixels = square"""
FITS = {"crop": CROP, "stretch": STRETCH, "pad": PAD}

RESIZE = """def resize(pixels, height, width):
    smaller = min(height, pixels.shape[0]), min(width, pixels.shape[1])
    for (rows, columns), method in ((smaller, cv2.INTER_AREA), ((height, width), cv2.INTER_LINEAR)):
        if pixels.shape[:2] != (rows, columns):
            pixels = cv2.resize(pixels, (columns, rows), interpolation=method).reshape(rows, columns, -1)
    return pixels
"""


def reading_lines(config: DataConfig) -> str:
    """Return Python that defines ``read(file)``, which returns a picture (C, S, S) uint8 as a DataConfig says.

    The lines need Pillow, numpy and OpenCV. The pixels are those of ``fit_image(read_pixels(...))``.
    """
    white = config.white or LARGEST
    values = {
        "white": white,
        "twice_white": 2 * white,
        "background": (*config.background, 255),
        "to_grey": "" if config.channels == RGB else '.convert("L")',
        "channels": config.channels,
        "size": config.image_size,
        "colour": background_colour(tuple(config.background), config.channels),
    }
    fit = FITS[config.fit].format(**values)
    return f"{READ.format(**values, fit=fit)}\n\n{RESIZE}"


def describe_reading(config: DataConfig) -> str:
    """Return sentences on how pictures are brought to size, and on what ``reading_lines`` leaves out."""
    size, fit = f"{config.image_size} x {config.image_size} pixels", config.fit
    shape = {
        "crop": f"the largest square in the middle is resized to {size}",
        "pad": f"the whole picture is resized into {size}, in the middle of the colour {tuple(config.background)}",
        "stretch": f"the whole picture is stretched to {size}",
    }[fit]
    colours = "RGB" if config.channels == RGB else "grey (ITU-R 601)"
    limits = (
        f"Pictures of more than {LARGE_PIXELS:,} pixels are reduced by a power of 2 first, which the lines leave out"
    )
    wide = "" if config.white is None else f"; in colours of 16 bits {config.white} is white, which they leave out too"
    return (
        f"A picture is turned as its EXIF orientation says, transparent parts are laid over the colour "
        f"{tuple(config.background)}, it becomes {colours}, and {shape}. The network takes these pixels as uint8, "
        f"from 0 to 255, in the order channels, rows, columns. {limits}{wide}."
    )
