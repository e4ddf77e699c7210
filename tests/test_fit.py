"""``data.fit``: pictures that are not square, in evaluation and in training, against Pillow and by hand."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from helpers.configs import data_config, rgb_config
from helpers.images import smooth_image
from tutelage.augmentation import FittedPicture, Pipeline, RandomResizedCrop, fit_square
from tutelage.augmentation.crop import crop_and_resize
from tutelage.config.compose import compose
from tutelage.data.datasets.image_files import FileImages
from tutelage.errors import UserError
from tutelage.randomness import Key

COLOUR = (200, 30, 77)
CROP = "tutelage.augmentation.RandomResizedCrop"


class StoredPicture:
    """A picture that records at which sizes it is read; like that of a PNG it has only one."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.shape, self.reductions = pixels, pixels.shape, []

    def read(self, reduce: int = 1) -> np.ndarray:
        self.reductions.append(reduce)
        return self.pixels


def pad_by_pillow(pixels: np.ndarray) -> np.ndarray:
    """Return the picture in the middle of a square, in colour."""
    side = max(pixels.shape[:2])
    return np.asarray(ImageOps.pad(Image.fromarray(pixels), (side, side), color=COLOUR))


@pytest.mark.parametrize(
    ("fit", "shape"),
    [("pad", (48, 120)), ("pad", (120, 72)), ("pad", (80, 80)), ("stretch", (40, 120)), ("stretch", (120, 80))],
)
def test_evaluation_shows_the_whole_picture_padded_or_stretched_as_pillow_does(fit, shape):
    pixels = smooth_image((*shape, 3))
    whole = pad_by_pillow(pixels) if fit == "pad" else pixels
    expected = np.asarray(Image.fromarray(whole).resize((20, 20), Image.Resampling.BOX)).astype(int)
    assert np.abs(fit_square(pixels, 20, fit, COLOUR) - expected).max() <= 1


def test_a_stretched_picture_is_averaged_where_it_shrinks_even_if_it_grows_the_other_way():
    stripes = np.tile(np.array([255, 0, 0, 0], dtype=np.uint8), 16)[None, :, None].repeat(4, axis=0)  # (4, 64, 1)
    assert set(np.unique(fit_square(stripes, 16, "stretch", (0,)))) == {64}


@settings(max_examples=60)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.data())
def test_a_crop_of_a_padded_picture_is_cut_from_the_padded_square(height, width, channels, data):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    square = FittedPicture(StoredPicture(pixels), "pad", COLOUR[:channels])
    side = max(height, width)
    assert square.shape == (side, side, channels)
    left, top = data.draw(st.integers(0, side - 1)), data.draw(st.integers(0, side - 1))
    right, bottom = data.draw(st.integers(left + 1, side)), data.draw(st.integers(top + 1, side))
    crop = crop_and_resize(RandomResizedCrop((bottom - top, right - left)), square, (left, top, right, bottom))
    expected = np.full((side, side, channels), COLOUR[:channels], dtype=np.uint8)
    y, x = (side - height) // 2, (side - width) // 2
    expected[y : y + height, x : x + width] = pixels
    assert (crop == expected[top:bottom, left:right]).all()


@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(2, 5), st.booleans(), st.data())
def test_a_crop_of_a_stretched_picture_is_cut_from_the_stretched_square(short, factor, is_wide, data):
    shape = (short, short * factor, 1) if is_wide else (short * factor, short, 1)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    first = data.draw(st.integers(0, short - 1))
    last = data.draw(st.integers(first + 1, short))
    box = (first * factor, 0, last * factor, 1) if not is_wide else (0, first * factor, 1, last * factor)
    size = (1, last - first) if not is_wide else (last - first, 1)
    crop = crop_and_resize(RandomResizedCrop(size), FittedPicture(StoredPicture(pixels), "stretch", (0,)), box)
    assert (crop == (pixels[first:last, :1] if is_wide else pixels[:1, first:last])).all()


@pytest.mark.parametrize("fit", ["pad", "stretch"])
@pytest.mark.parametrize("shape", [(300, 480, 3), (480, 200, 3)])
def test_a_training_crop_of_all_shows_what_evaluation_shows_and_is_decoded_small(fit, shape):
    stored = StoredPicture(cv2.resize(smooth_image((30, 30, 3)), shape[1::-1], interpolation=cv2.INTER_CUBIC))
    whole = [{"_target_": CROP, "size": [24, 24], "scale": [1.0, 1.0], "ratio": [1.0, 1.0]}]
    view = Pipeline(whole, Key(0, "test"))(FittedPicture(stored, fit, COLOUR), 0, 0)
    evaluated = fit_square(stored.pixels, 24, fit, COLOUR)
    assert np.abs(view.astype(int) - evaluated).mean() < 3
    assert stored.reductions == [8]


def test_all_of_a_padded_picture_takes_no_more_pixels_than_the_picture():
    thin = FittedPicture(StoredPicture(smooth_image((4, 10_000, 3))), "pad", COLOUR)
    assert thin.shape == (10_000, 10_000, 3)
    assert thin.read().shape == (200, 200, 3)


def test_grey_pictures_are_padded_with_the_grey_that_pillow_makes_of_the_background(tmp_path):
    file = tmp_path / "wide.png"
    Image.new("RGB", (64, 16), (0, 0, 0)).save(file)
    config = dict(_target_="tutelage.data.ImageFolder", image_size=16, fit="pad", background=list(COLOUR))
    grey = Image.new("RGB", (1, 1), COLOUR).convert("L").getpixel((0, 0))
    image = FileImages([str(file)], data_config(**config))[0][..., 0]
    assert (image[:6] == grey).all() and (image[6:10] == 0).all() and (image[10:] == grey).all()
    images = FileImages([str(file)], rgb_config(**config))
    assert (images[0][0] == COLOUR).all()
    assert images.picture(0).shape == (64, 64, 3)


def test_pictures_of_a_dataset_that_is_square_are_fitted_by_nothing():
    with pytest.raises(UserError, match="data.fit"):
        compose(["data=digits", "+data.fit=pad"])
    assert compose(["data=huggingface", "recipe=none", "data.root=x", "data.fit=pad"]).data.fit == "pad"
