"""Each operation against PIL and torchvision, at many strengths and odd sizes; and merged operations."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from helpers.images import smooth_image
from tutelage.augmentation.chains import apply_chain, apply_chains
from tutelage.augmentation.geometry import (
    AffineMap,
    make_rotation,
    make_shear_x,
    make_shear_y,
    make_translation,
    merge_maps,
)
from tutelage.augmentation.operations import OPERATIONS, RANDAUGMENT, SIGNED, WIDE, OperationSettings

SIZES = [(28, 28, 1), (32, 32, 3), (33, 47, 3), (64, 48, 1), (1, 1, 1), (1, 1, 3), (1, 9, 3), (7, 1, 3), (2, 5, 1)]
STRENGTHS = (-1.0, -0.55, -0.1, 0.1, 0.3, 0.5, 0.8, 1.0)
GEOMETRY = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
TABLES = ("Brightness", "Contrast", "Posterize", "Solarize", "AutoContrast", "Equalize")
MODES = {"nearest": InterpolationMode.NEAREST, "bilinear": InterpolationMode.BILINEAR}


def pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def largest_difference(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.abs(first.astype(int) - second.astype(int)).max())


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("name", ["Brightness", "Color", "Contrast", "Sharpness"])
def test_enhancements_equal_pils_within_a_level_at_every_magnitude(name, shape):
    """PIL rounds the grey or smoothed image and the blend, our code only the blend: a difference of one level."""
    image = smooth_image(shape)
    for magnitude in range(-30, 31):
        if min(shape[:2]) <= 2 and name == "Sharpness":
            expected = image  # PIL's filter has no room there
        else:
            enhance = getattr(ImageEnhance, name)(pil(image)).enhance
            expected = np.asarray(enhance(1 + 0.9 * magnitude / 30)).reshape(shape)
        assert largest_difference(apply_chain(image, [(name, magnitude / 30)]), expected) <= 1


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", ["Brightness", "Color", "Contrast", "Sharpness"])
def test_enhancements_are_torchvisions(name, strength):
    """Its brightness, contrast and colour clip as PIL's do; its sharpness also rounds the smoothed image."""
    image = smooth_image((33, 47, 3))
    calls = {
        "Brightness": functional.adjust_brightness,
        "Color": functional.adjust_saturation,
        "Contrast": functional.adjust_contrast,
        "Sharpness": functional.adjust_sharpness,
    }
    expected = calls[name](tensor(image), 1 + 0.9 * strength).numpy().transpose(1, 2, 0)
    assert largest_difference(apply_chain(image, [(name, strength)]), expected) <= 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [*SIZES, (40, 40, 3)])
def test_autocontrast_and_equalize_are_pils(shape, seed):
    """Equalize is equal to the bit. For an integer stretched value, PIL's float64 may be just below it: one level."""
    image = smooth_image(shape, seed) // (seed + 1) + 20 * seed  # not the whole range
    equalized, stretched = (
        np.asarray(f(pil(image))).reshape(shape) for f in (ImageOps.equalize, ImageOps.autocontrast)
    )
    assert (apply_chain(image, [("Equalize", 1.0)]) == equalized).all()
    assert largest_difference(apply_chain(image, [("AutoContrast", 1.0)]), stretched) <= 1


@pytest.mark.parametrize("value", [0, 7, 255])
@pytest.mark.parametrize("name", ["AutoContrast", "Equalize"])
def test_a_constant_channel_is_not_stretched(name, value):
    image = np.full((5, 6, 3), value, dtype=np.uint8)
    assert (apply_chain(image, [(name, 1.0)]) == image).all()


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("strength", (0.0, 0.1, 0.4, 0.7, 1.0))
def test_posterize_and_solarize_are_pils(strength, shape):
    image = smooth_image(shape)
    bits = 8 - round(4 * strength)
    posterized = np.asarray(ImageOps.posterize(pil(image), bits)).reshape(shape)
    assert (apply_chain(image, [("Posterize", strength)]) == posterized).all()
    threshold = 255 * (1 - strength)
    assert (apply_chain(image, [("Solarize", strength)]) == np.where(image >= threshold, 255 - image, image)).all()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_is_torchvisions(name, strength, shape, interpolation):
    """Nearest: a source on the border of two pixels may be rounded to either. Bilinear: OpenCV's weights are n / 32.

    At the edge of the filled area, torchvision blends with a mask and OpenCV with the fill; this is not compared.
    """
    height, width, _ = shape
    image, mode = smooth_image(shape), MODES[interpolation]
    affine = dict(angle=0.0, translate=[0, 0], scale=1.0, shear=[0.0, 0.0], interpolation=mode)

    def reference(pixels: torch.Tensor) -> np.ndarray:
        if name == "Rotate":
            return functional.rotate(pixels, 30 * strength, interpolation=mode).numpy().transpose(1, 2, 0)
        if name.startswith("Translate"):
            side = width if name.endswith("X") else height
            moved = int(150 / 331 * side * strength)
            shift = [moved, 0] if name.endswith("X") else [0, moved]
            return functional.affine(pixels, **{**affine, "translate": shift}).numpy().transpose(1, 2, 0)
        angle = float(np.degrees(np.arctan(0.3 * strength)))
        shear = [angle, 0.0] if name.endswith("X") else [0.0, angle]
        return functional.affine(pixels, **{**affine, "shear": shear}, center=[0, 0]).numpy().transpose(1, 2, 0)

    expected = reference(tensor(image))
    view = apply_chain(image, [(name, strength)], OperationSettings(interpolation=interpolation))
    if name.startswith("Translate"):
        assert (view == expected).all()
    elif interpolation == "nearest":
        different = (view != expected).any(axis=-1)
        assert different.mean() <= 0.02 or different.sum() <= 2
    else:
        inside = (reference(tensor(np.full_like(image, 255))) == 255).all(axis=-1)
        assert not inside.any() or largest_difference(view[inside], expected[inside]) <= 4


