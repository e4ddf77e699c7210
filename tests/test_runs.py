"""A run's folder, its results, its report, and the commands that read them."""

import csv
import html
import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers.commands import command, loaded_packages
from helpers.overrides import NOISY_STUDENT, QUIET
from helpers.runs import only_run, outcome, run
from tutelage.config.compose import compose
from tutelage.data import data_module, read_labels
from tutelage.runs import RunFolder, read_record
from tutelage.terminal.table import build_rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("finished")
    assert run(outputs, *NOISY_STUDENT, "callbacks.report=true", "logger=tensorboard") == 0
    return only_run(outputs)


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_a_finished_run_has_the_files_of_the_design(finished):
    files = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    for name in ("config.yaml", "run.json", "report/index.html"):
        assert name in files
    for stage in ("1-teacher", "3-student-1", "4-control"):
        for name in ("metrics.csv", "checkpoints/last.ckpt", "checkpoints/final.ckpt", "test.parquet"):
            assert f"stages/{stage}/{name}" in files
    assert {"stages/2-labels-1/labels/00000.npy", "stages/2-labels-1/pseudo_labels.parquet"} <= files
    assert not [name for name in files if ".partial" in name]
    assert any("tensorboard" in name for name in files)


def test_the_record_holds_what_is_needed_to_reproduce_the_result(finished):
    record = record_of(finished)
    assert record["status"] == "finished"
    for key in ("command", "version", "git", "packages", "threads", "started", "finished", "identity"):
        assert key in record
    assert [entry["name"] for entry in record["stages"]] == ["teacher", "labels-1", "student-1", "control"]
    student = record["stages"][2]
    assert record["result"] == student["result"]
    assert {
        "test/accuracy",
        "test/top5",
        "test/f1",
        "test/balanced_accuracy",
        "test/calibration_error",
        "test/accuracy/7",
    } <= set(student["result"])


def test_the_predictions_on_the_test_set_are_a_table_that_pandas_reads(finished):
    pandas = pytest.importorskip("pandas")
    table = pandas.read_parquet(finished / "stages/3-student-1/test.parquet")
    assert list(table.columns) == ["index", "truth", "predicted", "probabilities"]  # digits have no file names
    right = (table.truth == table.predicted).mean()
    assert right == pytest.approx(record_of(finished)["stages"][2]["result"]["test/accuracy"], abs=1e-6)
    classes = [str(digit) for digit in range(10)]
    assert table.truth.cat.categories.to_list() == table.predicted.cat.categories.to_list() == classes
    probabilities = np.stack(table.probabilities)
    assert probabilities.dtype == np.float32 and np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert [classes[best] for best in probabilities.argmax(axis=1)] == table.predicted.to_list()
    config = compose(["data=digits"])
    assert [classes[label] for label in data_module(config.data).source.labels[table["index"]]] == table.truth.to_list()


def test_the_control_has_the_last_students_network_and_all_the_steps(finished):
    stages = {entry["name"]: entry for entry in record_of(finished)["stages"]}
    assert stages["control"]["model"] == stages["student-1"]["model"]
    assert stages["control"]["steps"] == stages["teacher"]["steps"] + stages["student-1"]["steps"]
    assert stages["control"]["labels"] == stages["student-1"]["labels"] == 30


def test_pseudo_labels_are_the_teachers_predictions_and_true_labels_are_only_used_for_measuring(finished):
    table = pq.read_table(finished / "stages/2-labels-1/pseudo_labels.parquet").to_pydict()
    stored = read_labels(finished / "stages/2-labels-1")
    assert [int(label) for label in table["label"]] == stored.predictions.tolist()
    result = record_of(finished)["stages"][1]["result"]
    selected = np.array(table["kept"])
    right = np.array(table["label"])[selected] == np.array(table["truth"])[selected]
    assert result["pool/kept"] == selected.sum()
    assert result["pool/right"] == pytest.approx(right.mean(), abs=1e-6)
    assert sum(table["copies"]) == result["pool/shown"]


