"""``tutelage predict``: labels for pictures of any kind, by any network, whole after any number of kills."""

import csv
import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from helpers import fork_server
from helpers.commands import command
from helpers.configs import data_config
from helpers.forks import call_in_fork, fork
from helpers.networks import make_spec
from helpers.overrides import NOISY_STUDENT
from helpers.runs import only_run, run
from tutelage import storage
from tutelage.app.predict import VIEWS
from tutelage.config.compose import compose
from tutelage.data import DataRuntime, read_labels
from tutelage.data.datasets.download import ignore_progress
from tutelage.data.datasets.image_files import FileImages
from tutelage.errors import UserError
from tutelage.inference import parts, predict, rows
from tutelage.inference.classifier import Classifier
from tutelage.inference.inputs import Inputs, find_inputs
from tutelage.inference.loading import LoadedNetwork
from tutelage.models import TTA_VIEWS, load_classifier, make_classifier, save_classifier

CLASSES, EACH = 3, 9  # the digits 0 to 2, of each so many pictures: two thirds to learn from
FOLDER_RUN = ("data=image_folder", "recipe=none", "data.image_size=8", "data.channels=1", "data.mean=[0.3]")
FOLDER_RUN += ("data.std=[0.3]", "data.num_workers=0", "callbacks.report=false", "data.validation=none")
MLP = ("model=mlp", "model.width=8", "schedule.epochs=null", "schedule.steps=20", "data.batch_size=8")
BARE = ("callbacks.report=false", "strategy.control=false")
NEIGHBOURS = ("model=nearest_neighbours", "model.k=2")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with train/ and test/ of small digits, brighter than the original."""
    root, digits = tmp_path_factory.mktemp("pictures"), load_digits()
    for label in range(CLASSES):
        for number, image in enumerate(digits.images[digits.target == label][:EACH]):
            folder = root / ("test" if number % 3 == 0 else "train") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15.9).astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def runs(pictures, tmp_path_factory):
    """Finished runs on these pictures: two networks, and the nearest neighbours."""
    others = {"first": (*MLP, "seed=0"), "second": (*MLP, "seed=1"), "neighbours": NEIGHBOURS}
    paths = {}
    for name, overrides in others.items():
        outputs = tmp_path_factory.mktemp(name)
        assert run(outputs, *FOLDER_RUN, f"data.root={pictures}", *overrides) == 0
        paths[name] = str(only_run(outputs))
    return paths


def label(*arguments) -> subprocess.CompletedProcess[str]:
    return command("tutelage.cli", "predict", *map(str, arguments))


def label_as_table(out: Path, *arguments) -> dict[str, list]:
    completed = label(*arguments, "--out", out)
    assert completed.returncode == 0, completed.stderr
    return pq.read_table(out).to_pydict()


@pytest.mark.parametrize("name", ["first", "neighbours"])
def test_the_rows_are_what_the_run_said_of_its_test_pictures(runs, pictures, tmp_path, name):
    table = label_as_table(tmp_path / "x.parquet", runs[name], pictures / "test", "--probabilities", "--top", 2)
    expected = pq.read_table(Path(runs[name]) / "test.parquet").to_pydict()
    by_path = dict(zip(table["path"], zip(*table.values(), strict=True), strict=True))
    assert len(by_path) == len(expected["path"]) == CLASSES * EACH // 3
    for path, predicted, probabilities in zip(
        expected["path"], expected["predicted"], expected["probabilities"], strict=True
    ):
        row = dict(zip(table, by_path[str(pictures / path)], strict=True))
        second, first = sorted(probabilities)[-2:]
        assert [row[f"probability_{c}"] for c in range(CLASSES)] == pytest.approx(probabilities, abs=1e-6)
        assert (row["label"], row["reason"]) == (predicted, None)
        assert (row["confidence"], row["margin"]) == pytest.approx((first, first - second), abs=1e-6)
        assert row["confidence_2"] == pytest.approx(second, abs=1e-6)
        assert row["label_2"] != row["label"]


def test_csv_on_standard_output_and_json_lines_say_the_same(runs, pictures, tmp_path):
    completed = label(runs["first"], pictures / "test")
    lines = list(csv.DictReader(io.StringIO(completed.stdout)))
    assert completed.returncode == 0
    assert label(runs["first"], pictures / "test", "--out", tmp_path / "x.jsonl").returncode == 0
    others = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [(row["path"], row["label"], float(row["confidence"])) for row in lines] == [
        (row["path"], row["label"], pytest.approx(row["confidence"], abs=1e-6)) for row in others
    ]
    assert "9 pictures; each becomes 8 x 8 pixels, grey, its middle (fit=crop)" in completed.stderr
    assert not list(tmp_path.glob(".*"))


def test_rows_on_standard_output_are_utf_8_in_any_locale(runs, pictures, tmp_path, monkeypatch):
    shutil.copy(next(pictures.glob("test/0/*.png")), tmp_path / "قطة.png")
    with (tmp_path / "rows").open("w", encoding="latin-1") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert label_in_fork(monkeypatch, runs["first"], tmp_path) == 0
    assert f"{tmp_path}/قطة.png," in (tmp_path / "rows").read_text("utf-8")


def test_views_are_those_of_the_networks():
    assert tuple(TTA_VIEWS) == VIEWS


def test_rows_depend_on_all_that_decides_a_networks_answers():
    def describe(mean=0.3, batch=4, **arguments) -> dict:
        model = {"_target_": "tutelage.models.NearestNeighbours", "k": 1, **arguments}
        network = make_classifier(model, replace(make_spec(size=8), mean=(mean,))).eval()
        classifier = Classifier([LoadedNetwork("", network, None, data_config(), None)], torch.device("cpu"))
        classifier.batch_size = batch
        inputs = Inputs(np.zeros((1, 8, 8, 1), np.uint8), ["a"], [0], "")
        return predict.Labeller(classifier, inputs, rows.Columns(), DataRuntime()).describe()

    def differ(**arguments) -> list[str]:
        other, first = describe(**arguments), describe()
        return [name for name in first if first[name] != other[name]]

    assert differ() == []
    assert differ(k=5) == differ(mean=0.7) == ["networks"]
    assert differ(batch=8) == ["batch size"]


def test_features_and_probabilities_are_computed_together_and_must_be_finite():
    network = make_classifier(compose(["model=mlp", "model.width=4"]).model.arguments(), make_spec(size=8)).eval()
    classifier = Classifier([LoadedNetwork("RUN", network, None, data_config(), None)], torch.device("cpu"))
    images = torch.arange(2 * 64, dtype=torch.uint8).view(2, 1, 8, 8)
    with patch.object(network.backbone, "forward", wraps=network.backbone.forward) as backbone:
        probabilities, features = classifier.compute(images, "mirrored", with_features=True)
    assert backbone.call_count == 2  # views
    assert torch.equal(features, classifier.compute_features(images))
    assert torch.equal(probabilities, classifier.compute_probabilities(images, "mirrored"))
    assert classifier.compute(images)[1] is None
    torch.nn.init.constant_(next(network.head.parameters()), float("nan"))
    with pytest.raises(UserError, match="RUN: its answers are not finite numbers"):
        classifier.compute_probabilities(images)


def test_several_runs_give_the_mean_of_their_probabilities(runs, pictures, tmp_path):
    names = [["first"], ["second"], ["first", "second"]]
    tables = [
        label_as_table(tmp_path / f"{n}.parquet", *[runs[name] for name in each], pictures / "test", "--probabilities")
        for n, each in enumerate(names)
    ]
    first, second, mean = (np.array([table[f"probability_{c}"] for c in range(CLASSES)]) for table in tables)
    assert np.abs(first - second).max() > 0.01
    np.testing.assert_allclose(mean, (first + second) / 2, atol=1e-6)


def test_mirrored_views_and_features_are_the_networks(runs, pictures, tmp_path):
    options = ("--tta", "mirrored", "--probabilities", "--embed")
    table = label_as_table(tmp_path / "x.parquet", runs["first"], pictures / "test", *options)
    network = load_classifier(Path(runs["first"]) / "checkpoints" / "final.ckpt").eval()
    images = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in table["path"]]))[:, None]
    with torch.inference_mode():
        features = network.features(images)
        probabilities = (network(images).softmax(1) + network(images.flip(-1)).softmax(1)) / 2
    np.testing.assert_allclose(table["features"], features, atol=1e-5)
    np.testing.assert_allclose(
        np.array([table[f"probability_{c}"] for c in range(CLASSES)]).T, probabilities, atol=1e-6
    )


def test_a_stage_is_chosen_by_its_name_and_the_pool_by_an_option(outputs, tmp_path):
    assert run(outputs, *NOISY_STUDENT, "schedule.steps=2", "data.limit=60", *BARE) == 0
    folder = only_run(outputs)
    (stored,) = folder.glob("stages/*labels-1")
    table = label_as_table(tmp_path / "x.parquet", folder, "--pool", "--stage", "teacher", "--probabilities")
    labels = read_labels(stored)
    assert table["label"] == [str(c) for c in labels.predictions.tolist()]
    confidences = labels[np.arange(labels.count)].max(axis=1)
    np.testing.assert_allclose(table["confidence"], confidences, rtol=2e-3)  # float16
    last = label_as_table(tmp_path / "y.parquet", folder, "--pool", "--probabilities")
    named = label_as_table(tmp_path / "z.parquet", folder, "--pool", "--stage", "student-1", "--probabilities")
    assert last == named != table
    completed = label(folder, "--pool", "--stage", "student-9")
    assert completed.returncode == 2 and "no network of a stage 'student-9'" in completed.stderr


def test_a_task_of_several_is_chosen_by_its_number(pictures, tmp_path):
    torch.manual_seed(0)
    spec = replace(make_spec(), tasks=((3, 0), (1, 5, 2)))
    model = {"_target_": "tutelage.models.Perceptron"}
    network = make_classifier(model, spec).eval()
    network.head.learned[:] = True
    save_classifier(network, model, tmp_path / "x.ckpt")
    (file,) = pictures.glob("test/0/0.png")
    size, channels = spec.image_size, spec.channels
    table = label_as_table(tmp_path / "x.parquet", tmp_path / "x.ckpt", file, "--task", 2, "--probabilities")
    images = FileImages([str(file)], data_config(image_size=size, channels=channels))
    with torch.inference_mode():
        logits = network(torch.from_numpy(images[0].transpose(2, 0, 1)[None]))[0, [1, 5, 2]]
    expected = dict(zip([f"probability_{spec.classes[c]}" for c in (1, 5, 2)], logits.softmax(0).tolist(), strict=True))
    assert {name: table[name][0] for name in table if name.startswith("probability_")} == pytest.approx(expected)
    completed = label(tmp_path / "x.ckpt", file)
    assert completed.returncode == 2 and "has 2 tasks" in completed.stderr


@pytest.fixture
def kinds(pictures, tmp_path, monkeypatch):
    """The same three pictures in everything that a path may be, each with the names that are expected."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = sorted((pictures / "test" / "0").glob("*.png"))
    folder, lists = tmp_path / "some pictures", tmp_path / "lists"
    (folder / "@eaDir").mkdir(parents=True)
    lists.mkdir()
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())
        (folder / "@eaDir" / file.name).write_bytes(b"a thumbnail")
    shown = [f"some pictures/{file.name}" for file in files]
    relative = [f"../{name}" for name in shown]
    (lists / "x.txt").write_text("\n".join(relative))
    (lists / "x.csv").write_text("\n".join(["label;Path", *(f"{n};{name}" for n, name in enumerate(relative))]))
    pq.write_table(pa.table({"path": relative}), lists / "x.parquet")
    contents = [file.read_bytes() for file in files]
    pq.write_table(pa.table({"image": [{"bytes": content} for content in contents]}), "shard.parquet")
    (tmp_path / "tars").mkdir()
    with tarfile.open("tars/x.tar", "w") as tar:
        for file in files:
            tar.add(file, file.name)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\r\n".join(shown).encode())))
    kinds = {"some pictures": shown, "some pictures/*.png": shown, "**/[0-9].png": shown, shown[1]: shown[1:2]}
    kinds |= {"-": shown, **{f"lists/{name}": relative for name in ("x.txt", "x.csv", "x.parquet")}}
    return kinds | {name: [f"{name}#{n}" for n in range(len(files))] for name in ("shard.parquet", "tars/x.tar")}


