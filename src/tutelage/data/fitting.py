"""How a stored picture becomes the square that a network sees (``data.fit``), in evaluation and for training crops."""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from tutelage.augmentation import FittedPicture, fit_square
from tutelage.config import DataConfig
from tutelage.data.source import resize_center_crop

if TYPE_CHECKING:
    from tutelage.augmentation import Picture

RGB = 3


def fit_image(image: np.ndarray, config: DataConfig) -> np.ndarray:
    """Return a whole image (H, W, C) uint8 as it is evaluated: (S, S, C), S being ``data.image_size``."""
    if config.fit == "crop":
        return resize_center_crop(image, config.image_size)
    return fit_square(
        image, config.image_size, config.fit, background_colour(tuple(config.background), image.shape[-1])
    )


def fit_picture(picture: "Picture", config: DataConfig) -> "Picture":
    """Return the picture that training cuts crops from: with ``data.fit=crop`` the whole one, as it is stored."""
    height, width, channels = picture.shape
    if config.fit == "crop" or height == width:
        return picture
    return FittedPicture(picture, config.fit, background_colour(tuple(config.background), channels))


@lru_cache
def background_colour(background: tuple[int, ...], channels: int) -> tuple[int, ...]:
    """Return red, green and blue as a colour of so many channels: grey by ITU-R 601, as Pillow makes it of images."""
    if channels == RGB:
        return background
    from PIL import Image

    return (int(np.asarray(Image.new("RGB", (1, 1), background).convert("L"))[0, 0]),)