def test_a_metrics_table_has_a_row_an_epoch_with_the_right_means(finished):
    with (finished / "stages/3-student-1/metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in table]
    assert steps[-1] == 7
    assert steps == sorted(set(steps))
    for row in table:
        assert float(row["train/loss"]) == pytest.approx(
            float(row["train/loss_labelled"]) + float(row["train/loss_pool"]), rel=1e-5
        )


def test_the_table_shows_every_network_with_its_labels(finished):
    table = build_rows(record_of(finished))
    assert [row[0] for row in table] == ["teacher", "student-1", "control"]
    assert table[0][5] == "-"
    assert table[1][5].isdigit()
    assert table[2][5] == "-"


def test_the_report_is_one_page_with_all_that_it_needs(finished):
    assert [file.name for file in (finished / "report").iterdir()] == ["index.html"]
    page = (finished / "report" / "index.html").read_text()
    assert {source.partition(":")[0] for source in re.findall(r'(?:src|href)="([^"#]+)"', page)} == {"data"}
    assert "url(" not in page
    for words in (
        "What was asked",
        "What each stage did",
        "Confusion",
        "Per class",
        "Calibration",
        "What the network saw",
    ):
        assert f"<h2>{words}</h2>" in page
    for words in ("teacher", "student-1", "control", "Pseudo-labels", "look most like it to the network", "test/f1"):
        assert words in page


def test_the_command_of_a_finished_run_prints_its_result_without_torch_and_trains_nothing(finished):
    modified = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    again = [
        *QUIET,
        *NOISY_STUDENT,
        "callbacks.report=true",
        "logger=tensorboard",
        f"paths.outputs={finished.parents[1]}",
    ]
    process, loaded = loaded_packages("tutelage.train", *again)
    assert process.returncode == 0, process.stderr
    assert "student-1" in process.stdout
    assert "report: " in process.stdout
    assert not loaded & {"torch", "pytorch_lightning", "albumentations"}
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == modified


def test_a_report_that_was_lost_is_written_again(finished):
    page = finished / "report" / "index.html"
    page.unlink()
    process = command("tutelage.cli", "report", str(finished))
    assert process.returncode == 0, process.stderr
    assert page.exists()


def test_runs_are_listed(finished):
    process = command("tutelage.cli", "runs", str(finished.parents[1]), env={"COLUMNS": "200", "PATH": ""})
    assert process.returncode == 0, process.stderr
    assert finished.name in process.stdout
    assert "finished" in process.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report"], "report needs a run's folder"),
        (["report", "nowhere"], "nowhere: no run; this needs the folder of a finished run"),
        (["runs", "nowhere"], "nowhere: no such folder"),
        (["trian"], "unknown command 'trian': did you mean 'train'?"),
        (["train", "--foo"], "unknown flag --foo"),
    ],
)
def test_a_wrong_command_is_an_error_of_one_line(arguments, message):
    process = command("tutelage.cli", *arguments)
    assert process.returncode == 2
    assert message in process.stderr
    assert process.stderr.count("\n") == 1


def test_a_run_json_that_cannot_be_read_is_an_error_and_stays(tmp_path):
    from tutelage.errors import UserError

    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json cannot be read .*attempt=2"):
        read_record(RunFolder(tmp_path))
    assert (tmp_path / "run.json").read_text() == "{"


def test_attempt_2_starts_anew_beside_the_old_run(outputs):
    assert run(outputs, "debug=tiny") == 0
    assert run(outputs, "debug=tiny", "attempt=2") == 0
    assert len(list(outputs.glob("*/*/run.json"))) == 2


def test_two_runs_of_the_same_science_give_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(tmp_path / name, "debug=tiny", f"seed={seed}") == 0
    first, second, third = (outcome(tmp_path / name) for name in "abc")
    assert first == second
    assert first["stages"][0]["weights_sha256"] != third["stages"][0]["weights_sha256"]


def test_a_crash_is_recorded_and_the_same_command_resumes(outputs):
    def crash() -> None:
        from tutelage.runs import evaluate

        def full_disk(*_):
            raise OSError("disk full")

        evaluate.compute_metrics = full_disk

    assert run(outputs, "debug=tiny", before=crash) not in (0, 2)
    record = record_of(only_run(outputs))
    assert record["status"] == "failed"
    assert record["reason"] == "OSError: disk full"
    assert run(outputs, "debug=tiny") == 0
    assert record_of(only_run(outputs))["status"] == "finished"


def test_the_number_of_threads_is_recorded_and_used_again(outputs):
    assert run(outputs, "debug=tiny", "trainer.threads=1") == 0
    assert record_of(only_run(outputs))["threads"] == 1