def test_every_kind_of_input_leads_to_the_same_pictures(kinds, pictures):
    config = data_config(image_size=8, channels=1)
    files = sorted((pictures / "test" / "0").glob("*.png"))
    expected = [np.asarray(Image.open(file))[..., None] for file in files]
    for typed, names in kinds.items():
        inputs = find_inputs([typed], config, ignore_progress)
        assert [inputs.names[n] for n in inputs.indices] == names, typed
        wanted = expected[1:2] if len(names) == 1 else expected
        np.testing.assert_array_equal([inputs.images[n] for n in inputs.indices], wanted, typed)
    several = find_inputs(["tars", *list(kinds)[:2], "lists/x.csv"], config, ignore_progress)
    assert len(several) == 12
    assert [several.names[number] for number in (0, 5, 6, 9)] == [
        kinds["some pictures"][0],
        kinds["some pictures"][2],
        kinds["lists/x.csv"][0],
        "tars/x.tar#0",
    ]
    np.testing.assert_array_equal(
        [several.images[number] for number in (0, 5, 8, 11)], [expected[0]] + 3 * expected[2:]
    )


def test_the_digest_of_the_inputs_follows_names_sizes_times_and_shards(kinds):
    def find_digest(*paths):
        return find_inputs(paths, data_config(image_size=8, channels=1), ignore_progress).digest

    first = kinds["some pictures"][0]
    before = find_digest("some pictures"), find_digest("tars/x.tar")
    assert before == (find_digest("some pictures"), find_digest("tars/x.tar"))
    os.utime(first, (1, 1))
    os.utime("tars/x.tar", (1, 1))
    assert find_digest("some pictures") != before[0] and find_digest("tars/x.tar") != before[1]
    assert find_digest(first) != find_digest(kinds["some pictures"][1])
    for folder in ("one", "other"):  # names in lists are relative to the list
        Path(folder).mkdir()
        shutil.copy2(first, f"{folder}/a.png")
        Path(f"{folder}/list.txt").write_text("a.png")
    assert find_digest("one/list.txt") != find_digest("other/list.txt")


