"""Shifts, sweeps, and the pages and tables that report them."""

import io
import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from rich.table import Table

from helpers.commands import command
from helpers.runs import only_run, run
from tutelage.errors import UserError, escape_stdout
from tutelage.report import pictures
from tutelage.report.learning_curves import make_curves
from tutelage.report.shifts import STRENGTHS, shift_images
from tutelage.runs import RunFolder, open_finished_run, read_config
from tutelage.terminal.display import Display
from tutelage.terminal.table import build_header, print_uncut


def draw_images(channels: int = 1, size: int = 20) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, channels, size, size), dtype=np.uint8))


@pytest.mark.parametrize("shift", sorted(STRENGTHS))
@pytest.mark.parametrize("channels", [1, 3])
def test_strength_0_leaves_images_as_they_are_and_all_keep_their_form(shift, channels):
    batch = draw_images(channels)
    for strength in STRENGTHS[shift]:
        for view in shift_images(batch, shift, strength):
            assert view.shape == batch.shape
            assert view.dtype == torch.uint8
            assert (strength != 0) or torch.equal(view, batch)


def test_brightness_adds_and_clips():
    batch = draw_images()
    (darker,) = shift_images(batch, "brightness", -0.4)
    assert torch.equal(darker, (batch.int() - 102).clamp(min=0).byte())
    assert (shift_images(batch, "brightness", 1.0)[0] == 255).all()


def test_translation_moves_by_whole_pixels_right_left_down_and_up():
    batch = draw_images().numpy()
    views = [view.numpy() for view in shift_images(torch.from_numpy(batch), "translate", 0.15)]
    for view, (axis, by) in zip(views, [(3, 3), (3, -3), (2, 3), (2, -3)], strict=True):
        expected = np.roll(batch, by, axis)
        edge = slice(0, 3) if by > 0 else slice(-3, None)
        expected[(..., edge) if axis == 3 else (..., edge, slice(None))] = 0
        assert (view == expected).all()


def test_rotation_is_pils():
    batch = draw_images(size=21)
    for degrees in (-90, -30, 45, 90):
        (turned,) = shift_images(batch, "rotate", degrees)
        expected = Image.fromarray(batch[0, 0].numpy()).rotate(degrees, Image.Resampling.BILINEAR)
        inner = np.abs(turned[0, 0].numpy().astype(int) - np.asarray(expected))[4:-4, 4:-4]
        assert inner.max() <= 2


def test_a_crop_keeps_the_centre_and_enlarges_it():
    batch = torch.zeros(1, 1, 20, 20, dtype=torch.uint8)
    batch[..., 5:15, 5:15] = 200
    (view,) = shift_images(batch, "crop", 0.5)
    assert (view == 200).all()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("evaluated")
    assert run(outputs, "model=perceptron", "debug=tiny", "callbacks.report=true", "callbacks.shifts=[crop]") == 0
    return only_run(outputs)


def test_a_run_measures_the_shifts_that_its_config_asks_for(finished):
    stored = json.loads((finished / "shifts" / "crop.json").read_text())
    record = json.loads((finished / "run.json").read_text())
    assert stored["accuracy"]["supervised"][0] == pytest.approx(record["result"]["test/accuracy"])
    page = (finished / "report" / "index.html").read_text()
    for heading in ("Shift: crop", "Templates", "Confusion", "Loss", "Accuracy"):
        assert f"<h2>{heading}</h2>" in page
    assert read_config(RunFolder(finished)).callbacks.shifts == ["crop"]


def test_evaluate_prints_the_numbers_and_adds_the_picture(finished):
    process = command("tutelage.cli", "evaluate", str(finished), "shift=translate,rotate")
    assert process.returncode == 0, process.stderr
    assert re.search(r"network +0% +5% +10% +15% +20% +25% +30% +40% +50%", process.stdout)
    assert "200 test images rotated by this many degrees" in process.stdout
    assert "…" not in process.stdout
    assert "<h2>Shift: rotate</h2>" in (finished / "report" / "index.html").read_text()
    modified = (finished / "shifts" / "rotate.json").stat().st_mtime_ns
    assert command("tutelage.cli", "evaluate", str(finished), "shift=rotate").returncode == 0
    assert (finished / "shifts" / "rotate.json").stat().st_mtime_ns == modified  # not measured again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "evaluate needs one run's folder"),
        (["nowhere"], "nowhere: no run; this needs the folder of a finished run"),
        (["RUN", "shift=rotat"], "shift=rotat: no such shift; allowed are brightness, crop, rotate, translate"),
        (["RUN", "strength=3"], "strength: unknown option; evaluate takes shift=NAME"),
    ],
)
def test_invalid_arguments_of_evaluate_are_an_error_of_one_line(finished, arguments, message):
    process = command(
        "tutelage.cli", "evaluate", *(str(finished) if argument == "RUN" else argument for argument in arguments)
    )
    assert process.returncode == 2
    assert message in process.stderr
    assert len(process.stderr.splitlines()) == 1


