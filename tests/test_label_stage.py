"""Labelling the pool: views, one process and several, killed, stopped, and helped from outside."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.commands import command
from helpers.forks import call_in_fork
from helpers.runs import only_run, outcome, run
from tutelage.data import LabelStore, data_module, read_labels, shard_files
from tutelage.errors import UserError
from tutelage.models import evaluation, load_classifier, tta_probabilities
from tutelage.models.tta_views import shift_images
from tutelage.runs import read_config
from tutelage.runs.folder import RunFolder
from tutelage.runs.label import fill_store, store_metadata
from tutelage.runs.observer import Observer

TINY = (
    "data=digits",
    "data.labels_per_class=3",
    "model=perceptron",
    "strategy=noisy_student",
    "strategy.students=[{length:1.0},{length:1.0}]",
    "strategy.control=false",
    "schedule.epochs=null",
    "schedule.steps=4",
    "data.batch_size=16",
)
STAGE = "stages/2-labels-1"
POOL = 1_317  # images: 3 shards


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    outputs = tmp_path_factory.mktemp("labelling")
    assert run(outputs, *TINY) == 0
    return outputs


@pytest.fixture
def copied_run(finished, tmp_path) -> Path:
    """Return a copy of a finished run's folder, which a test may damage."""
    shutil.copytree(finished, tmp_path / "outputs")
    return only_run(tmp_path / "outputs")


def read_shards(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.glob("stages/*/labels/*.npy"))}


def help_to_label(folder: Path) -> int:
    from tutelage.runs import label_worker

    return label_worker.help_to_label(folder, {}, Observer())


def test_a_shift_moves_the_image_and_repeats_its_edge():
    image = torch.arange(9).reshape(1, 1, 3, 3)
    assert shift_images(image, 1, 0)[0, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    assert shift_images(image, 0, -1)[0, 0].tolist() == [[1, 2, 2], [4, 5, 5], [7, 8, 8]]


@pytest.mark.parametrize(("views", "count"), [("one", 1), ("mirrored", 2), ("shifted", 5), ("mirrored_shifted", 10)])
def test_probabilities_are_the_mean_over_different_views(views, count):
    images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    inputs = []

    def network(view: torch.Tensor) -> torch.Tensor:
        inputs.append(view)
        return view.float()[:, 0, 0, :5]

    probabilities = tta_probabilities(network, images, views)
    assert len(inputs) == count
    assert len({view.numpy().tobytes() for view in inputs}) == count
    assert (inputs[0] == images).all()
    torch.testing.assert_close(probabilities, sum(network(view).softmax(1) for view in list(inputs)) / count)
    del inputs[count:]
    if "mirrored" in views:
        assert all(any((other_view == view.flip(-1)).all() for other_view in inputs) for view in inputs)
    if "shifted" in views:
        shifted = [view for view in inputs if (view[:, :, 5:20, 5:20] == images[:, :, 7:22, 7:22]).all()]
        assert len(shifted) == 1  # by a 14th of 28 pixels up and to the left


def test_the_store_holds_the_teachers_probabilities_for_the_pool_without_augmentation(finished):
    folder = only_run(finished)
    data = data_module(read_config(RunFolder(folder)).data)
    teacher = load_classifier(folder / "stages/1-teacher/checkpoints/final.ckpt").eval()
    images = torch.from_numpy(data.source.images[data.splits.pool]).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = teacher(images).softmax(dim=1).numpy()
    labels = read_labels(folder / STAGE)
    assert labels.count == len(data.splits.pool) == POOL
    assert labels[np.arange(POOL)] == pytest.approx(expected, abs=5e-4)


def test_the_second_round_counts_the_labels_that_changed(finished):
    run_folder = only_run(finished)
    entries = {entry["name"]: entry for entry in json.loads((run_folder / "run.json").read_text())["stages"]}
    assert "pool/changed" not in entries["labels-1"]["result"]
    folders = sorted(run_folder.glob("stages/*-labels-*"))
    first_predictions, second_predictions = (read_labels(folder).predictions for folder in folders)
    assert entries["labels-2"]["result"]["pool/changed"] == pytest.approx(
        (first_predictions != second_predictions).mean(), abs=1e-6
    )
    assert (
        json.loads((folders[1] / "round.json").read_text())["changed"]
        == (first_predictions != second_predictions).sum()
    )


def test_views_are_averaged_and_recorded_with_the_labels(finished, tmp_path):
    assert run(tmp_path, *TINY, "strategy.tta_views=mirrored") == 0
    plain, mirrored = (only_run(outputs) / STAGE for outputs in (finished, tmp_path))
    assert json.loads((mirrored / "labels/about.json").read_text())["views"] == "mirrored"
    assert np.abs(read_labels(plain)[np.arange(50)] - read_labels(mirrored)[np.arange(50)]).max() > 0.01


def kill_at_shard(shard: int) -> Callable[[], None]:
    """Return a trap that kills a process in the middle of a shard's file."""

    def trap() -> None:
        from tutelage.data.pseudo_labels import store as label_store

        write = label_store.write_checked

        def write_half(path: Path, put: Callable) -> str:
            def half(file) -> None:
                file.write(b"half a shard")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)

            return write(path, half if path.name == f"{shard:05d}.npy" else put)

        label_store.write_checked = write_half

    return trap


