"""The command is the run: killed anywhere and typed again, it ends with the same weights and tables."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.commands import fresh_command
from helpers.overrides import CLIPPED_AND_SMOOTHED, NOISY_STUDENT, QUIET
from helpers.paths import ROOT
from helpers.runs import only_run, outcome, run, tables
from helpers.traps import kill_before_save, send_signal
from tutelage.config.allowed_folder import ALLOW_VARIABLE
from tutelage.runs.checkpoints import LAST, PREVIOUS, WholeCheckpointIO, newest_sound
from tutelage.storage import is_sound
from tutelage.testing import kill_after

CALLBACK = "callbacks.extra=[{_target_: helpers.lightning.Decay, rate: 1e-3}]"  # with a state that weights depend on
VALIDATED = (*NOISY_STUDENT, "data.validation=outside:30", *CLIPPED_AND_SMOOTHED, CALLBACK)
STAGES = {"teacher": range(1, 8), "student-1": (1, 3, 6, 7), "control": (1, 7, 14)}


@pytest.fixture(scope="module", autouse=True)
def callback_allowed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ALLOW_VARIABLE, "helpers")
        yield


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(NOISY_STUDENT, marks=pytest.mark.slow, id="no validation"),
        pytest.param(VALIDATED, id="validation"),
    ],
)
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    outputs = tmp_path_factory.mktemp("undisturbed")
    assert run(outputs, *request.param) == 0
    return request.param, outcome(outputs)


@pytest.mark.parametrize(("stage", "steps"), STAGES.items())
def test_a_run_killed_after_each_step_ends_with_the_same_weights_and_tables(undisturbed, outputs, stage, steps):
    overrides, expected = undisturbed
    for step in steps:
        assert run(outputs, *overrides, before=kill_after(stage, step)) == -signal.SIGKILL
    assert run(outputs, *overrides) == 0
    assert outcome(outputs) == expected


def test_a_run_killed_after_a_validation_ends_with_the_same_weights_and_tables(outputs, tmp_path):
    assert run(tmp_path / "undisturbed", *VALIDATED) == 0
    for step in (4, 7):
        trap = kill_after("student-1", step, when="on_validation_end")
        assert run(outputs, *VALIDATED, before=trap) == -signal.SIGKILL
    assert run(outputs, *VALIDATED) == 0
    assert outcome(outputs) == outcome(tmp_path / "undisturbed")


def test_a_run_killed_between_checkpoints_goes_back_to_the_last_one(undisturbed, outputs):
    overrides, expected = undisturbed

    assert run(outputs, *overrides, before=kill_after("teacher", 3)) == -signal.SIGKILL
    assert run(outputs, *overrides, before=kill_before_save) == -signal.SIGKILL
    assert len(tables(only_run(outputs))["stages/1-teacher/metrics.csv"]) <= 5
    assert run(outputs, *overrides) == 0
    assert outcome(outputs) == expected


def test_a_run_killed_while_labelling_or_testing_ends_the_same_and_says_where_it_goes_on(undisturbed, outputs, capfd):
    overrides, expected = undisturbed

    def die_in(file: str, name: str) -> Callable[[], None]:
        def trap() -> None:
            from tutelage.runs import evaluate, label

            module = {"label": label, "evaluate": evaluate}[file]
            setattr(module, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))

        return trap

    moments = [("label", "write_table"), ("label", "write_summary"), ("evaluate", "write_predictions")]
    for file, name in [*moments, ("evaluate", "compute_metrics")]:
        assert run(outputs, *overrides, before=die_in(file, name)) == -signal.SIGKILL
    assert run(outputs, *overrides) == 0
    assert outcome(outputs) == expected
    lines = re.findall(r"goes on at stage \d of \d, (.*)", capfd.readouterr().err)
    pool = 60 if overrides is VALIDATED else 90
    assert lines == [
        *[f"labels-1: {pool} of {pool} pool images are labelled"] * 2,
        *["test: from its beginning"] * 2,
    ]


def test_the_number_of_workers_changes_nothing_also_when_killed(undisturbed, outputs):
    overrides, expected = undisturbed
    overrides = (*overrides, "data.num_workers=3")
    assert run(outputs, *overrides, before=kill_after("student-1", 3)) == -signal.SIGKILL
    assert run(outputs, *overrides) == 0
    assert outcome(outputs) == expected


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_and_the_same_command_goes_on(undisturbed, outputs, sent, capfd):
    overrides, expected = undisturbed
    assert run(outputs, *overrides, before=send_signal(sent, step=4)) == 128 + sent
    assert "The same command goes on from here" in capfd.readouterr().err
    checkpoint = torch.load(only_run(outputs) / "stages/1-teacher/checkpoints" / LAST, weights_only=True)
    assert checkpoint["global_step"] == 4
    assert run(outputs, *overrides) == 0
    (line,) = re.findall("goes on at .*", capfd.readouterr().err)
    steps = outcome(outputs)["stages"][0]["steps"]
    assert re.fullmatch(rf"goes on at stage 1 of \d, teacher: after step 4 of {steps}, epoch \d of \d", line)
    assert outcome(outputs) == expected


def test_sigusr1_saves_and_the_run_goes_on(outputs):
    saved_steps = []

    def watch() -> None:
        from tutelage.runs import checkpoints

        send_signal(signal.SIGUSR1, step=4)()
        save = checkpoints.WholeCheckpointIO.save_checkpoint

        def note(self, checkpoint, path, storage_options=None):
            saved_steps.append(checkpoint["global_step"])
            (outputs / "saved").write_text(json.dumps(saved_steps))
            save(self, checkpoint, path)

        checkpoints.WholeCheckpointIO.save_checkpoint = note

    assert run(outputs, *NOISY_STUDENT, before=watch) == 0
    assert json.loads((outputs / "saved").read_text())[:2] == [4, 7]


@pytest.mark.parametrize("undisturbed", [VALIDATED], ids=["validation"], indirect=True)
@pytest.mark.parametrize("harm", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(undisturbed, outputs, harm, capfd):
    overrides, expected = undisturbed
    assert run(outputs, *overrides, before=kill_after("teacher", 5)) == -signal.SIGKILL
    last = only_run(outputs) / "stages/1-teacher/checkpoints" / LAST
    damage(last, harm)
    assert run(outputs, *overrides) == 0
    warned = capfd.readouterr().err
    assert "last.ckpt is damaged" in warned
    assert "going on from previous.ckpt" in warned
    assert outcome(outputs) == expected


def damage(path: Path, harm: str) -> None:
    content = bytearray(path.read_bytes())
    if harm == "flipped":
        tensor = max(torch.load(path, weights_only=True)["state_dict"].values(), key=torch.Tensor.numel)
        position = bytes(content).find(tensor.numpy().tobytes())
        assert position > 0
        content[position + 100] ^= 1
    path.write_bytes(content[: {"truncated": len(content) // 2, "flipped": None, "empty": 0}[harm]])


def test_two_damaged_checkpoints_mean_a_fresh_start_of_the_stage(tmp_path):
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"not a checkpoint")
    assert newest_sound(tmp_path) == (None, [tmp_path / LAST, tmp_path / PREVIOUS])


def test_tensorboard_shows_each_epoch_of_a_killed_run_once(outputs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = (*NOISY_STUDENT, "logger=tensorboard")

    def die_unsaved() -> None:
        from tutelage.runs import callbacks

        hook = callbacks.EpochTable.on_train_batch_end

        def trap(self, trainer, *rest):
            hook(self, trainer, *rest)
            if trainer.global_step == 6:
                os.kill(os.getpid(), signal.SIGKILL)

        callbacks.EpochTable.on_train_batch_end = trap

    assert run(outputs, *overrides, before=die_unsaved) == -signal.SIGKILL  # before the first checkpoint
    assert run(outputs, *overrides, before=kill_after("teacher", 5)) == -signal.SIGKILL
    assert run(outputs, *overrides, before=die_unsaved) == -signal.SIGKILL  # past the last one
    assert run(outputs, *overrides) == 0
    teacher = only_run(outputs) / "stages" / "1-teacher"
    events = EventAccumulator(str(teacher / "tensorboard"))
    events.Reload()
    with (teacher / "metrics.csv").open() as file:
        rows = [(int(row["step"]), float(row["train/loss"])) for row in csv.DictReader(file)]
    logged = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert [step for step, _ in logged] == [step for step, _ in rows]
    assert [value for _, value in logged] == pytest.approx([value for _, value in rows])


@given(st.data())
def test_any_flipped_or_missing_byte_of_a_checkpoint_is_found(data):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / LAST
        WholeCheckpointIO().save_checkpoint({"weights": torch.arange(50.0), "step": 3}, file)
        assert is_sound(file)
        assert WholeCheckpointIO().load_checkpoint(file)["step"] == 3
        content = bytearray(file.read_bytes())
        position = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[position] ^= 1 << data.draw(st.integers(0, 7))
        else:
            del content[position:]
        file.write_bytes(content)
        assert not is_sound(file)


def test_the_checkpoint_before_is_kept_until_the_new_one_is_complete(tmp_path):
    io = WholeCheckpointIO()
    for step in (1, 2, 3):
        io.save_checkpoint({"step": step}, tmp_path / LAST)
    assert [io.load_checkpoint(tmp_path / name)["step"] for name in (PREVIOUS, LAST)] == [2, 3]
    with pytest.raises(AttributeError):
        io.save_checkpoint({"step": lambda: 4}, tmp_path / LAST)
    assert [io.load_checkpoint(tmp_path / name)["step"] for name in (PREVIOUS, LAST)] == [2, 3]


@pytest.mark.parametrize("stage", ["1-teacher/checkpoints/WEIGHTS", "2-labels-1/labels/00000.npy"])
def test_damaged_files_of_a_finished_stage_are_made_again(undisturbed, outputs, stage, capfd):
    overrides, expected = undisturbed
    assert run(outputs, *overrides, before=kill_after("student-1", 2)) == -signal.SIGKILL
    weights = "best.ckpt" if "data.validation=outside:30" in overrides else "final.ckpt"
    damage(only_run(outputs) / "stages" / stage.replace("WEIGHTS", weights), "truncated")
    assert run(outputs, *overrides) == 0
    assert "is damaged: stage " in capfd.readouterr().err
    assert outcome(outputs) == expected


@pytest.mark.parametrize("undisturbed", [VALIDATED], ids=["validation"], indirect=True)
@pytest.mark.parametrize("damage", ["gone", "of another teacher"])
def test_missing_labels_or_those_of_another_teacher_are_made_again(undisturbed, outputs, damage, capfd):
    overrides, expected = undisturbed
    assert run(outputs, *overrides, before=kill_after("student-1", 2)) == -signal.SIGKILL
    about = only_run(outputs) / "stages/2-labels-1/labels/about.json"
    if damage == "gone":
        about.unlink()
    else:
        about.write_text(json.dumps({**json.loads(about.read_text()), "weights": "of another"}))
    assert run(outputs, *overrides) == 0
    assert "stage labels-1 is run again" in capfd.readouterr().err
    assert outcome(outputs) == expected


@pytest.mark.parametrize("undisturbed", [VALIDATED], ids=["validation"], indirect=True)
def test_a_finished_stage_whose_folder_is_gone_is_made_again(undisturbed, outputs):
    overrides, expected = undisturbed
    assert run(outputs, *overrides, before=kill_after("student-1", 2)) == -signal.SIGKILL
    shutil.rmtree(only_run(outputs) / "stages" / "1-teacher")
    assert run(outputs, *overrides) == 0
    assert outcome(outputs) == expected


def test_sigterm_in_the_middle_of_a_validation_saves_and_stops(outputs, tmp_path):
    overrides = ("schedule.epochs=null", "schedule.steps=6", "data.batch_size=8", "data.labels_per_class=2")
    overrides = (*overrides, "data.validation=outside:600")  # two batches

    def trap() -> None:
        from tutelage.runs import callbacks

        hook = callbacks.EpochTable.on_validation_batch_end

        def send(self, trainer, pl_module, outputs, batch, batch_idx, *rest):
            hook(self, trainer, pl_module, outputs, batch, batch_idx, *rest)
            if trainer.global_step == 3 and batch_idx == 0:
                os.kill(os.getpid(), signal.SIGTERM)

        callbacks.EpochTable.on_validation_batch_end = send

    assert run(outputs, *overrides, before=trap) == 128 + signal.SIGTERM
    checkpoint = torch.load(only_run(outputs) / "checkpoints" / LAST, weights_only=True)
    assert checkpoint["global_step"] == 3
    assert run(outputs, *overrides) == 0
    assert run(tmp_path / "undisturbed", *overrides) == 0
    assert outcome(outputs) == outcome(tmp_path / "undisturbed")


@pytest.mark.parametrize("undisturbed", [VALIDATED], ids=["validation"], indirect=True)
def test_sigterm_to_the_whole_process_group_saves_and_stops_with_workers_too(undisturbed, outputs):
    overrides, expected = undisturbed

    def trap() -> None:
        from tutelage.runs import callbacks

        os.setpgid(0, 0)
        hook = callbacks.EpochTable.on_train_batch_end

        def send(self, trainer, *rest):
            hook(self, trainer, *rest)
            if trainer.global_step == 3:
                os.killpg(0, signal.SIGTERM)
                time.sleep(0.3)

        callbacks.EpochTable.on_train_batch_end = send

    assert run(outputs, *overrides, "data.num_workers=2", before=trap) == 128 + signal.SIGTERM
    assert run(outputs, *overrides) == 0
    assert outcome(outputs) == expected


def test_a_second_process_on_the_same_run_is_an_error_that_names_the_first(outputs):
    from tutelage.app.job import run_job
    from tutelage.config.compose import compose
    from tutelage.errors import UserError
    from tutelage.runs import RunFolder, run_path
    from tutelage.storage import hold_lock

    config = compose([*QUIET, f"paths.outputs={outputs}", *NOISY_STUDENT])
    with (
        hold_lock(RunFolder(run_path(config, "")).lock_file, "run"),
        pytest.raises(UserError, match=rf"in use by process {os.getpid()} on \S+ \(since .*wait for it, or stop it"),
    ):
        run_job(config)
    assert not list(outputs.glob("*/*/run.json"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_real_command_killed_at_random_moments_of_every_stage_ends_the_same(tmp_path):
    """No forks, no traps: the command itself, killed with -9 at a random moment of each of its stages."""
    overrides = ["experiment=digits_noisy_student", "schedule.steps=60", "trainer.threads=1", "callbacks.report=false"]
    overrides += ["callbacks.checkpoint_minutes=0.001"]
    assert fresh_command("tutelage.train", *overrides, f"paths.outputs={tmp_path / 'a'}").returncode == 0
    moments = random.Random(os.environ.get("KILL_SEED", str(time.time_ns())))
    for stage in ("1-teacher", "2-labels-1", "3-student-1", "4-labels-2", "5-student-2", "6-control"):
        arguments = [sys.executable, "-m", "tutelage.train", *overrides, f"paths.outputs={tmp_path / 'b'}"]
        process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and not list((tmp_path / "b").glob(f"*/*/stages/{stage}")):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.wait()
    assert fresh_command("tutelage.train", *overrides, f"paths.outputs={tmp_path / 'b'}").returncode == 0
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
