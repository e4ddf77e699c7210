"""The transforms against the libraries and papers that they follow; pipelines as functions of the draw."""

import math
import random

import albumentations
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional

from helpers.images import smooth_image
from tutelage.augmentation import AugMix, Pipeline, RandAugment, RandomResizedCrop, ThreePoints, TrivialAugment
from tutelage.augmentation.chains import apply_chain
from tutelage.augmentation.crop import NUMBERS_PER_CROP, crop_and_resize, draw_boxes
from tutelage.augmentation.operations import OPERATIONS, SIGNED
from tutelage.config.compose import compose
from tutelage.errors import UserError
from tutelage.options import list_options
from tutelage.randomness import Key

TRANSFORMS = {"RandAugment": RandAugment, "TrivialAugment": TrivialAugment, "AugMix": AugMix}


def draw_steps(transform: albumentations.BasicTransform, times: int) -> list[tuple[str, float]]:
    transform.set_random_seed(0)
    return [step for _ in range(times) for step in transform.get_params()["chain"]]


def is_uniform(names: list[str], among: tuple[str, ...]) -> bool:
    """Return whether each name is as frequent as the others, within five standard deviations."""
    expected = len(names) / len(among)
    return set(names) <= set(among) and all(abs(names.count(n) - expected) < 5 * expected**0.5 for n in among)


@pytest.mark.parametrize("transform", [RandAugment(num_ops=2, magnitude=9), TrivialAugment()])
def test_operations_and_signs_are_drawn_uniformly(transform):
    steps = draw_steps(transform, 7000)
    assert is_uniform([name for name, _ in steps], OPERATIONS)
    signed = [np.sign(strength) for name, strength in steps if name in SIGNED and strength]
    assert abs(np.mean(signed)) < 5 / len(signed) ** 0.5
    assert all(strength >= 0 for name, strength in steps if name not in SIGNED)


def test_randaugment_draws_its_one_magnitude_and_trivialaugment_any_of_31():
    assert {abs(strength) for _, strength in draw_steps(RandAugment(magnitude=12), 50)} == {12 / 30}
    magnitudes = [round(abs(strength) * 30) for _, strength in draw_steps(TrivialAugment(), 31 * 400)]
    assert sorted(set(magnitudes)) == list(range(31))
    assert all(abs(magnitudes.count(m) - 400) < 5 * 20 for m in range(31))


def test_magnitudes_with_a_deviation_are_normal_and_clipped():
    strengths = [abs(s) * 30 for _, s in draw_steps(RandAugment(magnitude=15, magnitude_std=3), 2000)]
    assert (np.mean(strengths), np.std(strengths)) == (pytest.approx(15, abs=0.3), pytest.approx(3, abs=0.3))
    wild = [abs(s) * 30 for _, s in draw_steps(RandAugment(magnitude=15, magnitude_std=30), 500)]
    assert (min(wild), max(wild)) == (0, pytest.approx(30))


def test_only_the_configured_operations_are_drawn():
    names = ("Rotate", "Equalize", "Color")
    assert is_uniform([name for name, _ in draw_steps(RandAugment(operations=names), 900)], names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"magnitude": 31}, "RandAugment refuses magnitude=31: Input should be less than or equal to 30"),
        ({"num_ops": -1}, "RandAugment refuses num_ops=-1"),
        ({"operations": ["Rotate", "Blur"]}, "Blur is not an operation; choose from Identity, ShearX"),
        ({"operations": []}, "the list is empty; choose from Identity"),
        ({"fill": [1, 2]}, "RandAugment refuses fill"),
        ({"interpolation": "cubic"}, "RandAugment refuses interpolation=cubic"),
        ({"magnitud": 3}, "RandAugment refuses its arguments"),
    ],
)
def test_arguments_out_of_range_are_an_error(arguments, message):
    with pytest.raises(UserError, match=message):
        Pipeline([{"_target_": "tutelage.augmentation.RandAugment", **arguments}], Key(0, "s"))