def test_a_report_is_written_again_without_what_earlier_versions_did_not_record(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    record = json.loads((copy / "run.json").read_text())
    for key in ("packages", "threads", "started", "processes", "git"):
        del record[key]
    for key in ("notes", "leaked", "images_per_class", "labelled", "left_out"):
        del record["data"][key]
    (copy / "run.json").write_text(json.dumps(record))
    (copy / "report" / "index.html").unlink()
    process = command("tutelage.cli", "report", str(copy), f"data.root={tmp_path}")
    assert process.returncode == 0, process.stderr
    text = (copy / "report" / "index.html").read_text()
    assert "<h2>What each stage did</h2>" in text and "<h1>Digits, " in text
    process = command("tutelage.cli", "report", str(copy), "data.roots=x")
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert "data.roots=x: unknown option; report takes runs' folders and data.root=FOLDER" in process.stderr


def test_of_a_run_whose_data_has_changed_no_shift_is_measured_and_no_picture_shown(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    record = json.loads((copy / "run.json").read_text())
    record["identity"]["data"]["fingerprint"] = "another"
    (copy / "run.json").write_text(json.dumps(record))
    page = (copy / "report" / "index.html").read_text()
    for words in (("evaluate", str(copy), "shift=brightness"), ("report", str(copy))):
        process = command("tutelage.cli", *words)
        assert process.returncode == 2 and process.stderr.count("\n") == 1
        assert (
            "data has changed since it was trained; if the unchanged data is now elsewhere, give data.root="
            in process.stderr
        )
    assert (copy / "report" / "index.html").read_text() == page


@pytest.mark.slow
def test_an_experiment_that_is_a_sweep_compares_its_runs(tmp_path):
    overrides = [
        "experiment=knn_cost",
        "debug=tiny",
        "trainer.threads=1",
        f"paths.outputs={tmp_path}",
        "callbacks=quiet",
    ]
    overrides += ["data.labels_per_class=2,5", "seed=0,1", "data=digits"]
    process = command("tutelage.train", *overrides)
    assert process.returncode == 0, process.stderr
    assert "run 8 of 8" in process.stdout
    table = process.stdout[process.stdout.index("labels_per_class ") :]
    assert len(re.findall(r"^[25] +(nearest_neighbours|lenet5) +2 ", table, re.MULTILINE)) == 4
    assert "+-" in table
    (file,) = tmp_path.glob("knn_cost/sweep-*/index.html")
    page = file.read_text()
    assert "<h2>Training seconds over labels_per_class</h2>" in page
    again = command("tutelage.train", *overrides)
    assert again.returncode == 0
    assert again.stdout[again.stdout.index("labels_per_class ") :] == table


def test_a_job_that_fails_does_not_keep_a_sweep_from_its_table(tmp_path):
    overrides = [f"paths.outputs={tmp_path}", "debug=tiny", "callbacks=quiet", "model=timm"]
    process = command("tutelage.train", "-m", *overrides, "model.name=test_resnet,resnet_18,test_efficientnet")
    assert process.returncode == 1
    assert process.stderr.count("timm has no such architecture") == 1
    rows = r"^name +runs +(val +)?test .*\ntest_resnet +1 .*\ntest_efficientnet +1 "
    assert re.search(rows, process.stdout, re.MULTILINE)
    assert "no result: model.name=resnet_18: model.name=resnet_18: timm has no such" in process.stdout
    assert "report:" in process.stdout


def test_an_invalid_value_of_a_sweep_is_an_error_before_any_job_runs(tmp_path):
    process = command("tutelage.train", "-m", f"paths.outputs={tmp_path}", "debug=tiny", "data.image_size=28,8")
    assert process.returncode == 2
    assert process.stderr.count("model=lenet5 needs images of 12 pixels or more") == 1
    assert not list(tmp_path.glob("runs/*/run.json"))


def test_experiments_themselves_can_be_swept_over(tmp_path):
    overrides = [f"paths.outputs={tmp_path}", "debug=tiny", "callbacks=quiet", "data=digits", "model=perceptron"]
    process = command("tutelage.train", "-m", *overrides, "experiment=why_cnn,lecun1998")
    assert process.returncode == 0, process.stderr
    assert "run 2 of 2" in process.stdout


def test_explain_shows_a_network_without_its_run_and_with_it(finished):
    process = command("tutelage.cli", "explain", "--summary", "model=lenet5", "data.image_size=32")
    assert re.search(r"^total +416,520 +61,706$", process.stdout, re.MULTILINE), process.stderr
    process = command("tutelage.cli", "explain", "--summary", str(finished))
    assert re.search(r"^total +7,840 +7,850$", process.stdout, re.MULTILINE), process.stderr
    process = command(
        "tutelage.cli", "explain", "--summary", "model=nearest_neighbours", "+model@model.backbone=lenet5"
    )
    assert "Conv2d" in process.stdout, process.stderr


def test_finished_run_takes_finished_runs_only(finished, tmp_path):
    with pytest.raises(UserError, match="no run; this needs the folder of a finished run"):
        open_finished_run(str(tmp_path))
    (tmp_path / "run.json").write_text((finished / "run.json").read_text().replace('"finished"', '"running"', 1))
    with pytest.raises(UserError, match="stopped; this needs the folder of a finished run"):
        open_finished_run(str(tmp_path))
    folder, record = open_finished_run(str(finished))
    assert folder.path == finished
    assert record["status"] == "finished"


def test_a_finished_sweep_is_shown_without_torch(finished, tmp_path):
    from helpers.commands import loaded_packages

    overrides = [f"paths.outputs={tmp_path}", "debug=tiny", "callbacks=quiet", "model=perceptron", "-m", "seed=0,1"]
    assert command("tutelage.train", *overrides).returncode == 0
    process, packages = loaded_packages("tutelage.train", *overrides)
    assert process.returncode == 0
    assert not packages & {"torch", "pytorch_lightning", "albumentations"}


def test_training_that_diverges_ends_in_one_line(outputs, capfd):
    assert run(outputs, "model=mlp", "debug=tiny", "optimizer=sgd", "optimizer.lr=1e30", "schedule.steps=8") != 0
    assert "training has diverged; lower optimizer.lr" in capfd.readouterr().err


def test_runs_lists_an_experiments_runs_too(finished):
    for folder in (finished, finished.parent, finished.parents[1]):
        process = command("tutelage.cli", "runs", str(folder))
        assert str(finished) in process.stdout


def test_a_stage_without_labels_has_a_loss_and_no_accuracy_to_draw():
    tables = {
        "student": [{"step": 5, "train/loss": 0.7}],
        "control": [{"step": 5, "train/loss": 1.0, "train/accuracy": 0.5, "val/accuracy": 0.4}],
    }
    loss, accuracy = make_curves(tables)
    assert [(line.name, line.y, line.is_dashed) for line in loss.lines] == [
        ("student", [0.7], False),
        ("control", [1.0], False),
    ]
    assert [(line.name, line.y, line.is_dashed) for line in accuracy.lines] == [
        ("control", [0.5], False),
        ("control, validation", [0.4], True),
    ]
    assert {line.color for line in accuracy.lines} == {1}  # the stage's own


def test_names_in_the_terminal_are_no_markup(capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich takes stdout and stderr for terminals
    table = Table("[/]")
    table.add_row("[red] :cat:")
    print_uncut(table)
    display = Display()
    display.reading("reading data.root=[/x]", 0.5)
    display.say("note: [/y] :dog:")
    display.end()
    shown = capsys.readouterr()
    assert all(name in shown.out for name in ("[/]", "[red] :cat:"))
    assert all(name in shown.err for name in ("[/x]", "[/y] :dog:"))


def test_a_class_called_accuracy_is_no_test_set():
    result = {"test/accuracy": 0.9, "test-[b]/accuracy": 0.5, "test-[b]/accuracy/accuracy": 0.4}
    record = {"stages": [{"kind": "train", "result": result}]}
    assert build_header(record)[-2:] == ("test", "[b]")


def test_bytes_of_a_path_that_are_not_utf_8_are_escaped_on_stdout(monkeypatch):
    stdout = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stdout, encoding="utf-8", write_through=True))
    escape_stdout()
    print("report: /\udcff ü")
    assert stdout.getvalue().decode() == "report: /\\udcff ü\n"


def test_names_of_classes_in_pictures_fit_their_tiles():
    names = ("$\\frac{1}{$", "$", "日本" * 9, "cat 😀", "x" * 99, "")
    shown = [pictures.shorten_name(name) for name in names]
    assert shown == ["$\\frac{1}{$", "$", "日本日本日…", "cat 😀", "xxxxxxxxxxx…", ""]
