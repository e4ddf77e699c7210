"""``tutelage explain RUN [PICTURES...]``: a page of pictures, whose numbers are those of independent computations."""

import base64
import io
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.nn import functional

from helpers.chromium import LAPTOP, NARROW, Chromium
from helpers.images import random_images, write_images
from helpers.networks import make_spec
from helpers.runs import only_run, run, write_finished_run
from tutelage.app.explain import explain
from tutelage.data import UNKNOWN
from tutelage.errors import UserError
from tutelage.explain.activations import choose_channels
from tutelage.explain.features import Features, Points, find_neighbours
from tutelage.explain.fields import Box, compute_boxes, measure_influence
from tutelage.explain.forgetting import show_forgetting
from tutelage.explain.grad_cam import compute_grad_cam, find_cam_layer
from tutelage.explain.heat import encode_filter, encode_heat, encode_map
from tutelage.explain.landscape import describe_gap
from tutelage.explain.layers import MapLayer, find_last_map, find_map_layers, spread
from tutelage.explain.soft_labels import TEMPERATURES, choose_classes, soften
from tutelage.explain.subject import load_subject
from tutelage.models import make_classifier
from tutelage.models.base import ImageClassifier
from tutelage.runs import RunFolder, read_record

SECTIONS = (
    "First filters",
    "Activation maps, layer by layer",
    "What each layer sees",
    "Where it looks",
    "Soft labels",
    "Nearest training pictures",
    "A map of the pictures",
    "The layers",
)


def silent(what, fraction):
    pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("run")
    assert run(outputs, "model=lenet5", "debug=tiny", "data.labels=50") == 0
    return only_run(outputs)


@pytest.fixture(scope="module")
def page(finished):
    assert explain([str(finished)]) == 0
    return finished / "report" / "explain" / "index.html"


def headings(page):
    return re.findall("<h2>(.*?)</h2>", page.read_text())


def pixels(source):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


class Stack(ImageClassifier):
    """Layers and a head, for receptive fields and Grad-CAM by hand."""

    def __init__(self, spec, layers, head):
        super().__init__(spec)
        self.backbone, self.head = layers, head


# ---- the page


def test_the_page_of_a_convolutional_network_has_every_section_that_applies(page):
    found = headings(page)
    assert found == ["The pictures", *SECTIONS]
    text = page.read_text()
    assert page.stat().st_size < 10e6
    assert text.count("<script") == 1  # what every page has
    assert {source.partition(":")[0] for source in re.findall(r'(?:src|href)="([^"]*)"', text)} == {"data"}
    assert "sees 6 x 6" in text  # a 5 x 5 convolution and 2 x 2 pooling: P + K - 1
    assert "measured 6 x 6" in text