@pytest.mark.parametrize("name", TRANSFORMS)
@settings(max_examples=40)
@given(shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 4])), seed=st.integers(0, 1000))
def test_transforms_keep_shape_and_type_follow_their_seed_and_never_write_to_the_image(name, shape, seed):
    image = smooth_image(shape)
    original, views = image.copy(), []
    for _ in range(2):
        transform = TRANSFORMS[name]()
        transform.set_random_seed(seed)
        views.append(transform(image=image)["image"])
    assert (views[0].shape, views[0].dtype) == (shape, np.uint8)
    assert (views[0] == views[1]).all()
    assert (image == original).all()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_alpha_passes_through_and_colours_change_as_without_it(name):
    image = smooth_image((20, 24, 4))
    with_alpha, without = TRANSFORMS[name](), TRANSFORMS[name]()
    for seed in range(5):
        with_alpha.set_random_seed(seed)
        without.set_random_seed(seed)
        view = with_alpha(image=image)["image"]
        assert (view[..., 3] == image[..., 3]).all()
        assert (view[..., :3] == without(image=image[..., :3].copy())["image"]).all()


def test_an_image_without_a_channel_axis_is_grey():
    image = smooth_image((20, 24, 1))
    transform = RandAugment(num_ops=3)
    for seed in range(5):
        views = []
        for given_image in (image, image[..., 0]):
            transform.set_random_seed(seed)
            views.append(transform(image=given_image)["image"])
        assert views[1].shape == (20, 24)
        assert (views[0][..., 0] == views[1]).all()


@pytest.mark.parametrize(
    "transform",
    [
        RandAugment(num_ops=3, magnitude=11.5, magnitude_std=1, operations=["Rotate", "Color"], fill=[7, 8, 9]),
        TrivialAugment(fill=7, interpolation="bilinear"),
        AugMix(severity=5, width=2, depth=1, alpha=0.5),
        RandomResizedCrop(size=(16, 16), scale=(0.3, 0.9), antialias=False),
        ThreePoints(shift=0.2, fill=3, interpolation="nearest"),
    ],
)
def test_transforms_are_saved_and_loaded_by_albumentations(transform, tmp_path):
    pipeline = albumentations.Compose([transform])
    for file in ("pipeline.json", "pipeline.yaml"):
        form = file.rpartition(".")[2]
        albumentations.save(pipeline, tmp_path / file, data_format=form)
        restored = albumentations.load(tmp_path / file, data_format=form)
        for seed in range(3):
            views = []
            for composition in (pipeline, restored):
                composition.set_random_seed(seed)
                views.append(composition(image=smooth_image((24, 24, 3)))["image"])
            assert (views[0] == views[1]).all()


def test_apply_operation_applies_one_operation_at_a_magnitude():
    image = smooth_image((20, 20, 3))
    assert (RandAugment().apply_operation(image, "Rotate", 15) == apply_chain(image, [("Rotate", 0.5)])).all()


def test_augmix_mixes_as_algorithm_1_of_its_paper():
    """Algorithm 1, in float64: (1 - m) x + m (w_1 chain_1(x) + ... )."""
    image, transform = smooth_image((20, 20, 3)), AugMix()
    for seed in range(20):
        transform.set_random_seed(seed)
        params = transform.get_params()
        assert len(params["chains"]) == 3
        assert all(1 <= len(chain) <= 3 for chain in params["chains"])
        assert 0 <= sum(params["weights"]) <= 1
        assert all(0 < abs(strength) <= 0.3 for chain in params["chains"] for _, strength in chain)
        expected = (1 - sum(params["weights"])) * image.astype(float)
        for chain, weight in zip(params["chains"], params["weights"], strict=True):
            expected += weight * apply_chain(image, chain, transform.settings)
        assert np.abs(transform.apply(image, **params) - expected).max() <= 0.51


def test_augmixs_chain_weights_are_dirichlet_distributed_and_their_sum_beta_distributed():
    """With alpha 1 the sum is uniform on 0 to 1, and each of three weights has a mean of a third of it."""
    transform = AugMix()
    transform.set_random_seed(0)
    weights = np.array([transform.get_params()["weights"] for _ in range(3000)])
    totals = weights.sum(axis=1)
    assert (totals.mean(), totals.std()) == (pytest.approx(0.5, abs=0.02), pytest.approx(12**-0.5, abs=0.02))
    assert (weights / totals[:, None]).mean(axis=0) == pytest.approx([1 / 3] * 3, abs=0.02)