def test_validation_picks_the_best_epoch(outputs):
    overrides = ["schedule.epochs=null", "schedule.steps=12", "data.limit=200", "data.validation=outside:50"]
    assert run(outputs, *overrides, "data.labels_per_class=10", "optimizer.lr=0.02") == 0
    folder = only_run(outputs)
    with (folder / "metrics.csv").open() as file:
        accuracies = [float(row["val/accuracy"]) for row in csv.DictReader(file)]
    record = record_of(folder)
    assert record["result"]["val/accuracy"] == pytest.approx(max(accuracies), abs=1e-6)
    assert (folder / "checkpoints" / "best.ckpt").exists()
    assert not (folder / "checkpoints" / "final.ckpt").exists()


@pytest.mark.slow
def test_an_image_folder_with_names_of_any_bytes_trains_to_the_end(outputs, tmp_path, capfd):
    from helpers.images import write_images

    labels = (r"$\frac{1}{$", os.fsdecode(b"\xff\n"), "[red]\u2028😀قطة日本")
    for label in labels:
        write_images(tmp_path / "images" / "train" / label, 6)
        write_images(tmp_path / "images" / "test" / label, 2)
        write_images(tmp_path / "images" / "test-[b] $x$" / label, 1)
    write_images(tmp_path / "images" / "unlabelled" / os.fsdecode(b"\xe9\n"), 5)
    overrides = [
        "data=image_folder",
        "recipe=none",
        f"data.root={tmp_path / 'images'}",
        "strategy=noisy_student",
        "debug=tiny",
    ]
    assert run(outputs, *overrides, "data.image_size=16", "callbacks.report=true") == 0
    folder = only_run(outputs)
    table = pq.read_table(next(folder.glob("stages/2-*/pseudo_labels.parquet"))).to_pydict()
    assert table["name"] == [rf"unlabelled/\xe9\n/{n}.png" for n in range(5)]
    assert table["truth"] == [None] * 5
    shown = capfd.readouterr()
    assert "[b] $x$" in shown.out
    assert "missing from font" not in shown.err
    classes = [r"$\frac{1}{$", r"[red]\u2028😀قطة日本", r"\xff\n"]
    assert record_of(folder)["data"]["classes"] == classes
    texts = [file.read_text() for file in folder.rglob("*.*") if file.suffix in {".json", ".csv", ".yaml", ".html"}]
    assert not any(separator in text for text in texts for separator in ("\u2028", "\u2029", "\x85"))
    page = (folder / "report" / "index.html").read_text()
    assert "<h2>Pseudo-labels</h2>" in page
    assert all(html.escape(name) in page for name in classes)


@pytest.mark.parametrize("name", ["fashion_noisy_student", "fashion_lenet5"])
def test_fashion_experiments_run_tiny(name, outputs):
    from tutelage.data.datasets.fashion_mnist import DEBIAN_FOLDER

    if not DEBIAN_FOLDER.is_dir():
        import os

        assert not os.environ.get("CI"), "dataset-fashion-mnist is not installed"
        pytest.skip("needs Debian's dataset-fashion-mnist")
    assert run(outputs, f"experiment={name}", "debug=tiny") == 0


def test_a_sweep_runs_each_job_into_its_own_folder(outputs):
    process = command("tutelage.train", "-m", *QUIET, "debug=tiny", f"paths.outputs={outputs}", "seed=0,1")
    assert process.returncode == 0, process.stderr
    assert len(list(outputs.glob("runs/*/run.json"))) == 2
    (record,) = (outputs / ".sweeps").glob("*/sweep.json")
    assert json.loads(record.read_text())


def test_a_job_of_a_sweep_that_is_wrong_does_not_keep_the_others_from_running(outputs):
    sweep = ["-m", *QUIET, "debug=tiny", "model=timm", "model.name=resnet_18,test_resnet", f"paths.outputs={outputs}"]
    process = command("tutelage.train", *sweep)
    assert process.returncode == 1
    assert "model.name=resnet_18: timm has no such architecture" in process.stderr
    assert only_run(outputs)


def test_the_recorded_command_can_be_typed_again(outputs):
    students = "strategy.students=[{model: {width: 1.5}, length: 1.0}]"
    arguments = [
        "strategy=noisy_student",
        students,
        "debug=tiny",
        "data.labels_per_class=2",
        f"paths.outputs={outputs}",
    ]
    assert command("tutelage.train", *QUIET, *arguments).returncode == 0
    recorded = shlex.split(record_of(only_run(outputs))["command"])
    assert recorded == ["tutelage", "train", *QUIET, *arguments]