def test_what_cannot_be_read_is_a_row_with_the_reason(runs, pictures, tmp_path):
    good = next(pictures.glob("test/0/*.png"))
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "cut.png", "a.png")
        tar.add(good, "b.png")
    (tmp_path / "list.txt").write_text(f"gone.png\ncut.png\n{good}\nodd\n")
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "to nothing.png").symlink_to("nowhere")
    (odd / '=1+"a,b"\n.png').write_bytes(good.read_bytes())
    Path(os.fsdecode(os.fsencode(odd) + b"/\xff\xe9.png")).write_bytes(good.read_bytes())
    names = [tmp_path / "list.txt", odd, tmp_path / "x.tar"]
    completed = label(runs["first"], *names, "--out", tmp_path / "x.csv")
    assert "4 pictures labelled; 5 cannot be read (column reason)" in completed.stderr
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as lines:
        table = {row["path"]: row for row in csv.DictReader(lines)}
    reasons = {name: row["reason"] for name, row in table.items() if row["reason"]}
    assert set(reasons) == {"gone.png", "cut.png", "odd", f"{odd}/to nothing.png", f"{tmp_path}/x.tar#0"}
    assert reasons["odd"] == "cannot be opened (Is a directory)"
    assert reasons["gone.png"] == "cannot be opened (No such file or directory)"
    assert all(not table[name]["label"] and not table[name]["confidence"] for name in reasons)
    assert {f'{odd}/=1+"a,b"\\n.png', f"{odd}/\\xff\\xe9.png"} < set(table)
    assert len({row["confidence"] for row in table.values() if not row["reason"]}) == 1  # all are one picture


