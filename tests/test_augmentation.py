"""RandAugment against torchvision and PIL, and every pipeline keyed by its draw."""

from itertools import pairwise

import albumentations
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from tutelage.augmentation import Pipeline, RandAugment
from tutelage.augmentation.randaugment import MAX_DEGREES, MAX_MAGNITUDE, MAX_TRANSLATION, OPERATIONS, SIGNED
from tutelage.compose import compose, options
from tutelage.errors import UserError
from tutelage.randomness import Key

SIZES = [(28, 28, 1), (32, 32, 3), (33, 47, 3), (1, 1, 1), (1, 9, 3), (2, 5, 1)]
STRENGTHS = (-1.0, -0.55, -0.1, 0.1, 0.3, 0.8, 1.0)


def picture(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """A smooth image with some noise, so that a wrong shift or factor shows and rounding does not hide it."""
    height, width, channels = shape
    rng = np.random.default_rng(seed)
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    smooth = 120 + 80 * np.sin(x / 5 + c) + 50 * np.cos(y / 7 - c)
    return np.clip(smooth + rng.normal(0, 6, shape), 0, 255).astype(np.uint8)


def pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def ours(name: str, image: np.ndarray, strength: float) -> np.ndarray:
    return OPERATIONS[name](image, strength, 0).reshape(image.shape)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", ["Brightness", "Color", "Contrast", "Sharpness"])
def test_enhancements_are_pils(name, strength, shape):
    """PIL's grey is fixed-point arithmetic where ours is float: one level of it, times the factor, may differ."""
    image = picture(shape)
    if min(shape[:2]) <= 2 and name == "Sharpness":
        expected = image  # PIL's filter has no room there
    else:
        expected = np.asarray(getattr(ImageEnhance, name)(pil(image)).enhance(1 + 0.9 * strength)).reshape(shape)
    difference = np.abs(ours(name, image, strength).astype(int) - expected)
    assert difference.max() <= {"Brightness": 0, "Sharpness": 1, "Color": 1, "Contrast": 1}[name]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("name", ["AutoContrast", "Equalize"])
def test_histogram_operations_are_pils(name, shape):
    image = picture(shape)
    reference = {"AutoContrast": ImageOps.autocontrast, "Equalize": ImageOps.equalize}[name]
    expected = np.asarray(reference(pil(image))).reshape(shape)
    assert np.abs(ours(name, image, 1.0).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("strength", (0.0, 0.1, 0.4, 0.7, 1.0))
def test_posterize_and_solarize_are_pils(strength, shape):
    image = picture(shape)
    bits = 8 - round(4 * strength)
    assert (ours("Posterize", image, strength) == np.asarray(ImageOps.posterize(pil(image), bits)).reshape(shape)).all()
    threshold = 255 * (1 - strength)
    assert (ours("Solarize", image, strength) == np.where(image >= threshold, 255 - image, image)).all()


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"])
def test_geometry_is_torchvisions(name, strength, shape):
    """Nearest-neighbour sampling on both sides; pixels whose source lies on a border between two may differ."""
    height, width, _ = shape
    image = picture(shape)
    affine = dict(angle=0.0, translate=[0, 0], scale=1.0, shear=[0.0, 0.0], interpolation=InterpolationMode.NEAREST)
    if name == "Rotate":
        expected = functional.rotate(tensor(image), MAX_DEGREES * strength, interpolation=InterpolationMode.NEAREST)
    elif name.startswith("Translate"):
        side = width if name.endswith("X") else height
        pixels = int(MAX_TRANSLATION * side * strength)
        affine["translate"] = [pixels, 0] if name.endswith("X") else [0, pixels]
        expected = functional.affine(tensor(image), **affine)
    else:
        angle = float(np.degrees(np.arctan(0.3 * strength)))
        affine["shear"] = [angle, 0.0] if name.endswith("X") else [0.0, angle]
        expected = functional.affine(tensor(image), **affine, center=[0, 0])
    different = (ours(name, image, strength) != expected.numpy().transpose(1, 2, 0)).any(axis=-1)
    if name.startswith("Translate"):
        assert not different.any()
    else:
        assert different.mean() <= 0.02 or different.sum() <= 2


def change(name: str, magnitude: float) -> float:
    image = picture((32, 32, 3))
    return float(np.abs(ours(name, image, magnitude / MAX_MAGNITUDE).astype(int) - image).mean())


GEOMETRY = {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - GEOMETRY))
def test_a_larger_magnitude_never_changes_an_image_less(name):
    changes = [change(name, m) for m in range(0, 31, 5)]
    assert all(later >= earlier - 0.5 for earlier, later in pairwise(changes))


@pytest.mark.parametrize("name", sorted(GEOMETRY))
def test_a_larger_magnitude_never_moves_a_pixel_less(name):
    """A white pixel, off the fixed points: how far it lies from its place at magnitudes 0, 5 ... 30."""
    image = np.zeros((65, 65, 1), dtype=np.uint8)
    image[12:15, 30:33] = 255
    image = image if name != "ShearY" else image.transpose(1, 0, 2).copy()
    places = [
        np.argwhere(ours(name, image, magnitude / MAX_MAGNITUDE)[..., 0]).mean(axis=0) for magnitude in range(0, 31, 5)
    ]
    moved = [float(np.linalg.norm(place - places[0])) for place in places]
    assert moved[-1] > 3
    assert all(later >= earlier - 0.3 for earlier, later in pairwise(moved))


def test_operations_and_signs_are_drawn_uniformly():
    transform = RandAugment(num_ops=2, magnitude=9)
    transform.set_random_seed(0)
    drawn = [pair for _ in range(7000) for pair in transform.get_params()["operations"]]
    counts = {name: sum(n == name for n, _ in drawn) for name in OPERATIONS}
    assert all(abs(count - 1000) < 5 * 31 for count in counts.values()), counts  # five standard deviations
    signs = [sign for name, sign in drawn if name in SIGNED]
    assert abs(np.mean(signs)) < 0.05
    assert {sign for name, sign in drawn if name not in SIGNED} == {1}


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3])),
    st.integers(0, 4),
    st.floats(0, 30),
    st.integers(0, 1000),
)
def test_randaugment_keeps_shape_and_type_and_follows_its_seed(shape, num_ops, magnitude, seed):
    views = []
    for _ in range(2):
        transform = RandAugment(num_ops=num_ops, magnitude=magnitude)
        transform.set_random_seed(seed)
        views.append(transform(image=picture(shape))["image"])
    assert views[0].shape == shape
    assert views[0].dtype == np.uint8
    assert (views[0] == views[1]).all()