def test_a_run_killed_in_the_middle_of_a_shard_resumes_after_the_last_whole_one(finished, outputs):
    assert run(outputs, *TINY, before=kill_at_shard(1)) == -signal.SIGKILL
    folder = only_run(outputs)
    (whole,) = (folder / STAGE / "labels").glob("*.npy")
    modified = whole.stat().st_mtime_ns
    assert list((folder / STAGE / "labels").glob(".partial-*"))
    assert run(outputs, *TINY) == 0
    assert whole.stat().st_mtime_ns == modified
    assert read_shards(folder) == read_shards(only_run(finished))
    assert outcome(outputs) == outcome(finished)
    assert not list(folder.rglob(".partial-*"))
    assert not list((folder / STAGE / "labels/.locks").iterdir())


def test_a_run_stopped_while_labelling_keeps_its_shards(finished, outputs):
    def stop() -> None:
        write = LabelStore.write

        def stopping(self, shard, rows):
            write(self, shard, rows)
            os.kill(os.getpid(), signal.SIGTERM)

        LabelStore.write = stopping

    assert run(outputs, *TINY, before=stop) == 128 + signal.SIGTERM
    assert read_shards(only_run(outputs))
    assert run(outputs, *TINY) == 0
    assert outcome(outputs) == outcome(finished)
    assert read_shards(only_run(outputs)) == read_shards(only_run(finished))


def test_two_helpers_write_the_same_shards_as_the_run_alone(finished, copied_run):
    for file in shard_files(copied_run / STAGE, POOL):
        file.unlink()
    children = []
    for _ in range(2):
        child = os.fork()
        if not child:
            try:
                help_to_label(copied_run)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert read_shards(copied_run) == read_shards(only_run(finished))


def test_a_run_waits_for_a_shard_claimed_by_another_process_and_takes_it_over_if_that_dies(finished, copied_run):
    files = shard_files(copied_run / STAGE, POOL)
    record = json.loads((copied_run / "run.json").read_text())
    record["status"], record["stages"] = "failed", record["stages"][:1]
    (copied_run / "run.json").write_text(json.dumps(record))
    for file in files:
        file.unlink()
    about = json.loads((copied_run / STAGE / "labels/about.json").read_text())
    metadata = {name: value for name, value in about.items() if name not in {"images", "classes", "shard"}}
    child = os.fork()
    if not child:
        with LabelStore(copied_run / STAGE, POOL, 10, metadata).claim(1):
            while not (files[0].exists() and files[2].exists()):  # the run writes these and skips the claimed one
                time.sleep(0.01)
            time.sleep(0.3)
            os._exit(files[1].exists())
    while not (copied_run / STAGE / "labels/.locks/00001").exists():
        time.sleep(0.01)
    outputs = copied_run.parents[1]
    assert run(outputs, *TINY) == 0
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read_shards(copied_run) == read_shards(only_run(finished))
    assert outcome(outputs) == outcome(finished)


def test_progress_counts_each_image_once_also_those_labelled_by_others(copied_run):

    (copied_run / STAGE / "labels/00000.npy").unlink()
    (copied_run / STAGE / "labels/00002.npy").unlink()
    store = LabelStore.open_existing(copied_run / STAGE)
    data = data_module(read_config(RunFolder(copied_run)).data)
    teacher = load_classifier(copied_run / "stages/1-teacher/checkpoints/final.ckpt")
    assert list(fill_store(store, teacher, data, torch.device("cpu"))) == [1024, POOL]
    assert store.complete