def label_in_fork(monkeypatch, *arguments, on_write=lambda count: None) -> int:
    """Label in a fork, with 4 pictures a batch and a batch a part; call ``on_write`` before each part is written."""
    fork_server.preload()
    from tutelage.app.predict import predict as run_predict

    written, write = [], parts.Parts.write

    def count_and_write(self, number, table):
        written.append(number)
        on_write(len(written))
        write(self, number, table)

    def work() -> int:
        monkeypatch.setattr("tutelage.inference.classifier.evaluation_batch", lambda network: 4)
        monkeypatch.setattr(predict, "BATCHES_A_PART", 1)
        monkeypatch.setattr(parts.Parts, "write", count_and_write)
        try:
            return run_predict(list(map(str, arguments)))
        except UserError as error:
            print(error, file=sys.stderr)
            return 2

    return call_in_fork(work)


def kill_before(part: int):
    return lambda count: os.kill(os.getpid(), signal.SIGKILL) if count == part else None


def test_a_killed_command_goes_on_and_ends_in_the_same_file(runs, pictures, tmp_path, monkeypatch, capfd):
    out, arguments = tmp_path / "x.csv", (runs["first"], pictures, "--out", tmp_path / "x.csv")
    assert label_in_fork(monkeypatch, *arguments) == 0
    whole = out.read_bytes()
    assert len(whole.splitlines()) == 1 + CLASSES * EACH
    assert label_in_fork(monkeypatch, *arguments) == 2
    assert "exists already" in capfd.readouterr().err
    out.unlink()
    for _ in range(3):
        assert label_in_fork(monkeypatch, *arguments, on_write=kill_before(3)) == -9
        assert not out.exists()
    damaged = parts.parts_folder(out) / "000001.arrow"
    damaged.write_bytes(damaged.read_bytes().replace(b"png", b"gnp", 1))
    made = tmp_path / "made"
    assert label_in_fork(monkeypatch, *arguments, on_write=lambda count: made.write_text(str(count))) == 0
    assert out.read_bytes() == whole
    assert made.read_text() == "2"  # of 7: the damaged one, and the last
    assert list(tmp_path.glob(".*")) == []