def test_pictures_of_ones_own_get_a_page_beside_it_and_unreadable_ones_a_line(
    finished, page, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("tutelage.explain.landscape.project", lambda rows: dict.fromkeys(("PCA", "t-SNE"), rows[:, :2]))
    write_images(tmp_path / "mine", 2)
    (tmp_path / "mine" / "bad.png").write_bytes(b"no picture")
    before = page.read_bytes()
    assert explain([str(finished), str(tmp_path / "mine")]) == 0
    output = capsys.readouterr()
    assert re.search(r"note: .*bad\.png: cannot be read: ", output.err)
    own = next((finished / "report").glob("explain-mine-*/index.html"))
    assert str(own) in output.out
    assert headings(own)[1:] == list(SECTIONS)
    assert "bad.png" in own.read_text()
    assert page.read_bytes() == before


def test_the_surest_right_answer_and_the_surest_wrong_ones_are_shown(finished):
    subject = load_subject(str(finished), [], None, None, silent)
    right = [picture.label == predicted for picture, predicted in zip(subject.pictures, subject.predicted, strict=True)]
    assert right == [True, False, False, False]
    assert len({picture.label for picture in subject.pictures}) == 4
    confidence = subject.probabilities.max(axis=1)
    assert confidence[1] >= confidence[2] >= confidence[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "explain needs the folder of a finished run"),
        (["no-such-run"], "no-such-run: no run's folder"),
        (["RUN", "--stage", "nobody"], "no network of a stage 'nobody'; there are supervised"),
        (["RUN", "--task", "2"], "has one task; leave it out"),
        (["RUN", "no-such-picture.png"], "no-such-picture.png: no file has such a name"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_one_line(finished, arguments, message):
    with pytest.raises(UserError) as error:
        explain([argument.replace("RUN", str(finished)) for argument in arguments])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_head_forgot_is_counted_from_the_stage_that_learned_its_task(tmp_path):
    def stage(name, before, **accuracies):
        result = {f"test/{task.replace('_', '-')}": value for task, value in accuracies.items()}
        more = {"starts_from": before} if before else {}
        return {"name": name, "kind": "train", "control": False, "result": result, **more}

    stages = [
        stage("task-1", None, task_1=0.9),
        stage("warm-up-2", "task-1", task_1=0.9, task_2=0.5),
        stage("lwf-2", "warm-up-2", task_1=0.8, task_2=0.7),
    ]
    write_finished_run(tmp_path / "run", stages)
    subject = type("Subject", (), {"record": read_record(RunFolder(tmp_path / "run")), "stage": "lwf-2"})
    (section,) = show_forgetting(subject)
    cells = [[cell if isinstance(cell, str) else cell.value for cell in row] for row in section.table.rows]
    assert cells == [
        ["task-1", 0.9, "-", "-"],
        ["warm-up-2", 0.9, "+0.0", 0.5],
        ["lwf-2", 0.8, "-10.0", 0.7],
    ]
    assert show_forgetting(type("Subject", (), {"record": {"stages": stages[:1]}, "stage": "task-1"})) == []


# ---- receptive fields


def conv(kernel, channels=4, **options):
    return nn.Conv2d(options.pop("inputs", channels), channels, kernel, **options)


@pytest.mark.parametrize(
    ("config", "sides"),
    [
        ({"_target_": "tutelage.models.LeNet5"}, [5, 6, 14, 16]),
        ({"_target_": "tutelage.models.SmallVGG", "width": 0.25}, [3, 5, 6, 10, 14, 16, 24, 32, 36]),
    ],
    ids=["LeNet-5", "small VGG"],
)
def test_receptive_fields_are_as_computed_when_measured_by_gradients(config, sides):
    torch.manual_seed(0)
    made = make_classifier(config, make_spec(1, 32))
    layers, size = find_map_layers(made), made.spec.image_size
    boxes, influence = compute_boxes(made, layers), measure_influence(made, layers, 64)
    assert [boxes[layer.name].side for layer in layers] == sides
    for layer in layers:
        assert Box.around(influence[layer.name] > 0) == boxes[layer.name].clip(size)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([conv(3, inputs=1), nn.MaxPool2d(2)], 4),  # P + K - 1
        ([conv(5, inputs=1), nn.AvgPool2d(3)], 7),
        ([conv(3, inputs=1, stride=2), conv(3)], 7),
        ([conv(3, inputs=1, dilation=2), conv(1)], 5),
        ([conv(3, inputs=1), conv(3), conv(3)], 7),
    ],
)
def test_hand_made_convolutions_see_what_the_formula_says(monkeypatch, layers, expected):
    torch.manual_seed(0)
    network = Stack(make_spec(1, 24), nn.Sequential(*layers), nn.Identity())
    monkeypatch.setattr("tutelage.explain.fields.make_classifier", lambda config, spec: network)
    network.model_config = {}
    last = find_map_layers(network)[-1]
    box = compute_boxes(network, [last])[last.name]
    assert box.side == expected
    assert Box.around(measure_influence(network, [last], 64)[last.name] > 0) == box


def test_layers_are_spread_from_the_first_to_the_last():
    layers = [MapLayer(str(number), "Conv2d", "channels first", 1, 2) for number in range(10)]
    assert [layer.name for layer in spread(layers, 4)] == ["0", "3", "6", "9"]
    assert spread(layers[:3], 4) == layers[:3]


# ---- Grad-CAM


