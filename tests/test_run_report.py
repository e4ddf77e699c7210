"""The parts of a run's report: nearest training images, comparison with a control, what the network saw, classes."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from helpers.images import random_images
from tutelage.config.compose import compose
from tutelage.data import Predictions, Source
from tutelage.data.source import as_images, empty_indices
from tutelage.models import ImageSpec, make_classifier
from tutelage.report import neighbours
from tutelage.report.answer_parts import CONFUSIONS, make_answers, make_matrix
from tutelage.report.comparison import compare_predictions, paired_difference
from tutelage.report.mistakes import make_mistakes
from tutelage.report.neighbours import find_neighbours
from tutelage.report.seen import UNCHANGED, VIEWED, VIEWS, make_seen
from tutelage.report.weight_images import encode_weights, make_weight_tiles

COUNT, SIZE = 60, 12


def make_data(images=None):
    """Return a DataModule's parts: labelled images, and the last ten as the test set."""
    images = random_images(COUNT, SIZE, 1) if images is None else images
    parts = {part: empty_indices() for part in ("val", "unlabelled")}
    names = [f"{number}.png" for number in range(COUNT)]
    labels, test = np.arange(COUNT) % 3, np.arange(COUNT - 10, COUNT)
    source = Source(images, labels, ("cat", "dog", "<b>"), train=np.arange(COUNT - 10), test=test, names=names, **parts)
    splits = SimpleNamespace(labelled=np.arange(COUNT - 10), test=test)
    return SimpleNamespace(source=source, images=as_images(images), splits=splits)


def make_network(target="tutelage.models.Perceptron"):
    spec = ImageSpec(channels=1, image_size=SIZE, mean=(0.5,), std=(0.5,), classes=("cat", "dog", "<b>"))
    torch.manual_seed(0)
    return make_classifier({"_target_": target}, spec)


def decode(source):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def test_neighbours_are_those_of_the_largest_cosine():
    data, network = make_data(), make_network("tutelage.models.LeNet5")
    found = find_neighbours(network, data, [50, 51], torch.device("cpu"))
    assert (found.compared, found.labelled) == (50, 50)
    with torch.inference_mode():
        images = torch.from_numpy(np.stack([data.images[n] for n in range(COUNT)]).transpose(0, 3, 1, 2).copy())
        features = normalize(network.eval().features(images).double().flatten(1)).numpy()
    for row, query in zip(found.indices, (50, 51), strict=True):
        cosines = features[:50] @ features[query]
        assert row.tolist() == np.argsort(-cosines)[:3].tolist()
    assert "among" not in found.describe()


def test_of_many_labelled_images_a_sample_is_compared_and_that_is_said(monkeypatch):
    monkeypatch.setattr(neighbours, "MAX_COMPARED", 20)
    found = find_neighbours(make_network(), make_data(), [55], torch.device("cpu"))
    assert found.compared == 20
    assert "among 20 of 50 labelled ones" in found.describe()


def test_no_features_are_computed_where_the_time_is_over():
    assert find_neighbours(make_network(), make_data(), [55], torch.device("cpu"), max_seconds=0.0) is None


def test_a_mistake_has_its_file_its_classes_and_its_neighbours():
    data = make_data()
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.3, 0.7, 0.0]], np.float32)
    predictions = Predictions(probabilities, np.array([1, 1, 0]), np.array([50, 51, 52]))
    found = neighbours.Neighbours(np.array([[1, 2, 3], [4, 5, 6]]), 50, 50)
    first, second = make_mistakes(predictions, data.source.classes, data.source, found)
    assert first.lines == ["cat, 90%", "shows dog", "50.png"]
    assert first.keys == {"confidence": pytest.approx(0.9), "shows": "dog", "taken for": "cat", "file": "50.png"}
    assert [other.lines for other in first.others] == [["dog"], ["<b>"], ["cat"]]
    assert (decode(second.others[0].source) == data.images[4][..., 0]).all()
    assert second.lines[0] == "dog, 70%"