def test_what_has_changed_since_is_refused_in_one_line(runs, pictures, tmp_path, monkeypatch, capfd):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for file in pictures.glob("test/1/*.png"):
        (folder / file.name).write_bytes(file.read_bytes())
    arguments = (runs["first"], folder, folder, "--out", tmp_path / "x.parquet")
    assert label_in_fork(monkeypatch, *arguments, on_write=kill_before(2)) == -9
    assert label_in_fork(monkeypatch, *arguments, "--top", 2) == 2
    assert "rows that were made with other options; remove that folder" in capfd.readouterr().err
    assert label_in_fork(monkeypatch, runs["second"], *arguments[1:]) == 2
    assert "other networks;" in capfd.readouterr().err
    os.utime(file := next(folder.iterdir()), (1, 1))
    assert label_in_fork(monkeypatch, *arguments) == 2
    assert "other pictures;" in capfd.readouterr().err
    with parts.hold_parts(tmp_path / "x.parquet"):
        assert label_in_fork(monkeypatch, *arguments) == 2
    assert f"is in use by process {os.getpid()}" in capfd.readouterr().err
    assert file.exists() and not (tmp_path / "x.parquet").exists()


def write_rows(out: Path, text: str = "a", before_finish=lambda: None) -> str:
    """Write two parts of one row each and their file, as a command does; return what it says of it."""
    try:
        parts.require_new(out)
        with parts.hold_parts(out):
            rows_of_out = parts.Parts(out, 2, {"pictures": text})
            for number in rows_of_out.missing:
                rows_of_out.write(number, pa.table({"path": [text + str(number)]}))
            before_finish()
            was_finished = rows_of_out.is_finished
            rows_of_out.finish()
        return "finished already" if was_finished else "written"
    except UserError as error:
        return str(error)


class Killed(BaseException):
    """Ends a command at once."""