class ReplayedNumbers:
    """A generator that returns given numbers: those of a box's size by ``uniform``, of its position by ``random``."""

    def __init__(self, numbers: list[float]) -> None:
        self.sizes, self.places = iter(numbers[:-2]), iter(numbers[-2:])

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * next(self.sizes)

    def random(self) -> float:
        return next(self.places)


@pytest.mark.parametrize("shape", [(50, 40, 3), (28, 28, 1), (1, 9, 3), (300, 20, 3), (20, 300, 1)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_crops_equal_albumentations_crops_to_the_bit(shape, scale):
    """The same random numbers give the box and the pixels of Albumentations' own calls."""
    transform = albumentations.RandomResizedCrop(size=(24, 24), scale=scale)
    image, numbers = smooth_image(shape), np.random.default_rng(0).random((300, NUMBERS_PER_CROP))
    boxes = draw_boxes(transform, [shape] * 300, numbers)
    for box, row in zip(boxes, numbers.tolist(), strict=True):
        transform.py_random = ReplayedNumbers(row)
        assert box == transform.get_params_dependent_on_data({"shape": shape}, {})["crop_coords"]
    for box in boxes[:20]:
        assert (crop_and_resize(transform, image, box) == transform.apply(image, box).reshape(24, 24, -1)).all()


def test_half_of_the_images_are_mirrored():
    pipeline = Pipeline([{"_target_": "albumentations.HorizontalFlip", "p": 0.5}], Key(0, "s"))
    image = smooth_image((9, 9, 3))
    views = [pipeline(image, 0, index) for index in range(1000)]
    mirrored = [bool((view == image[:, ::-1]).all()) for view in views]
    assert all((view == image).all() for view, m in zip(views, mirrored, strict=True) if not m)
    assert 420 < sum(mirrored) < 580  # five standard deviations


def test_randaugment_without_operations_leaves_an_image_unchanged():
    pipeline = Pipeline([{"_target_": "tutelage.augmentation.RandAugment", "num_ops": 0}], Key(0, "s"))
    assert (pipeline(smooth_image((9, 9, 3)), 0, 0) == smooth_image((9, 9, 3))).all()


@pytest.mark.parametrize(("shape", "ratio"), [((9, 1, 3), (3, 4)), ((1, 1, 1), (0.1, 0.3)), ((1, 1, 1), (3, 4))])
def test_a_ratio_that_does_not_fit_the_image_still_gives_a_crop(shape, ratio):
    crop = {"_target_": "albumentations.RandomResizedCrop", "size": [8, 8], "ratio": ratio}
    assert Pipeline([crop], Key(0, "s"))(smooth_image(shape), 0, 0).shape == (8, 8, shape[-1])


def test_a_transform_is_applied_with_its_probability():
    always = {
        "_target_": "tutelage.augmentation.RandAugment",
        "operations": ["Solarize"],
        "magnitude": 30,
        "num_ops": 1,
    }
    pipeline = Pipeline([{**always, "p": 0.3}], Key(0, "s"))
    image = smooth_image((9, 9, 3))
    fired = [bool((pipeline(image, 0, index) == 255 - image).all()) for index in range(1000)]
    assert 228 < sum(fired) < 372  # five standard deviations


@pytest.mark.parametrize("option", ["randaugment", "weak_strong", "trivialaugment", "strong", "augmix"])
def test_a_view_is_the_same_alone_and_in_a_batch_of_any_size(option):
    config = compose(["data=cifar10", f"augmentation={option}"]).augmentation
    pipeline = Pipeline(config.transforms, Key(0, "s"), config.strong)
    images = [smooth_image((32, 32, 3), seed) for seed in range(200)]
    draws = np.array([(index % 3, index, index % 2) for index in range(200)])
    batch = np.empty((pipeline.views, 200, 32, 32, 3), dtype=np.uint8)
    pipeline.fill(batch, images, draws)
    assert all(
        (pipeline(image, *draw) == view).all()
        for image, draw, view in zip(images, draws.tolist(), batch[0], strict=True)
    )
    part = np.empty((pipeline.views, 7, 32, 32, 3), dtype=np.uint8)
    pipeline.fill(part, images[90:97][::-1], draws[90:97][::-1])
    assert (part == batch[:, 90:97][:, ::-1]).all()


@pytest.mark.parametrize("shape", [(300, 300, 3), (90, 211, 1), (33, 64, 3)])
def test_antialiased_crops_equal_those_of_pil_and_torchvision_within_a_level(shape):
    """PIL rounds after each axis and torch's filter weights have 15 bits, so values differ by one level at most."""
    image, transform = smooth_image(shape), RandomResizedCrop(size=(24, 24))
    for box in ((0, 0, shape[1], shape[0]), (3, 5, 60, 33)):
        view = transform.apply(image, box)
        left, top, right, bottom = box
        cut = image[top:bottom, left:right]
        channels = [Image.fromarray(np.ascontiguousarray(cut[..., c])) for c in range(shape[-1])]
        pil_view = np.stack(
            [np.asarray(channel.resize((24, 24), Image.Resampling.BILINEAR)) for channel in channels], axis=-1
        )
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
        torchvision_view = functional.resized_crop(
            tensor, top, left, bottom - top, right - left, [24, 24], antialias=True
        )
        assert np.abs(view.astype(int) - pil_view).max() <= 1
        assert np.abs(view.astype(int) - torchvision_view.numpy().transpose(1, 2, 0)).max() <= 1


def test_without_antialiasing_a_crop_is_resized_as_by_opencv():
    image = smooth_image((60, 60, 3))
    view = RandomResizedCrop(size=(24, 24), antialias=False).apply(image, (2, 3, 50, 55))
    assert (view == cv2.resize(image[3:55, 2:50], (24, 24))).all()


class StoredPicture:
    """A picture that records the factors by which it was reduced when decoded."""

    def __init__(self, image: np.ndarray) -> None:
        self.image, self.shape, self.reduced = image, image.shape, []

    def read(self, reduce: int = 1) -> np.ndarray:
        self.reduced.append(reduce)
        height, width, _ = self.shape
        size = (math.ceil(width / reduce), math.ceil(height / reduce))
        return cv2.resize(self.image, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_picture_is_decoded_at_a_reduced_size_if_the_crop_allows_and_gives_the_same_view(axis):
    """The pixels of a ramp identify their position. The box is rounded to whole pixels of the reduced image, so its
    edges are off by half of one at most, which is half a pixel of the view at most."""
    ramp = np.broadcast_to(np.arange(400).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1)), (400, 400, 3))
    image = (ramp // 2 + 20).astype(np.uint8)  # a level is two pixels
    stored, crop = StoredPicture(image), {"_target_": "tutelage.augmentation.RandomResizedCrop"}
    small, large = (Pipeline([{**crop, "size": [side, side]}], Key(0, "s")) for side in (32, 399))
    for index in range(60):
        stored.reduced.clear()
        gap = np.abs(small(stored, 0, index).astype(int) - small(image, 0, index)).max()
        assert gap <= stored.reduced[0] / 2 / 2 + 1  # levels: half a reduced pixel, and a rounding
        assert stored.reduced[0] in {2, 4, 8}
    stored.reduced.clear()
    assert all((large(stored, 0, i) == large(image, 0, i)).all() for i in range(5))
    assert set(stored.reduced) == {1}


def test_three_points_moves_the_corners_to_the_drawn_targets():
    """Bright points of a dark image move as the affine map, solved by numpy, says."""
    image = np.zeros((41, 61, 1), dtype=np.uint8)
    transform = ThreePoints(shift=0.2)
    transform.set_random_seed(1)
    targets = transform.get_params()["corners"]
    assert (np.abs(targets - [(0, 0), (1, 0), (0, 1)]) <= 0.2).all()
    unmoved = smooth_image((9, 9, 3))
    assert (ThreePoints(shift=0).apply(unmoved, np.array([(0, 0), (1, 0), (0, 1)])) == unmoved).all()
    inner = np.array([(0.25, 0.25), (0.7, 0.3), (0.4, 0.8)])
    matrix = np.linalg.solve(np.array([(0, 0, 1), (1, 0, 1), (0, 1, 1)], dtype=float), targets)  # (x, y, 1) to targets
    for x, y in inner:
        spot = image.copy()
        spot[round(y * 40), round(x * 60)] = 255
        expected = np.array([round(x * 60) / 60, round(y * 40) / 40, 1]) @ matrix * (60, 40)
        bright = np.argwhere(transform.apply(spot, targets)[..., 0])[:, ::-1]
        assert np.abs(bright.mean(axis=0) - expected).max() < 1


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 3), (6, 1, 3)])
def test_three_points_accepts_an_image_of_one_row_column_or_pixel(shape):
    transform = ThreePoints()
    assert transform(image=smooth_image(shape))["image"].shape == shape


