"""k nearest neighbours against scikit-learn, and its run: one pass, a bank beside the checkpoint."""

import json
import os
import signal
from resource import RUSAGE_SELF, getrusage

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from helpers.forks import call_in_fork
from helpers.runs import only_run, outcome, run
from tutelage.data import EvalBatch
from tutelage.errors import UserError
from tutelage.models import ImageSpec, NearestNeighbours, load_classifier, make_classifier, save_classifier
from tutelage.models import nearest_neighbours as module
from tutelage.models.nearest_neighbours import find_nearest


def make_spec(size: int = 8, classes: int = 4) -> ImageSpec:
    return ImageSpec(1, size, tuple(map(str, range(classes))), (0.3,), (0.2,))


def make_batches(images: np.ndarray, labels: np.ndarray, size: int = 32):
    for start in range(0, len(images), size):
        rows = slice(start, start + size)
        yield EvalBatch(torch.from_numpy(images[rows]), torch.from_numpy(labels[rows]), torch.arange(len(labels[rows])))


def draw_data(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8), rng.integers(0, 4, count)


@pytest.mark.parametrize("block", [1 << 10, 1 << 14, 1 << 25])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_neighbours_are_scikit_learns_for_every_size_of_block(monkeypatch, kind, block):
    monkeypatch.setattr(module, "BLOCK_BYTES", block)
    rng = np.random.default_rng(1)
    bank = rng.integers(0, 256, (500, 64)).astype(kind)
    queries = rng.integers(0, 256, (70, 64)).astype(kind)
    neighbours = find_nearest(torch.from_numpy(queries), bank, 7)
    distances, expected = (
        NearestNeighbors(n_neighbors=7, algorithm="brute").fit(bank.astype(float)).kneighbors(queries.astype(float))
    )
    assert len(np.unique(distances)) > 480  # hardly a tie
    assert (neighbours.numpy() == expected).mean() > 0.99
    own_distances = np.linalg.norm(bank[neighbours.numpy()].astype(float) - queries[:, None].astype(float), axis=2)
    np.testing.assert_allclose(own_distances, distances, rtol=1e-12)


@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 12), st.floats(0, 1e6))
@settings(max_examples=60)
def test_the_nearest_neighbours_are_exact_however_far_from_zero(seed, count, k, offset):
    """Far from zero, float32 distances cannot separate neighbours; the result stays exact."""
    rng = np.random.default_rng(seed)
    bank = (offset + rng.normal(size=(count, 5))).astype(np.float32)
    queries = (offset + rng.normal(size=(3, 5))).astype(np.float32)
    neighbours = find_nearest(torch.from_numpy(queries), bank, k).numpy()
    all_distances = ((bank[None].astype(float) - queries[:, None].astype(float)) ** 2).sum(axis=2)
    assert neighbours.shape == (3, min(k, count))
    smallest = np.sort(all_distances, axis=1)[:, : min(k, count)]
    np.testing.assert_array_equal(np.take_along_axis(all_distances, neighbours, axis=1), smallest)


def test_votes_are_scikit_learns(tmp_path):
    images, labels = draw_data(300)
    queries, _ = draw_data(64, seed=1)
    network = NearestNeighbours(make_spec(), k=5)
    network.memorise(make_batches(images, labels), len(images), tmp_path)
    reference = KNeighborsClassifier(5).fit(images.reshape(300, -1).astype(float), labels)
    expected = reference.predict_proba(queries.reshape(64, -1).astype(float))
    probabilities = network(torch.from_numpy(queries)).softmax(dim=1).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert (probabilities.argmax(axis=1) == reference.predict(queries.reshape(64, -1).astype(float))).all()


def test_a_backbones_features_are_compared_where_one_is_given(tmp_path):
    images, labels = draw_data(100)
    torch.manual_seed(0)
    network = NearestNeighbours(make_spec(), k=1, backbone={"_target_": "tutelage.models.MLP", "width": 16, "depth": 1})
    network.memorise(make_batches(images, labels), len(images), tmp_path)
    with torch.inference_mode():
        features = network.features(torch.from_numpy(images)).numpy()
    assert features.shape == (100, 16)
    np.testing.assert_array_equal(np.load(tmp_path / "bank.npy", mmap_mode="r"), features)
    assert (network(torch.from_numpy(images)).argmax(dim=1).numpy() == labels).mean() > 0.9