def kill_before_line(number: int) -> None:
    """Raise ``Killed`` before a line, by its number in time, of the functions that make the file of the parts."""
    functions = {parts.Parts.finish, parts.Parts._write_metadata, parts._publish, storage.write_whole}
    codes, left = {function.__code__ for function in functions}, iter(range(number))

    def trace(frame, event, argument):
        if event == "line" and next(left, None) is None:
            raise Killed
        return trace if frame.f_code in codes else None

    sys.settrace(trace)


@pytest.mark.parametrize("has_links", [True, False])
def test_a_kill_before_any_line_of_the_end_leaves_what_the_same_command_finishes(tmp_path, monkeypatch, has_links):
    if not has_links:
        monkeypatch.setattr(Path, "hardlink_to", Mock(side_effect=OSError(errno.EPERM, "no links")))
    monkeypatch.setattr(storage.os, "fsync", Mock())
    said, out, earlier_trace = Counter(), tmp_path / "x.csv", sys.gettrace()
    for line in range(200):
        try:
            assert write_rows(out, before_finish=partial(kill_before_line, line)) == "written"
            break
        except Killed:
            was_there = out.exists()
            if any(parts.parts_folder(out).glob("*")):
                (parts.parts_folder(out) / ".partial-of-a-kill").touch()
        finally:
            sys.settrace(earlier_trace)
        outcome = write_rows(out)
        said[outcome.removeprefix(f"--out {out}: ")] += 1
        assert was_there == (outcome != "written")
        assert out.read_text() == "path\na0\na1\n"
        assert [file.name for file in tmp_path.iterdir()] == [out.name]
        out.unlink()
    assert said.pop("written") > 20 and said.pop("finished already") > 10
    assert sum(said.values()) <= 2, said  # its very last lines: there is nothing left that tells whose the file is


def test_a_file_that_somebody_else_wrote_is_never_replaced_nor_called_finished(tmp_path):
    out, refusal = tmp_path / "x.csv", f"--out {tmp_path}/x.csv: exists already; remove it, or name another file"

    def write_own() -> None:
        out.write_text("my own")

    def die_finishing() -> int:
        return int(write_rows(out, before_finish=lambda: os._exit(9)) != "")

    assert write_rows(out, before_finish=write_own) == refusal  # written meanwhile
    assert write_rows(out) == refusal  # with parts of a command beside it
    shutil.rmtree(parts.parts_folder(out))
    parts.parts_folder(out).mkdir()
    (parts.parts_folder(out) / "lock").touch()
    assert write_rows(out) == refusal  # with a folder that was killed before anything was in it
    assert out.read_text() == "my own"
    out.unlink()
    assert call_in_fork(die_finishing) == 9
    assert "other pictures" in write_rows(out, "b")
    (parts.parts_folder(out) / "inputs.json").write_text("{")
    assert write_rows(out, "b") == "written"  # parts of unknown origin are made anew
    assert out.read_text() == "path\nb0\nb1\n"


def test_a_folder_without_room_or_permission_ends_in_one_line(tmp_path, monkeypatch):
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_json", full)
        assert write_rows(tmp_path / "x.csv").endswith(
            "(No space left on device); free some room: the same command goes on from here"
        )
    with monkeypatch.context() as patch:
        patch.setattr(parts, "hold_lock", Mock(side_effect=PermissionError(errno.EACCES, "Permission denied")))
        assert f"(Permission denied); see to the folder {tmp_path}" in write_rows(tmp_path / "x.csv")
    assert write_rows(tmp_path / "x.csv") == "written"