@pytest.mark.parametrize("data", ["digits", "fashion_mnist", "cifar10"])
@pytest.mark.parametrize("option", sorted(list_options()["augmentation"]))
def test_every_pipeline_is_a_function_of_the_draw(option, data):
    config = compose([f"data={data}", f"augmentation={option}"])
    size, channels, augmentation = config.data.image_size, config.data.channels, config.augmentation
    image = smooth_image((size, size, channels))

    def views(pipeline: Pipeline, draw: tuple[int, int, int]) -> np.ndarray:
        out = np.empty((pipeline.views, *image.shape), dtype=np.uint8)
        pipeline.fill(out[:, None], [image], np.array([draw]))
        assert (out[0] == pipeline(image, *draw)).all()
        return out

    first_pipeline, second_pipeline = (
        Pipeline(augmentation.transforms, Key(3, "student-1", "pool"), augmentation.strong) for _ in range(2)
    )
    first_pipeline.check(image)
    draws = [(p, i, c) for p in range(3) for i in (0, 7) for c in range(2)]
    views_by_draw = {draw: views(first_pipeline, draw) for draw in draws}
    for draw in reversed(draws):
        assert (views(second_pipeline, draw) == views_by_draw[draw]).all(), draw
    if augmentation.transforms:
        distinct = len({view.tobytes() for view in views_by_draw.values()})
        assert distinct == 2 if option == "flip" else distinct > len(draws) // 2
        other_seed = Pipeline(augmentation.transforms, Key(4, "student-1", "pool"), augmentation.strong)
        assert any((views(other_seed, draw) != views_by_draw[draw]).any() for draw in draws)


