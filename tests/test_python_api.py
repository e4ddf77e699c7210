"""The Python of ``import tutelage``: runs as child processes, tables of runs, classifiers, plain networks."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import tutelage
from helpers.commands import command
from helpers.configs import data_config
from helpers.forks import return_from_fork
from helpers.images import random_images, smooth_image
from helpers.networks import make_spec
from helpers.overrides import QUIET
from helpers.paths import ROOT
from helpers.runs import make_entry, only_run, run, write_finished_run
from tutelage import api
from tutelage.app.job import RUNS_FILE
from tutelage.errors import UserError
from tutelage.inference.classifier import Classifier
from tutelage.inference.loading import LoadedNetwork
from tutelage.models import ImageClassifier, make_classifier

PERCEPTRON = {"_target_": "tutelage.models.Perceptron"}
TINY = ("schedule.epochs=null", "schedule.steps=3", "callbacks.report=false", "data.batch_size=8")
SMALL_PICTURES = ("recipe=none", "data.image_size=16", "data.fit=pad", "model=lenet5", "augmentation=none")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of pictures of several sizes, modes and orientations."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(24):
        part, label = ("train", "test")[number % 2], ("cat", "dog")[number // 2 % 2]
        image = Image.fromarray(smooth_image((20 + number, 34, 3), number))
        path = folder / part / label / f"{number}.{('jpg', 'png')[number // 4 % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 3 == 1:
            image.putalpha(100)
        exif = Image.Exif()
        if number % 5 == 2:
            exif[0x0112] = 6  # turned
        image.convert("RGB" if path.suffix == ".jpg" else image.mode).save(path, exif=exif)
    return folder


@pytest.fixture(scope="module")
def photo_run(photos, tmp_path_factory) -> Path:
    outputs = tmp_path_factory.mktemp("outputs")
    assert run(outputs, *TINY, *SMALL_PICTURES, "data=image_folder", f"data.root={photos}") == 0
    return only_run(outputs)


@pytest.fixture(scope="module")
def classifier(photo_run):
    return tutelage.load(photo_run)


@pytest.fixture(scope="module")
def stored(photo_run, photos) -> tuple[list[Path], np.ndarray, list[str]]:
    """The files of the run's test pictures, and the probabilities and classes that the run wrote down."""
    table = pq.read_table(photo_run / "test.parquet")
    probabilities = np.array(table["probabilities"].to_pylist(), dtype=np.float32)
    return [photos / name for name in table["path"].to_pylist()], probabilities, table["predicted"].to_pylist()


def test_files_have_the_probabilities_that_the_run_measured(classifier, stored):
    files, probabilities, predicted = stored
    assert {Image.open(file).mode for file in files} == {"RGB", "RGBA"}
    assert classifier.classes == ("cat", "dog")
    assert classifier.predict(files) == predicted
    np.testing.assert_allclose(classifier.probabilities(map(str, files)), probabilities, rtol=1e-5)
    classifier.batch_size = 5
    np.testing.assert_allclose(classifier.probabilities(files), probabilities, rtol=1e-5)


def test_pillows_images_arrays_and_tensors_are_read_as_files_are(classifier, stored):
    files, probabilities, _ = stored
    np.testing.assert_allclose(classifier.probabilities([Image.open(file) for file in files]), probabilities, rtol=1e-5)
    upright = [file for file in files if not Image.open(file).getexif()]
    arrays = [np.asarray(Image.open(file)) for file in upright]
    expected = classifier.probabilities(upright)
    np.testing.assert_allclose(classifier.probabilities(arrays), expected, rtol=1e-5)
    opaque = [array.shape[2] == 3 for array in arrays]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays if array.shape[2] == 3]
    assert not all(opaque)
    np.testing.assert_allclose(classifier.probabilities(tensors), expected[opaque], rtol=1e-5)