def test_the_label_command_labels_the_missing_shards_and_counts_the_images(finished, copied_run):
    (copied_run / STAGE / "labels/00002.npy").unlink()
    record = copied_run / "run.json"
    record.write_text(record.read_text().replace('"status": "finished"', '"status": "running"'))
    process = command("tutelage.cli", "label", str(copied_run))
    assert process.returncode == 0, process.stderr
    assert f"{POOL - 1024} pool images labelled here" in process.stderr
    assert read_shards(copied_run) == read_shards(only_run(finished))
    assert help_to_label(copied_run) == 0  # nothing is left


def test_a_helper_writes_nothing_for_a_teacher_that_was_trained_again(copied_run):
    (copied_run / STAGE / "labels/00002.npy").unlink()
    shutil.copy(
        copied_run / "stages/3-student-1/checkpoints/final.ckpt", copied_run / "stages/1-teacher/checkpoints/final.ckpt"
    )
    assert call_in_fork(lambda: help_to_label(copied_run)) == 0
    assert not (copied_run / STAGE / "labels/00002.npy").exists()


def test_a_helper_with_other_images_is_an_error(copied_run):
    (copied_run / STAGE / "labels/00002.npy").unlink()
    file = copied_run / "config.yaml"
    file.write_text(file.read_text().replace("labels_per_class: 3", "labels_per_class: 4"))
    with pytest.raises(UserError, match="other images than the run has; say where these lie by data.root="):
        help_to_label(copied_run)


def test_a_run_that_needs_no_labels_is_an_error_at_once(copied_run, tmp_path):
    assert "this run is finished; there is nothing to label" in command("tutelage.cli", "label", str(copied_run)).stdout
    process = command("tutelage.cli", "label", str(tmp_path))
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert "no run; label needs the folder of a run that labels its pool" in process.stderr


def test_a_helper_on_another_kind_of_device_is_an_error(copied_run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (copied_run / STAGE / "labels/00002.npy").unlink()
    file = copied_run / STAGE / "labels/about.json"
    file.write_text(file.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    with pytest.raises(UserError, match="the run labels on cuda, here it would be cpu"):
        help_to_label(copied_run)


def test_a_teacher_whose_logits_are_not_finite_is_an_error_of_one_line(outputs, capfd):
    def diverge() -> None:
        from tutelage.runs import label

        label.tta_probabilities = lambda network, images, views: torch.full((len(images), 10), torch.nan)

    def work() -> int:
        from tutelage.app.job import run_job
        from tutelage.config.compose import compose
        from tutelage.errors import complain

        diverge()
        try:
            return run_job(compose(["callbacks=quiet", "trainer.threads=1", f"paths.outputs={outputs}", *TINY]))
        except UserError as error:
            return complain(error)

    assert call_in_fork(work) == 2
    assert "final.ckpt: its logits for the pool are not finite; its weights are unusable" in capfd.readouterr().err


def test_a_network_that_evaluates_fewer_images_at_once_gives_the_same_labels_and_the_store_says_so(
    finished, tmp_path, monkeypatch
):
    folder = only_run(finished)
    data = data_module(read_config(RunFolder(folder)).data)
    network = load_classifier(folder / "stages/1-teacher/checkpoints/final.ckpt")
    context = SimpleNamespace(
        config=read_config(RunFolder(folder)),
        device=torch.device("cpu"),
        data=data,
        train_stages=[SimpleNamespace(name="teacher")],
        weights_file=lambda stage: folder / "teacher",
        folder=RunFolder(folder),
        record=SimpleNamespace(content={}),
    )
    stage = SimpleNamespace(teacher="teacher", tta_views="one")
    probabilities = []
    for layer_bytes, size in ((evaluation.LAYER_BYTES, None), (1 << 19, 64)):
        monkeypatch.setattr(evaluation, "LAYER_BYTES", layer_bytes)
        metadata = store_metadata(context, stage, network)
        assert metadata.get("batch_size") == size
        store = LabelStore(tmp_path / str(size), POOL, 10, metadata)
        assert len(list(fill_store(store, network, data, context.device))) == -(-POOL // (size or 512))
        assert store.complete
        probabilities.append(read_labels(tmp_path / str(size))[np.arange(POOL)])
    np.testing.assert_allclose(*probabilities, atol=1e-3)