def test_the_strong_view_is_computed_from_the_weak_view():
    config = compose(["data=cifar10", "augmentation=weak_strong"]).augmentation
    image, key = smooth_image((32, 32, 3)), Key(0, "s")
    two, weak = Pipeline(config.transforms, key, config.strong), Pipeline(config.transforms, key)
    out = np.empty((2, 10, 32, 32, 3), dtype=np.uint8)
    draws = np.array([(0, index, 0) for index in range(10)])
    two.fill(out, [image] * 10, draws)
    assert all((out[0, index] == weak(image, 0, index)).all() for index in range(10))
    assert (two.views, weak.views) == (2, 1)
    crop = {"_target_": "tutelage.augmentation.RandomResizedCrop", "size": [32, 32]}
    for p in (0.0, 1.0):
        flipped = Pipeline([crop], key, [{"_target_": "albumentations.HorizontalFlip", "p": p}])
        flipped.fill(out, [image] * 10, draws)
        assert (out[1] == (out[0][:, :, ::-1] if p else out[0])).all()


def test_compositions_may_be_nested():
    inner = [
        {"_target_": "albumentations.HorizontalFlip", "p": 1.0},
        {"_target_": "albumentations.VerticalFlip", "p": 1.0},
    ]
    pipeline = Pipeline([{"_target_": "albumentations.OneOf", "p": 1.0, "transforms": inner}], Key(0, "s"))
    image = smooth_image((9, 9, 3))
    pipeline.check(image)
    views = {pipeline(image, 0, index).tobytes() for index in range(20)}
    assert views == {np.ascontiguousarray(image[:, ::-1]).tobytes(), np.ascontiguousarray(image[::-1]).tobytes()}
    inner[0]["q"] = 1
    with pytest.raises(UserError, match=r"augmentation.transforms\[0\].transforms\[0\]: HorizontalFlip refuses"):
        Pipeline([{"_target_": "albumentations.OneOf", "transforms": inner}], Key(0, "s"))