def test_batches_single_images_and_grey_ones_have_a_row_for_each(classifier):
    images = random_images(3, 20, 3)
    expected = classifier.probabilities(images)
    assert expected.shape == (3, 2) and expected.dtype == np.float32
    np.testing.assert_array_equal(classifier.probabilities(torch.from_numpy(images).permute(0, 3, 1, 2)), expected)
    np.testing.assert_allclose(classifier.probabilities(images[1]), expected[1:2], rtol=1e-5)
    grey = images[0, :, :, 0]
    np.testing.assert_array_equal(classifier.probabilities(grey), classifier.probabilities(Image.fromarray(grey)))
    assert len(classifier.predict(random_images(2, 20, 1))) == 2
    assert classifier.probabilities([]).shape == (0, 2)
    assert classifier.embed(images).shape == (3, classifier.network.head.in_features)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (np.zeros((4, 4, 3)), r"uint8, from 0 to 255, not float64: .* by \(images \* 255\).round\(\).astype"),
        (torch.zeros(1, 3, 4, 4), r"not torch.float32: .*to\(torch.uint8\)"),
        (np.zeros((4, 4, 5), np.uint8), r"an array \(4, 4, 5\) is no image: it is \(H, W\), \(H, W, C\)"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"a tensor \(4, 4, 3\) is no image: it is \(C, H, W\)"),
        ("nowhere.png", "nowhere.png: cannot be opened"),
        (ROOT / "docs", r"docs: a folder, no picture; give its files"),
        (ROOT / "LICENSE", "LICENSE: cannot be read as an image"),
        (Image.new("F", (4, 4)), "an image of mode F: 32 bits have no fixed range"),
        ([7], "int: no picture; give files"),
    ],
)
def test_what_is_no_picture_is_an_error_of_one_line(classifier, pictures, message):
    with pytest.raises(UserError, match=message) as refused:
        classifier.predict(pictures)
    assert "\n" not in str(refused.value)


def test_lightnings_loader_says_what_to_use(photo_run):
    with pytest.raises(UserError, match=r"final.ckpt: load_from_checkpoint does not .* tutelage.load\(RUN or FILE\)"):
        ImageClassifier.load_from_checkpoint(photo_run / "checkpoints" / "final.ckpt")


def random_batch(classifier, count: int = 3) -> torch.Tensor:
    spec = classifier.network.spec
    return torch.from_numpy(random_images(count, spec.image_size, spec.channels)).permute(0, 3, 1, 2).contiguous()


def test_the_network_alone_gives_the_classifiers_probabilities_and_is_traced(classifier):
    images = random_batch(classifier)
    expected = classifier.compute_probabilities(images)
    with torch.inference_mode():
        torch.testing.assert_close(classifier.network(images).softmax(1), expected)
        traced = torch.jit.trace(classifier.network, images)
        torch.testing.assert_close(traced(images[:2]).softmax(1), expected[:2])
    with pytest.raises(TypeError, match=r"images are uint8, from 0 to 255, not torch.float32"):
        classifier.network(images / 255)


@pytest.mark.slow
def test_the_network_alone_is_exported_and_compiled(classifier):
    images = random_batch(classifier)
    expected = classifier.network(images)

    def export_and_compile() -> None:
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(classifier.network, (images,), dynamic_shapes=({0: batch},))
        torch.testing.assert_close(program.module()(images[:2]), expected[:2])
        for backend in ("eager", "aot_eager"):
            compiled = torch.compile(classifier.network, backend=backend, fullgraph=True)
            torch.testing.assert_close(compiled(images), expected)

    return_from_fork(export_and_compile)


def test_several_networks_with_their_classes_in_other_orders_give_the_mean_by_name():
    torch.manual_seed(0)
    first = make_classifier(PERCEPTRON, replace(make_spec(1, 4, 3), classes=("a", "b", "c"))).eval()
    second = make_classifier(PERCEPTRON, replace(first.spec, classes=("c", "a", "b"))).eval()
    config = data_config(image_size=4, channels=1)
    members = [LoadedNetwork(name, each, None, config, None) for name, each in (("one", first), ("two", second))]
    images = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
    with torch.no_grad():
        expected = (first(images).softmax(dim=1) + second(images).softmax(dim=1)[:, [1, 2, 0]]) / 2
    torch.testing.assert_close(Classifier(members, torch.device("cpu")).compute_probabilities(images), expected)
    twice = make_classifier(PERCEPTRON, replace(first.spec, classes=("a", "b", "a"))).eval()
    with pytest.raises(UserError, match="three: two of its classes are called 'a'"):
        Classifier([LoadedNetwork("three", twice, None, config, None)], torch.device("cpu"))