def test_randaugment_is_stored_and_restored_as_other_transforms_are():
    stored = albumentations.to_dict(RandAugment(num_ops=3, magnitude=11.5, fill=7))
    restored = albumentations.from_dict(stored)
    assert (restored.num_ops, restored.magnitude, restored.fill) == (3, 11.5, 7)


def test_a_magnitude_out_of_range_is_an_error():
    with pytest.raises(UserError, match="RandAugment refuses magnitude=31: Input should be less than or equal to 30"):
        Pipeline([{"_target_": "tutelage.augmentation.RandAugment", "magnitude": 31}], Key(0, "s"))


@pytest.mark.parametrize("data", ["digits", "fashion_mnist"])
@pytest.mark.parametrize("option", sorted(options()["augmentation"]))
def test_every_pipeline_is_a_function_of_the_draw(option, data):
    transforms = compose([f"data={data}", f"augmentation={option}"]).augmentation.transforms
    image = picture((28, 28, 1))
    used, fresh = (Pipeline(transforms, Key(3, "student-1", "pool")) for _ in range(2))
    used.check(image)
    draws = [(p, i, c) for p in range(3) for i in (0, 7) for c in range(2)]
    views = {draw: used(image, *draw).copy() for draw in draws}
    for draw in reversed(draws):
        assert (fresh(image, *draw) == views[draw]).all(), draw
    if transforms:
        distinct = len({view.tobytes() for view in views.values()})
        assert distinct == 2 if option == "flip" else distinct > len(draws) // 2
        other = Pipeline(transforms, Key(4, "student-1", "pool"))
        assert any((other(image, *draw) != views[draw]).any() for draw in draws)


def test_a_pipeline_that_changes_the_size_is_an_error():
    pipeline = Pipeline([{"_target_": "albumentations.Resize", "height": 5, "width": 5}], Key(0, "s"))
    with pytest.raises(UserError, match=r"\(28, 28, 1\) uint8 came out as \(5, 5, 1\) uint8"):
        pipeline.check(picture((28, 28, 1)))


@pytest.mark.parametrize("source", ["numpy", "random", "own"])
def test_a_transform_that_draws_from_elsewhere_is_named(source, monkeypatch):
    import random

    import tutelage.augmentation as room

    class Restless(albumentations.ImageOnlyTransform):
        def get_params(self):
            own = {"numpy": np.random.rand, "random": random.random, "own": self.py_random.random}
            return {"shift": int(own[source]() * 200)}

        def apply(self, img, shift, **_):
            return img + np.uint8(shift)

    Restless.__module__ = "tutelage.augmentation"
    monkeypatch.setattr(room, "Restless", Restless, raising=False)
    flip = {"_target_": "albumentations.HorizontalFlip", "p": 0.5}
    pipeline = Pipeline([flip, {"_target_": "tutelage.augmentation.Restless", "p": 1.0}], Key(0, "s"))
    if source == "own":
        pipeline.check(picture((28, 28, 1)))
    else:
        with pytest.raises(UserError, match=r"augmentation.transforms.1.: Restless draws from a source of its own"):
            pipeline.check(picture((28, 28, 1)))