@pytest.mark.parametrize("list_", ["transforms", "strong"])
@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            {"_target_": "albumentations.Resize", "height": 5, "width": 5},
            r"\(28, 28, 1\) came out as \(5, 5, 1\); end the",
        ),
        ({"_target_": "albumentations.Normalize"}, "came out as float32; leave out Normalize"),
        ({"_target_": "albumentations.pytorch.ToTensorV2"}, "came out as torch.uint8; leave out Normalize"),
    ],
)
def test_a_pipeline_that_changes_size_or_type_is_an_error(transform, message, list_):
    lists = {"transforms": [], "strong": []} | {list_: [transform]}
    image = smooth_image((28, 28, 3 if "Normalize" in transform["_target_"] else 1))
    with pytest.raises(UserError, match=rf"augmentation.{list_}: .*{message}"):
        Pipeline(lists["transforms"], Key(0, "s"), lists["strong"]).check(image)


def test_images_that_may_not_be_written_to_are_read_without_a_warning(recwarn):
    image = smooth_image((60, 60, 3))
    image.flags.writeable = False
    crop = {"_target_": "tutelage.augmentation.RandomResizedCrop", "size": [24, 24]}
    assert Pipeline([crop], Key(0, "s"))(image, 0, 0).shape == (24, 24, 3)
    assert not recwarn.list


def test_a_transform_that_works_in_place_does_not_change_the_data(monkeypatch):
    import tutelage.augmentation as room

    class Hole(albumentations.ImageOnlyTransform):
        def apply(self, img, **_):
            img[:4] = 0
            return img

    Hole.__module__ = "tutelage.augmentation"
    monkeypatch.setattr(room, "Hole", Hole, raising=False)
    hole = [{"_target_": "tutelage.augmentation.Hole", "p": 1.0}]
    image, out = smooth_image((9, 9, 3)), np.empty((2, 1, 9, 9, 3), dtype=np.uint8)
    Pipeline([], Key(0, "s"), hole).fill(out, [image], np.array([(0, 0, 0)]))
    Pipeline(hole, Key(0, "s")).check(image)
    assert (image == smooth_image((9, 9, 3))).all()
    assert (out[0, 0] == image).all()
    assert (out[1, 0, :4] == 0).all()


SOURCES = {"numpy": np.random.rand, "random": random.random}


@pytest.mark.parametrize("list_", ["transforms", "strong"])
@pytest.mark.parametrize("source", ["numpy", "random", "when built", "those before", "own"])
def test_a_transform_with_randomness_of_its_own_is_named_in_an_error(source, list_, monkeypatch):
    import tutelage.augmentation as room

    class Restless(albumentations.ImageOnlyTransform):
        def __init__(self, p=1.0):
            super().__init__(p=p)
            self.built, self.calls = random.random(), 0

        def get_params(self):
            self.calls += 1
            sources = {
                "own": self.py_random.random,
                "when built": lambda: self.built,
                "those before": lambda: self.calls / 99,
            }
            return {"shift": int({**SOURCES, **sources}[source]() * 200)}

        def apply(self, img, shift, **_):
            return img + np.uint8(shift)

    Restless.__module__ = "tutelage.augmentation"
    monkeypatch.setattr(room, "Restless", Restless, raising=False)
    flip = {"_target_": "albumentations.HorizontalFlip", "p": 0.5}
    restless = {"_target_": "tutelage.augmentation.Restless", "p": 1.0}
    lists = {"transforms": [flip], "strong": [flip]}
    lists[list_].append(restless)
    pipeline = Pipeline(lists["transforms"], Key(0, "s"), lists["strong"])
    if source == "own":
        pipeline.check(smooth_image((28, 28, 1)))
    else:
        with pytest.raises(UserError, match=rf"augmentation.{list_}.1.: Restless draws from a source of its own"):
            pipeline.check(smooth_image((28, 28, 1)))