@pytest.mark.parametrize("name", GEOMETRY)
def test_pixels_from_outside_the_image_have_the_fill(name):
    image = np.full((20, 30, 3), 200, dtype=np.uint8)
    pixels = apply_chain(image, [(name, 1.0)], OperationSettings(fill=(1, 2, 3))).reshape(-1, 3)
    colours = {tuple(map(int, pixel)) for pixel in np.unique(pixels, axis=0)}
    assert colours == {(200, 200, 200), (1, 2, 3)}


def test_the_wide_ranges_are_torchvisions():
    """torchvision's TrivialAugmentWide has them for 31 bins."""
    from torchvision.transforms.v2 import TrivialAugmentWide

    space = TrivialAugmentWide._AUGMENTATION_SPACE

    def last(name: str) -> float:
        return float(space[name][0](31, 32, 32)[-1])

    assert [last("Rotate"), last("ShearX"), last("TranslateX"), last("Color"), last("Posterize")] == pytest.approx(
        [WIDE.degrees, WIDE.shear, WIDE.translation, WIDE.factor, WIDE.bits[1]]
    )
    assert set(space) == set(OPERATIONS)


def test_the_ranges_of_randaugment_are_torchvisions():
    from torchvision.transforms.v2 import RandAugment

    space = RandAugment._AUGMENTATION_SPACE
    last = {name: float(space[name][0](31, 331, 331)[-1]) for name in ("Rotate", "ShearX", "TranslateX", "Color")}
    assert last == pytest.approx({"Rotate": 30, "ShearX": 0.3, "TranslateX": 150, "Color": 0.9})
    assert (RANDAUGMENT.degrees, RANDAUGMENT.shear, RANDAUGMENT.factor) == (30, 0.3, 0.9)
    bits = [int(n) for n in space["Posterize"][0](31, 1, 1)]
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    bits_left = [len(np.unique(apply_chain(levels, [("Posterize", m / 30)]))).bit_length() - 1 for m in range(31)]
    assert bits_left == bits
    assert set(space) == set(OPERATIONS)
    assert {name for name, (_, signed) in space.items() if signed} == SIGNED


def mean_change(name: str, magnitude: float) -> float:
    image = smooth_image((32, 32, 3))
    return float(np.abs(apply_chain(image, [(name, magnitude / 30)]).astype(int) - image).mean())


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - set(GEOMETRY)))
def test_a_larger_magnitude_never_changes_an_image_less(name):
    changes = [mean_change(name, m) for m in range(0, 31, 5)]
    assert all(later >= earlier - 0.5 for earlier, later in pairwise(changes))


@pytest.mark.parametrize("name", GEOMETRY)
def test_a_larger_magnitude_never_moves_a_pixel_less(name):
    """The distance of a white spot, which is no fixed point, from its start at magnitudes 0, 5 ... 30."""
    image = np.zeros((65, 65, 1), dtype=np.uint8)
    image[12:15, 30:33] = 255
    image = image if name != "ShearY" else image.transpose(1, 0, 2).copy()
    positions = [
        np.argwhere(apply_chain(image, [(name, magnitude / 30)])[..., 0]).mean(axis=0) for magnitude in range(0, 31, 5)
    ]
    moved = [float(np.linalg.norm(position - positions[0])) for position in positions]
    assert moved[-1] > 3
    assert all(later >= earlier - 0.3 for earlier, later in pairwise(moved))