def test_a_paired_difference_has_the_coverage_that_it_claims():
    rng, truth, images, covered = np.random.default_rng(0), 0.04, 300, 0
    for _ in range(400):  # of each image the first network alone is right, or the second, or both, or none
        first_only, second_only, _ = rng.multinomial(images, [0.10, 0.06, 0.84])
        value, low, high = paired_difference(int(first_only), int(second_only), images)
        assert low <= value <= high
        covered += low <= truth <= high
    assert 0.92 < covered / 400 < 0.98


def test_networks_are_compared_on_the_same_images_only():
    labels, indices = np.array([0, 1, 1, 0]), np.arange(4)
    right = Predictions(np.eye(2, dtype=np.float32)[labels], labels, indices)
    half = Predictions(np.eye(2, dtype=np.float32)[[0, 1, 0, 1]], labels, indices)
    assert compare_predictions(right, half).value == 0.5
    assert compare_predictions(half, right).value == -0.5
    assert compare_predictions(right, Predictions(half.probabilities, labels, indices + 1)) is None


def test_without_augmentation_each_image_is_shown_once():
    config = compose(["data=digits", "augmentation=none"])
    seen = make_seen(config, make_data(), "supervised")
    assert [len(row) for row in seen.rows] == [UNCHANGED]
    assert "no augmentation" in seen.note


class WholePicture:
    """A picture twice as wide as high, of which the network sees the middle."""

    shape = (SIZE, 2 * SIZE, 1)

    def read(self, reduce=1):
        return np.full(self.shape, 200, np.uint8)


def test_the_original_is_the_whole_picture_and_views_are_cut_from_it():
    config = compose(["data=digits", f"data.image_size={SIZE}", "augmentation=crop"])
    data = make_data()
    data.images = SimpleNamespace(picture=lambda index: WholePicture())
    seen = make_seen(config, data, "supervised")
    assert [len(row) for row in seen.rows] == [1 + VIEWS] * VIEWED
    original, *views = (decode(tile.source) for tile in seen.rows[0])
    assert original.shape == (SIZE, 2 * SIZE)
    assert all(view.shape == (SIZE, SIZE) and (view == 200).all() for view in views)


def test_weights_are_red_where_they_raise_a_score_and_are_not_there_where_they_do_nothing():
    red, nothing, blue = decode(encode_weights(np.array([[1.0, 0.0, -1.0]]), 1.0))[0].astype(int)
    assert red[0] > red[2] and blue[2] > blue[0]
    assert [red[3], nothing[3], blue[3]] == [255, 0, 255]


def test_the_templates_of_a_perceptron_have_one_range_and_other_networks_have_none():
    network = make_network()
    with torch.no_grad():
        network.head.weight.copy_(torch.tensor([[1.0], [0.5], [0.25]]).expand_as(network.head.weight))
    tiles = make_weight_tiles(network)
    assert [tile.lines[0] for tile in tiles] == ["cat", "dog", "<b>"]
    assert [decode(tile.source)[0, 0, 3] for tile in tiles] == [255, 128, 64]
    assert [tile.lines[0] for tile in make_weight_tiles(network, columns=[2])] == ["<b>"]
    assert make_weight_tiles(make_network("tutelage.models.LeNet5")) == []


def test_a_matrix_of_hundreds_of_classes_is_an_image_with_a_table_of_what_is_confused_most():
    classes, rng = [f"kind {number}" for number in range(300)], np.random.default_rng(0)
    labels = rng.integers(0, 300, 2000)
    predictions = Predictions(rng.dirichlet(np.ones(300), 2000).astype(np.float32), labels, np.arange(2000))
    answers = make_answers(predictions, classes)
    assert decode(answers.matrix.image).shape == (300, 300, 4)
    assert len(answers.confusions.rows) == CONFUSIONS
    assert answers.classes.is_searchable


def test_a_small_matrix_says_each_cell_in_words():
    matrix = make_matrix(np.array([[3, 1], [0, 2]]), ["cat", "dog"])
    assert [[cell.text for cell in row] for row in matrix.rows] == [["3", "1"], ["", "2"]]
    assert matrix.rows[0][1].title == "cat taken for dog: 1, 25.0%"
    assert matrix.alt == "Confusion matrix of 2 classes: 5 of 6 images are right."