def test_grad_cam_is_the_one_computed_by_hand():
    torch.manual_seed(0)
    maps = conv(3, 3, inputs=1)
    network = Stack(make_spec(1, 6), nn.Sequential(maps, nn.ReLU(), nn.Flatten()), nn.Linear(48, 10)).eval()
    layer, images = find_cam_layer(network), random_images(2, 6, 1)
    images = torch.from_numpy(images).permute(0, 3, 1, 2)
    assert layer.name == "backbone.1"
    heat = compute_grad_cam(network, layer, images, torch.tensor([3, 7]))
    with torch.no_grad():
        activations = network.backbone[:2]((images.float() - network.mean) * network.scale)
        for row, column in enumerate((3, 7)):
            weights = network.head.weight[column].view(3, 4, 4).mean(dim=(1, 2))  # the gradient of a linear head
            cam = (weights[:, None, None] * activations[row]).sum(dim=0).relu()
            cam = functional.interpolate(cam[None, None], (6, 6), mode="bilinear")[0, 0]
            np.testing.assert_allclose(heat[row], cam / cam.max(), atol=1e-5)


def test_tokens_become_maps_and_maps_tokens():
    layer = MapLayer("blocks.0", "Block", "tokens", 5, 3, prefix=2)
    tokens = torch.arange(2 * 11 * 5).float().view(2, 11, 5)
    maps = layer.to_maps(tokens)
    assert maps.shape == (2, 5, 3, 3)
    assert torch.equal(maps[1, :, 1, 2], tokens[1, 2 + 1 * 3 + 2])
    assert torch.equal(layer.from_maps(maps, tokens), tokens)


# ---- soft labels, neighbours, the gap


def test_soft_labels_are_softmaxes_at_each_temperature():
    logits = torch.tensor([2.0, -1.0, 4.0, 0.5])
    columns = soften(logits)
    assert list(columns) == ["hard", *(f"T = {temperature}" for temperature in TEMPERATURES)]
    assert columns["hard"].tolist() == [0, 0, 1, 0]
    for temperature in TEMPERATURES:
        np.testing.assert_allclose(columns[f"T = {temperature}"], softmax(logits.numpy() / temperature), rtol=1e-5)


def test_a_few_classes_keep_their_order_and_of_many_the_likeliest_are_shown():
    assert choose_classes(np.array([0.1, 0.7, 0.2])).tolist() == [0, 1, 2]
    many = np.random.default_rng(0).permutation(40) / 780
    assert choose_classes(many).tolist() == sorted(range(40), key=lambda each: -many[each])[:10]


def unit_rows(count, seed):
    rows = np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_neighbours_are_scikit_learns():
    queries, bank = unit_rows(4, 0), unit_rows(30, 1)
    rows, distances = find_neighbours(queries, bank, 5)
    dissimilarities, expected = NearestNeighbors(n_neighbors=5, metric="cosine").fit(bank).kneighbors(queries)
    assert rows.tolist() == expected.tolist()
    np.testing.assert_allclose(1 - distances**2 / 2, 1 - dissimilarities, atol=1e-6)


def points(count, seed):
    return Points(np.arange(count), unit_rows(count, seed) if count else np.empty((0, 0)), np.full(count, UNKNOWN))


def test_the_gap_is_the_mean_nearest_distance_with_and_without_augmented_views():
    train, pool, test, views = points(20, 0), points(40, 1), points(30, 2), points(40, 3)
    sentence = describe_gap(Features(test.features, train, 20, train, pool, test, views))
    both = np.concatenate([train.features, views.features])
    before = pairwise_distances(test.features, train.features).min(axis=1).mean()
    after = pairwise_distances(test.features, both).min(axis=1).mean()
    with_pool = pairwise_distances(test.features, np.concatenate([train.features, pool.features])).min(axis=1).mean()
    assert f"{before:#.3g} from the nearest of 20 training pictures" in sentence
    assert f"{after:#.3g} ({after / before - 1:+.0%})" in sentence
    assert "narrows the gap" in sentence
    assert sentence.endswith(f"would make it {with_pool:#.3g}.")
    same = describe_gap(Features(test.features, train, 20, train, points(0, 1), test, train))
    assert "hardly narrows the gap" in same
    assert "pool" not in same


# ---- pixels


