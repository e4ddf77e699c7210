"""Datasets, label budgets and splits."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.configs import data_config, rgb_config
from helpers.images import write_images
from helpers.sources import make_source
from tutelage.data import UNKNOWN, draw_stratified, fingerprint, split
from tutelage.data.datasets.digits import digits
from tutelage.data.datasets.fashion_mnist import fashion_mnist
from tutelage.data.datasets.image_files import image_files
from tutelage.data.files.folders import list_folder
from tutelage.errors import UserError
from tutelage.randomness import Key

sources = st.builds(
    lambda sizes, test, unlabelled: make_source(np.repeat(np.arange(len(sizes)), sizes), test, unlabelled),
    st.lists(st.integers(12, 40), min_size=2, max_size=6),
    st.integers(1, 20),
    st.integers(0, 20),
)
budgets = st.one_of(
    st.builds(lambda n: {"labels_per_class": n}, st.integers(1, 10)),
    st.builds(lambda share: {"labels": f"{share}%"}, st.integers(1, 100)),
    st.just({}),
)
validations = st.sampled_from(["none", "outside:3", "auto"])


@settings(max_examples=200)
@given(sources, budgets, validations, st.integers(0, 99))
def test_train_validation_test_and_pool_never_overlap_and_lose_nothing(source, budget, validation, seed):
    if validation.startswith("outside") and int(budget.get("labels", "0%" if budget else "100%")[:-1]) > 70:
        validation = "none"
    parts = split(source, data_config(**budget, validation=validation, split_seed=seed))
    together = np.concatenate([parts.labelled, parts.validation, parts.test, parts.pool])
    assert len(np.unique(together)) == len(together) == len(source.labels)
    assert set(parts.test) == set(source.test)
    assert set(np.unique(source.labels[parts.labelled])) == set(range(len(source.classes)))


@settings(max_examples=100)
@given(sources, st.integers(1, 11), st.integers(1, 11), st.integers(0, 99))
def test_the_labelled_images_of_a_smaller_budget_are_among_those_of_a_larger_one(source, first, second, seed):
    small, large = (
        split(source, data_config(labels_per_class=n, split_seed=seed)).labelled for n in sorted((first, second))
    )
    assert set(small) <= set(large)
    assert np.bincount(source.labels[small]).tolist() == [min(first, second)] * len(source.classes)


@given(sources, st.floats(2, 100), st.floats(2, 100))
def test_the_labelled_images_of_a_smaller_fraction_are_among_those_of_a_larger_one(source, first, second):
    small, large = (split(source, data_config(labels=f"{s:f}%")).labelled for s in sorted((first, second)))
    assert set(small) <= set(large)


@given(sources, st.integers(1, 30), st.integers(0, 9))
def test_a_stratified_draw_keeps_the_proportions(source, count, seed):
    indices = draw_stratified(source.train, source.labels, count, Key(seed, "x"))
    assert len(indices) == min(count, len(source.train))
    exact = np.bincount(source.labels[source.train]) * len(indices) / len(source.train)
    got = np.bincount(source.labels[indices], minlength=len(source.classes))
    assert (np.abs(got - exact) < 1 + 1e-9).all()


def test_another_seed_picks_other_labels():
    source = digits(28, 1)
    first, second = (set(split(source, data_config(labels_per_class=10, split_seed=s)).labelled) for s in (0, 1))
    assert first != second


def test_below_fifty_labels_a_class_nothing_is_held_out_by_default():
    source = digits(28, 1)
    few = split(source, data_config(labels_per_class=49, validation="auto"))
    assert few.validation_kind == "none"
    assert not len(few.validation)
    many = split(source, data_config(labels_per_class=50, validation="auto"))
    assert many.validation_kind == "inside"
    assert (len(many.labelled), len(many.validation)) == (450, 50)


def test_validation_outside_the_budget_takes_nothing_from_it():
    source = digits(28, 1)
    parts = split(source, data_config(labels_per_class=10, validation="outside:100"))
    assert (len(parts.labelled), len(parts.validation), len(parts.pool)) == (100, 100, 1347 - 200)


def test_the_digits_test_set_is_450_stratified_images_whatever_the_seed():
    source = digits(28, 1)
    assert len(source.labels) == 1797
    for seed in (0, 1):
        parts = split(source, data_config(labels_per_class=2, split_seed=seed))
        assert (parts.test == source.test).all()
    counts = np.bincount(source.labels[source.test])
    assert counts.sum() == 450
    assert counts.min() >= 43
    assert source.images[0].shape == (28, 28, 1)
    assert source.images[0].dtype == np.uint8


def test_digits_are_the_real_ones():
    from sklearn.datasets import load_digits

    small = digits(8, 1).images[5][..., 0]
    assert np.abs(small.astype(float) * 16 / 255 - load_digits().images[5]).max() < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels_per_class": 200}, "data.labels_per_class=200: class '0' has"),
        ({"labels_per_class": 5, "validation": "outside:5000"}, "data.validation=outside:5000: only 1297 images"),
        ({"labels_per_class": 1, "validation": "inside"}, "data.validation=inside: 10 labels are too few"),
    ],
)
def test_a_budget_that_the_data_cannot_give_is_an_error(changes, message):
    with pytest.raises(UserError, match=message):
        split(digits(28, 1), data_config(**changes))


def write_idx(folder: Path, part: str, count: int) -> None:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    header = np.array([0x803, count, 28, 28], dtype=">i4").tobytes()
    (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
    header = np.array([0x801, count], dtype=">i4").tobytes()
    labels = (np.arange(count) % 10).astype(np.uint8)
    (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.tobytes()))


def test_fashion_mnist_is_read_from_a_folder(tmp_path):
    write_idx(tmp_path, "train", 60)
    write_idx(tmp_path, "t10k", 20)
    source = fashion_mnist(str(tmp_path), 28, 1)
    assert (len(source.train), len(source.test), len(source.classes)) == (60, 20, 10)
    assert (
        source.images[0][..., 0] == np.random.default_rng(60).integers(0, 256, (60, 28, 28), dtype=np.uint8)[0]
    ).all()
    assert source.labels[:11].tolist() == [*range(10), 0]


def test_fashion_mnist_that_is_nowhere_or_damaged_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"data.root=.*: no Fashion-MNIST there"):
        fashion_mnist(str(tmp_path), 28, 1)
    write_idx(tmp_path, "train", 60)
    write_idx(tmp_path, "t10k", 20)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte.gz: cannot be read"):
        fashion_mnist(str(tmp_path), 28, 1)


def test_an_image_folder_with_parts_is_read_as_they_say(tmp_path):
    for part, count in (("train", 5), ("val", 2), ("test", 3)):
        for label in ("cat", "dog"):
            write_images(tmp_path / part / label, count)
    write_images(tmp_path / "unlabelled", 4)
    source = image_files(
        list_folder(str(tmp_path)), data_config(image_size=16, channels=3, mean=[0.3] * 3, std=[0.3] * 3)
    )
    assert source.classes == ("cat", "dog")
    assert [len(p) for p in (source.train, source.val, source.test, source.unlabelled)] == [10, 4, 6, 4]
    assert (source.labels[source.unlabelled] == UNKNOWN).all()
    assert source.images[0].shape == (16, 16, 3)
    parts = split(source, data_config(labels_per_class=2, validation="auto"))
    assert parts.validation_kind == "own"
    assert (len(parts.labelled), len(parts.pool)) == (4, 6 + 4)


def test_an_image_folder_of_classes_alone_is_split(tmp_path):
    for label in ("a", "b"):
        write_images(tmp_path / label, 10, mode="L")
    source = image_files(
        list_folder(str(tmp_path)), data_config(image_size=16, channels=1, mean=[0.3] * 1, std=[0.3] * 1)
    )
    splits = split(source, data_config(validation="none"))
    assert (len(splits.labelled), len(splits.test)) == (16, 4)
    assert np.bincount(source.labels[splits.test]).tolist() == [2, 2]


def test_the_fingerprint_of_a_folder_depends_on_names_contents_and_labels_not_on_its_path(tmp_path):
    for top in ("here", "there"):
        write_images(tmp_path / top / "a", 3)
        write_images(tmp_path / top / "b", 3)
    here, there = (
        rgb_config(_target_="tutelage.data.ImageFolder", root=str(tmp_path / top)) for top in ("here", "there")
    )
    assert fingerprint(here) == fingerprint(there)
    (tmp_path / "there" / "a" / "0.png").rename(tmp_path / "there" / "b" / "9.png")
    assert fingerprint(there) != fingerprint(here)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda top: None, "found no class under CLASS/"),
        (lambda top: write_images(top / "train" / "a", 2), "found 1 class .a. under train/CLASS/"),
        (lambda top: [write_images(top / p, 2) for p in ("train/a", "train/b", "test/c")], "that train/ lacks: c"),
    ],
)
def test_an_unsuitable_folder_is_an_error(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(UserError, match=message):
        list_folder(str(tmp_path))


def test_a_folder_that_is_not_there_is_an_error():
    with pytest.raises(UserError, match=r"data.root=/proc/nowhere: no such folder"):
        list_folder("/proc/nowhere")


def test_a_class_without_images_or_with_too_few_is_named(tmp_path):
    for label in ("cat", "dog"):
        write_images(tmp_path / label, 1)
    with pytest.raises(UserError, match=r"class '(cat|dog)' has too few images to set some aside for a test set"):
        config = data_config(image_size=16, channels=3, mean=[0.3] * 3, std=[0.3] * 3)
        split(image_files(list_folder(str(tmp_path)), config), config)
    (tmp_path / "cat" / "0.png").unlink()
    with pytest.raises(UserError, match=r"cat: a class without images"):
        list_folder(str(tmp_path))