def test_the_bank_is_mapped_not_read_and_checked(tmp_path):
    images, labels = draw_data(50)
    model = {"_target_": "tutelage.models.NearestNeighbours", "k": 3}
    network = make_classifier(model, make_spec())
    network.memorise(make_batches(images, labels), 50, tmp_path)
    save_classifier(network, model, tmp_path / "final.ckpt")
    again = load_classifier(tmp_path / "final.ckpt")
    assert isinstance(again.head._bank, np.memmap)
    queries = torch.from_numpy(draw_data(9, seed=2)[0])
    assert torch.equal(again(queries), network(queries))
    content = bytearray((tmp_path / "bank.npy").read_bytes())
    content[200] ^= 1
    (tmp_path / "bank.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"bank.npy: missing or damaged .*; the run's command makes it again"):
        load_classifier(tmp_path / "final.ckpt")


def test_a_run_that_was_killed_in_its_pass_or_lost_its_bank_makes_it_again(outputs):
    def killed_at_the_second_batch():
        from tutelage.runs.context import RunContext

        on_images = RunContext.on_images

        def trap(*arguments):
            callback, calls = on_images(*arguments), []

            def count(images):
                calls.append(images)
                callback(images)
                if len(calls) == 2:
                    os.kill(os.getpid(), signal.SIGKILL)

            return count

        RunContext.on_images = trap

    overrides = ["model=nearest_neighbours", "data.validation=inside", "data.labels_per_class=100"]
    assert run(outputs / "a", *overrides) == 0
    assert run(outputs / "b", *overrides, before=killed_at_the_second_batch) == -signal.SIGKILL
    assert not list(outputs.glob("b/*/*/checkpoints/bank.npy"))
    assert run(outputs / "b", *overrides) == 0
    assert outcome(outputs / "a") == outcome(outputs / "b")
    folder = only_run(outputs / "b")
    assert not list(folder.rglob(".partial-*"))
    entry = json.loads((folder / "run.json").read_text())["stages"][0]
    assert entry["bytes"] > 900 * 28 * 28
    assert entry["result"]["val/accuracy"] > 0.9
    assert entry["steps"] == 0


def test_nearest_neighbours_cannot_be_a_student_or_teacher():
    from tutelage.config.compose import compose

    with pytest.raises(UserError, match="does not go with strategy=noisy_student"):
        compose(["model=nearest_neighbours", "strategy=noisy_student", "data.labels_per_class=2"])


def test_a_backbone_loads_weights_and_a_note_says_if_they_are_random(outputs, tmp_path, capfd):
    from tutelage.config.compose import compose

    model = compose(["model=lenet5"]).model.arguments()
    spec = ImageSpec(1, 28, tuple(map(str, range(10))), (0.305,), (0.345,))
    torch.manual_seed(3)
    save_classifier(make_classifier(model, spec), model, tmp_path / "final.ckpt")
    overrides = ["model=nearest_neighbours", "+model@model.backbone=lenet5", "debug=tiny"]
    assert run(outputs / "a", *overrides, f"init_from={tmp_path / 'final.ckpt'}") == 0
    trained = load_classifier(next((only_run(outputs / "a") / "checkpoints").glob("[bf]*.ckpt")))
    source = load_classifier(tmp_path / "final.ckpt")
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(trained.features(images), source.features(images))
    assert "weights are random" not in capfd.readouterr().err
    assert run(outputs / "b", *overrides) == 0
    assert "the backbone's weights are random; init_from=FILE" in capfd.readouterr().err


def test_a_bank_of_another_network_is_refused(tmp_path):
    model = {"_target_": "tutelage.models.NearestNeighbours", "k": 3}
    for name, seed in (("one", 0), ("two", 1)):
        network = make_classifier(model, make_spec())
        images, labels = draw_data(50, seed)
        network.memorise(make_batches(images, labels), 50, tmp_path / name)
        save_classifier(network, model, tmp_path / name / "final.ckpt")
    for file in module.BANK_FILES:
        content = (tmp_path / "one" / file).read_bytes()
        (tmp_path / "one" / file).write_bytes((tmp_path / "two" / file).read_bytes())
        with pytest.raises(UserError, match=f"{file}: missing or damaged"):
            load_classifier(tmp_path / "one" / "final.ckpt")
        (tmp_path / "one" / file).write_bytes(content)


def measure_peak_growth(side: int, k: int) -> int:
    """Return by how many bytes the peak of this process's memory grows in looking up 256 images."""
    rng = np.random.default_rng(0)
    bank = rng.integers(0, 256, (700, 3 * side * side), dtype=np.uint8)
    queries = torch.from_numpy(bank[:256].copy())
    peak_before = getrusage(RUSAGE_SELF).ru_maxrss
    neighbours = find_nearest(queries, bank, k)
    assert (neighbours[:, 0] == torch.arange(256)).all()
    return (getrusage(RUSAGE_SELF).ru_maxrss - peak_before) * 1024


@pytest.mark.slow
@pytest.mark.parametrize(("side", "k"), [(160, 5), (28, 600)])
def test_memory_stays_bounded_for_large_images_and_many_neighbours(side, k):
    assert call_in_fork(lambda: measure_peak_growth(side, k) > 400e6) == 0