def test_filters_and_maps_become_pixels_that_say_their_size():
    assert pixels(encode_filter(np.array([[[-1.0], [0.0], [1.0]]]))).tolist() == [[0, 128, 255]]
    assert pixels(encode_map(np.array([[0.0, 5.0], [-1.0, 10.0]]), 10.0)).tolist() == [[0, 128], [0, 255]]
    assert pixels(encode_map(np.ones((200, 200)), 1.0)).shape == (64, 64)
    assert encode_heat(np.zeros((8, 8, 1), np.uint8), np.zeros((4, 4)), Box(2, 5, 2, 5)).startswith("data:image/")


def test_the_strongest_channels_stand_first():
    rectified = np.zeros((12, 2, 2))
    rectified[[3, 8], 0, 0] = 5, 9
    assert choose_channels(rectified)[:2].tolist() == [8, 3]
    signed = np.full((3, 2, 2), [[[100.0]], [[-1.0]], [[0.0]]])  # the first is large, and the same everywhere
    signed[1, 0, 0] = 3
    assert choose_channels(signed)[0] == 1


# ---- transformers and the browser


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "last"),
    [
        ("vit_tiny_patch16_224", 64, "blocks.11.norm1"),
        ("convnext_atto", 64, "stages.3"),
        ("swin_tiny_patch4_window7_224", 224, "layers.3"),
        ("resnet18", 64, "layer4.1"),
    ],
)
def test_the_last_map_of_an_architecture_of_timm_is_found(name, size, last):
    network = make_classifier({"_target_": "tutelage.models.Timm", "name": name}, make_spec(3, size)).eval()
    layer = find_last_map(network)
    assert layer.title.startswith(last)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    assert compute_grad_cam(network, layer, images, torch.tensor([0, 1])).shape == (2, size, size)


@pytest.mark.slow
def test_a_transformer_sees_the_whole_image_from_its_first_block_on():
    network = make_classifier({"_target_": "tutelage.models.Timm", "name": "vit_tiny_patch16_224"}, make_spec(1, 64))
    layers = spread(find_map_layers(network.eval()), 4)
    boxes, influence = compute_boxes(network, layers), measure_influence(network, layers, 2)
    assert [boxes[layer.name].side for layer in layers] == [16, 64, 64, 64]
    assert all(Box.around(influence[layer.name] > 0) == boxes[layer.name] for layer in layers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "shown", "absent"),
    [
        (
            ("model=timm", "model.name=vit_tiny_patch16_224", "data.image_size=64"),
            {"First filters", "Token maps, block by block", "What each layer sees", "Where it looks"},
            {"Activation maps, layer by layer"},
        ),
        (
            ("model=nearest_neighbours",),
            {"Soft labels", "Nearest training pictures", "A map of the pictures"},
            {"First filters", "Where it looks"},
        ),
    ],
    ids=["transformer", "nearest neighbours"],
)
def test_a_browser_shows_the_page_without_a_complaint(tmp_path, model, shown, absent):
    assert run(tmp_path, *model, "debug=tiny", "schedule.steps=1") == 0
    folder = only_run(tmp_path)
    assert explain([str(folder)]) == 0
    page = folder / "report" / "explain" / "index.html"
    assert shown <= set(headings(page))
    assert not absent & set(headings(page))
    with Chromium() as chromium:
        for width, scheme in ((NARROW, "dark"), (LAPTOP, "light")):
            view = chromium.show(page, width, scheme)
            assert (view.complaints, view.content_width) == ((), width)


@pytest.mark.slow
def test_a_noisy_student_stands_beside_its_teacher_and_without_data_pictures_must_be_named(tmp_path):
    write_images(tmp_path / "data" / "cat", 30)
    write_images(tmp_path / "data" / "dog", 30, size=(14, 20))
    overrides = ("data=image_folder", f"data.root={tmp_path / 'data'}", "data.image_size=28", "data.labels=8")
    assert run(tmp_path / "out", "strategy=noisy_student", "model=lenet5", "debug=tiny", *overrides) == 0
    folder = only_run(tmp_path / "out")
    assert explain([str(folder)]) == 0
    assert "Teacher and student" in headings(folder / "report" / "explain" / "index.html")
    picture = shutil.copy(next((tmp_path / "data" / "cat").iterdir()), tmp_path / "cat.png")
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(UserError, match=r"name pictures: tutelage explain"):
        explain([str(folder)])
    assert explain([str(folder), str(picture)]) == 0