def test_a_device_that_is_not_there_is_one_line(photo_run):
    for name in ("tpu9", "mps" if not torch.backends.mps.is_available() else "xpu"):
        with pytest.raises(UserError, match=f"^device={name}: .*; name cpu, or a GPU"):
            tutelage.load(photo_run, device=name)


def typed(photos: Path, photo_run: Path) -> list[str]:
    outputs = photo_run.parents[1]
    return [*QUIET, f"paths.outputs={outputs}", *TINY, *SMALL_PICTURES, "data=image_folder", f"data.root={photos}"]


def test_run_passes_the_commands_output_on_and_returns_the_run(photos, photo_run, capsys, monkeypatch):
    monkeypatch.chdir(photos)  # no module of ours is looked for there
    monkeypatch.setenv("FORCE_COLOR", "1")  # as the kernel of a notebook does
    finished = tutelage.run(typed(photos, photo_run))
    assert finished == tutelage.Run.read(photo_run)
    assert finished.status == "finished" and finished.result["test/accuracy"] == finished.test_accuracy
    assert finished.config.data.image_size == 16
    printed = capsys.readouterr()
    assert f"finished run: {photo_run}" in printed.out and "LeNet5" in printed.out
    assert "\x1b" not in printed.out
    assert not printed.err


def test_run_raises_what_the_command_refuses():
    with pytest.raises(UserError, match=r"^model=nonsense: "):
        tutelage.run(["model=nonsense"])
    with pytest.raises(UserError, match="give a list of overrides"):
        tutelage.run("data=digits")


@pytest.fixture
def fake_command(tmp_path, monkeypatch):
    """Return a function that puts a shell script in the place of the child process."""

    def replace(script: str) -> None:
        file = tmp_path / "python"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(file))

    return replace


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo first; echo 'ValueError: bad' >&2; exit 1", "^tutelage train ended with code 1: ValueError: bad$"),
        ("echo busy; kill -9 $$", "^tutelage train was killed by SIGKILL; the same call goes on from its last"),
        ("echo help", "^no run was started: help$"),
        (
            f"""echo '{{"runs": [["a", ""], [null, "b=1: no"]], "is_sweep": true}}' >"${RUNS_FILE}"; exit 1""",
            "^1 of 2 runs failed; the first: b=1: no$",
        ),
    ],
)
def test_a_failure_of_the_child_says_what(fake_command, script, message):
    fake_command(script)
    with pytest.raises(RuntimeError, match=message):
        tutelage.run([])


def test_the_error_of_the_command_is_its_own_line_whatever_is_printed_after_it(fake_command):
    fake_command("echo 'tutelage: x=1: no such key'; echo 'UserWarning: leaked'; exit 2")
    with pytest.raises(UserError, match="^x=1: no such key$"):
        tutelage.run([])


def test_a_process_that_the_command_leaves_behind_is_not_waited_for(fake_command, monkeypatch):
    monkeypatch.setattr("tutelage.api.SECONDS_OF_OUTPUT", 0.1)
    fake_command("sleep 30 & echo done; exit 1")
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="ended with code 1: done"):
        tutelage.run([])
    assert time.monotonic() - started < 20


def test_an_interrupt_stops_the_child_and_waits_for_it(fake_command, capsys, monkeypatch, tmp_path):
    fake_command(f"trap 'sleep 0.2; echo saved; touch {tmp_path}/saved; exit 130' INT\nwhile :; do sleep 0.05; done")
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of the tests may ignore it
    monkeypatch.setattr(subprocess, "Popen", start_and_interrupt(subprocess.Popen))
    try:
        with pytest.raises(KeyboardInterrupt):
            tutelage.run([])
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (tmp_path / "saved").exists()
    assert capsys.readouterr().out == "saved\n"