steps = st.tuples(st.sampled_from(OPERATIONS), st.floats(0, 1), st.sampled_from([-1, 1])).map(
    lambda drawn: (drawn[0], drawn[1] * (drawn[2] if drawn[0] in SIGNED else 1))
)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))


BILINEAR = OperationSettings(interpolation="bilinear")


def apply_steps(image: np.ndarray, chain: list[tuple[str, float]], *options: OperationSettings) -> np.ndarray:
    for step in chain:
        image = apply_chain(image, [step], *options)
    return image


@settings(max_examples=200)
@given(shapes, st.lists(steps.filter(lambda step: step[0] in TABLES), min_size=2, max_size=5), st.integers(0, 9))
def test_tables_in_sequence_are_merged_exactly(shape, chain, seed):
    image = smooth_image(shape, seed)
    assert (apply_chain(image, chain) == apply_steps(image, chain)).all()


@settings(max_examples=200)
@given(shapes, st.lists(steps, min_size=1, max_size=4), st.integers(0, 9))
def test_bilinear_chains_equal_single_steps_to_the_bit(shape, chain, seed):
    """With bilinear sampling only shifts by whole pixels are merged."""
    image = smooth_image(shape, seed)
    original = image.copy()
    expected = apply_steps(image, chain, BILINEAR)
    assert (apply_chain(image, chain, BILINEAR) == expected).all()
    assert (image == original).all()  # an image is never written to


@settings(max_examples=60)
@given(
    shapes,
    st.lists(st.lists(steps, max_size=4), min_size=1, max_size=9),
    st.sampled_from([OperationSettings(), BILINEAR]),
)
def test_images_processed_together_equal_those_processed_alone(shape, chains, look):
    images = [smooth_image(shape, seed) for seed in range(len(chains))]
    originals = [image.copy() for image in images]
    together = apply_chains(images, chains, look)
    for image, original, chain, view in zip(images, originals, chains, together, strict=True):
        assert (view == apply_chain(image, chain, look)).all()
        assert (image == original).all()


@settings(max_examples=200)
@given(
    st.tuples(st.integers(8, 40), st.integers(8, 40), st.sampled_from([1, 3])),
    st.lists(steps.filter(lambda step: step[0] in GEOMETRY), min_size=2, max_size=3),
)
def test_merged_maps_differ_from_single_ones_by_the_rounding_of_a_position(shape, chain):
    """A ramp shows where a pixel came from; one more rounding moves it by a pixel at most, for each axis and map.

    Pixels that only one of the two results fills lie along the edge of the filled area.
    """
    height, width, _ = shape
    for ramp in (np.arange(width)[None, :, None] * 3 + 60, np.arange(height)[:, None, None] * 3 + 60):
        image = np.broadcast_to(ramp, shape).astype(np.uint8).copy()
        view, expected = apply_chain(image, chain), apply_steps(image, chain)
        in_both = (view > 0).all(axis=-1) & (expected > 0).all(axis=-1)
        assert not in_both.any() or largest_difference(view[in_both], expected[in_both]) <= 3 * len(chain)
        in_one = ((view > 0) != (expected > 0)).any(axis=-1)
        assert in_one.sum() <= height + width


def test_pixels_that_left_the_image_do_not_come_back():
    """The image moves left by 14 pixels and back; a merged map would bring the lost pixels back."""
    image = smooth_image((32, 32, 3))
    view = apply_chain(image, [("TranslateX", -1.0), ("TranslateX", 1.0)])
    assert (view[:, :14] == 0).all()
    assert (view[:, 14:] == image[:, 14:]).all()
    assert merge_maps(make_translation(right=-14), make_translation(right=14), 32, 32) is None
    assert merge_maps(make_translation(right=-14), make_translation(right=-3), 32, 32) == make_translation(right=-17)
    assert merge_maps(make_rotation(20, 32, 32), make_rotation(-20, 32, 32), 32, 32) is None
    assert merge_maps(make_rotation(20, 32, 32), make_rotation(9, 32, 32), 32, 32) == pytest.approx(
        make_rotation(29, 32, 32)
    )


@given(st.floats(-30, 30), st.floats(-0.3, 0.3), st.integers(-9, 9), st.floats(0, 31), st.floats(0, 31))
def test_maps_are_composed_and_inverted_as_matrices(degrees, tangent, pixels, x, y):
    point = np.array([[x, y]])
    for first, second in (
        (make_rotation(degrees, 32, 32), make_shear_x(tangent)),
        (make_shear_y(tangent), make_translation(down=pixels)),
    ):
        assert first.compose(second).locate_inputs(point) == pytest.approx(
            first.locate_inputs(second.locate_inputs(point))
        )
        assert first.locate_outputs(first.locate_inputs(point)) == pytest.approx(point, abs=1e-6)
    assert AffineMap().locate_inputs(point) == pytest.approx(point)