def test_an_interrupted_command_says_that_it_goes_on(runs, pictures, tmp_path, monkeypatch, capfd):
    def interrupt(count):
        if count == 2:
            raise KeyboardInterrupt

    arguments = (runs["first"], pictures, "--out", tmp_path / "x.csv")
    assert label_in_fork(monkeypatch, *arguments, on_write=interrupt) == 130
    assert capfd.readouterr().err.endswith("stopped; the same command goes on from here\n")
    assert (parts.parts_folder(tmp_path / "x.csv") / "000000.arrow").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["PICTURES"], "no run's folder and no .ckpt file"),
        (["RUN"], "no pictures are named"),
        ([], "no run is named"),
        (["RUN", "nowhere"], "nowhere: no such file or folder"),
        (["RUN", "nowhere*.png"], "nowhere*.png: no file has such a name"),
        (["RUN", "--pool", "PICTURES"], "it labels the pool of one run"),
        (["RUN", "--pool"], "has no pool"),
        (["RUN", "PICTURES", "--top", "9"], "--top 9: there are 3 classes"),
        (["RUN", "PICTURES", "--embed", "--out", "x.csv"], "Parquet alone"),
        (["RUN", "PICTURES", "--out", "x.xls"], "--out x.xls: its name must end in .csv or .parquet or .jsonl"),
        (["RUN", "PICTURES", "--out", "gone/x.csv"], "--out gone/x.csv: there is no folder gone; make it first"),
        (["RUN", "ARCHIVE"], "pool.tar.gz: an archive that is not read; unpack it"),
        (["typo", "PICTURES"], "predict: typo: no such file or folder"),
        (["typo.ckpt", "PICTURES"], "typo.ckpt: no such file or folder"),
        (["RUN", "-", "-"], "-: standard input can be read once"),
        (["RUN", "PICTURES", "--tta", "all"], "invalid choice: 'all'"),
        (["RUN", "EMPTY"], "no pictures there (looked for .bmp"),
    ],
)
def test_mistakes_end_in_one_line(runs, pictures, tmp_path, arguments, line):
    (tmp_path / "pool.tar.gz").touch()
    names = {"RUN": runs["first"], "PICTURES": pictures, "EMPTY": tmp_path, "ARCHIVE": tmp_path / "pool.tar.gz"}
    completed = label(*[names.get(argument, argument) for argument in arguments])
    assert (completed.returncode, completed.stdout) == (2, "")
    assert line in completed.stderr and len(completed.stderr.splitlines()) == 1


def test_of_equal_probabilities_the_first_class_is_named_first():
    table = rows.make_rows(
        ["a"], [""], np.array([[0.2, 0.4, 0.4]], np.float32), ["x", "y", "z"], rows.Columns(top=3)
    ).to_pydict()
    assert [table[name][0] for name in ("label", "label_2", "label_3", "margin")] == ["y", "z", "x", 0]


KILLS = int(os.environ.get("KILLS", "4"))


@pytest.mark.slow
def test_random_kills_end_in_the_same_file(runs, pictures, tmp_path):
    """Processes with workers are killed, workers and all, at random times after they hold the lock, from 0 to 2 s."""
    fork_server.preload()
    from tutelage.app.predict import predict as run_predict

    network, list_file = tmp_path / "network.ckpt", tmp_path / "list.txt"
    network.write_bytes((Path(runs["first"]) / "checkpoints" / "final.ckpt").read_bytes())  # without a run: workers
    files = sorted(pictures.glob("*/*/*.png"))
    list_file.write_text("\n".join(str(files[n % len(files)]) for n in range(20_000)))

    def start(out: Path) -> int:
        def work() -> int:
            os.setsid()
            predict.BATCHES_A_PART = 1
            return run_predict([str(network), str(list_file), "--out", str(out)])

        return fork(work)

    assert os.waitpid(start(tmp_path / "whole.csv"), 0)[1] == 0
    out, rng, kills, finished, left = tmp_path / "x.csv", random.Random(0), 0, 0, Counter()
    holder = parts.parts_folder(out) / "lock.holder.json"
    while kills < KILLS or not finished:
        process, status = start(out), None
        while status is None and not (holder.exists() and json.loads(holder.read_text())["pid"] == process):
            ended, code = os.waitpid(process, os.WNOHANG)
            status = code if ended else None
            time.sleep(0.002)
        if status is None and kills < KILLS:
            time.sleep(rng.uniform(0, 2))
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1] if status is None else status
        if os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
            kills += 1
            left[len(list(parts.parts_folder(out).glob("*.arrow")))] += 1
        else:
            assert status == 0
            finished += 1
            assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
            out.unlink()
    print(f"{kills} kills, {finished} files finished; kills by the number of parts then: {sorted(left.items())}")