def start_and_interrupt(start):
    def popen(*arguments, **options):
        process = start(*arguments, **options)
        threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
        return process

    return popen


def test_runs_are_listed_as_a_table(tmp_path):
    for number, name in enumerate(("later", "earlier")):
        result = {"test/accuracy": 0.5 + number / 4}
        started = f"2026-01-0{2 - number}T00:00:00+00:00"
        write_finished_run(tmp_path / "digits" / name, [make_entry(result)], started=started)
    (tmp_path / "digits" / "broken").mkdir()
    (tmp_path / "digits" / "broken" / "run.json").write_text("{")
    runs = tutelage.list_runs(tmp_path)
    assert [run.path.name for run in runs] == ["broken", "earlier", "later"]
    assert [run.status for run in runs] == ["unreadable", "incomplete", "incomplete"]
    assert "cannot be read" in runs[0].reason and "missing" in runs[1].reason
    lines = repr(runs).splitlines()
    assert lines[0].split() == ["age", "status", "labels", "strategy", "network", "result", "interval", "size", "run"]
    assert re.search(r"incomplete .* 75.0 % .* \S+/digits/earlier$", lines[2])
    assert runs._repr_html_().count("<tr>") == 4
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(runs)
    assert frame["test_accuracy"].tolist()[1:] == [0.75, 0.5]
    assert {"path", "started", "status", "result", "reason", "labels", "strategy", "network", "size"} < {*frame}


def test_import_tutelage_loads_neither_torch_nor_hydra():
    program = (
        "import sys, tutelage; before = set(sys.modules); tutelage.list_runs('.'); tutelage.Run\n"
        "assert not {'pydantic', 'tutelage.api'} & before\n"
        "assert not {'torch', 'hydra', 'pytorch_lightning', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT / "docs")
    assert {"load", "run", "list_runs"} <= set(tutelage.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tutelage.nothing  # noqa: B018
    assert (Path(tutelage.__file__).parent / "py.typed").exists()


@pytest.mark.slow
def test_the_pages_examples_run(tmp_path, monkeypatch):
    """As written, but small, and in a fork of the tests' server, where torch is imported already."""
    monkeypatch.chdir(tmp_path)
    for name, image in zip("ab", random_images(2, 30, 3), strict=True):
        Image.fromarray(image).save(f"{name}.png")

    def execute_in_fork(overrides, runs_file):
        words = [*overrides, "debug=tiny", "trainer.threads=1", "callbacks.report=false"]
        process = command("tutelage.train", *words, cwd=tmp_path, env={**os.environ, RUNS_FILE: str(runs_file)})
        return process.returncode, (process.stdout + process.stderr).strip().splitlines()[-1]

    monkeypatch.setattr(api, "_execute_training", execute_in_fork)
    page = (ROOT / "docs" / "python.md").read_text()

    def run_page() -> None:
        names: dict = {}
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(block, names)
        assert names["run"].status == "finished" and len(names["runs"]) == 1
        assert names["probabilities"].shape == (1, 10)
        assert names["features"].shape[0] == 2
        assert names["teacher"].network.head.in_features < names["classifier"].network.head.in_features
        assert names["traced"](names["images"]).shape == (2, 10)

    return_from_fork(run_page)
    for target in re.findall(r"\]\(([^)#]+)", page):
        assert (ROOT / "docs" / target).is_file(), target


@pytest.mark.slow
def test_a_sweep_returns_its_runs(tmp_path):
    words = ["-m", "seed=0,1", *QUIET, "debug=tiny", "model=perceptron", "callbacks.report=false"]
    runs_file = tmp_path / "runs.json"
    process = command("tutelage.train", *words, cwd=tmp_path, env={**os.environ, RUNS_FILE: str(runs_file)})
    assert process.returncode == 0, process.stderr
    content = api.json.loads(runs_file.read_text())
    assert content["is_sweep"] and [reason for _, reason in content["runs"]] == ["", ""]
    assert all((tmp_path / path / "run.json").is_file() for path, _ in content["runs"])
