"""The command is the run: killed anywhere and typed again, it ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import QUIET, ROOT, only_run, outcome, run, tables
from tutelage.runs.checkpoints import LAST, PREVIOUS, is_sound, newest_sound

# Every state that a resume has to bring back: dropout, averaged weights, validation and its best, several stages.
NOISY = (
    "strategy=noisy_student",
    "strategy.students=[{model:{dropout:0.3,width:1.5},length:1.0}]",
    "data.labels_per_class=3",
    "data.limit=120",
    "data.batch_size=8",
    "augmentation=affine_randaugment",
    "optimizer.ema_decay=0.9",
    "schedule.epochs=null",
    "schedule.steps=7",
)
VALIDATED = (*NOISY, "data.validation=outside:30")
STAGES = {"teacher": range(1, 8), "student-1": range(1, 8), "control": (1, 7, 8, 13, 14)}


def killed_after(stage: str, step: int, when: str = "on_train_batch_end") -> Callable[[], None]:
    """Return a trap that saves at every step and kills the process with -9 after ``step`` of ``stage``."""

    def trap() -> None:
        from tutelage.runs import callbacks, checkpoints

        current = {}
        seeded = callbacks.StepRandomness.__init__
        hook = getattr(checkpoints.Checkpoints, when)

        def remember(self, key):
            current["stage"] = key.stage
            seeded(self, key)

        def save_then_die(self, trainer, *rest):
            self._seconds = 0.0
            hook(self, trainer, *rest)
            if current["stage"] == stage and trainer.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)

        callbacks.StepRandomness.__init__ = remember
        setattr(checkpoints.Checkpoints, when, save_then_die)

    return trap


@pytest.fixture(scope="module", params=[NOISY, VALIDATED], ids=["no validation", "validation"])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    outputs = tmp_path_factory.mktemp("undisturbed")
    assert run(outputs, *request.param) == 0
    return request.param, outcome(outputs)


@pytest.mark.parametrize(("stage", "steps"), STAGES.items())
def test_a_run_killed_after_each_step_ends_with_the_same_weights_and_tables(undisturbed, outputs, stage, steps):
    overrides, expected = undisturbed
    for step in steps:
        assert run(outputs, *overrides, before=killed_after(stage, step)) == -signal.SIGKILL
    assert run(outputs, *overrides) == 0
    assert outcome(outputs) == expected


def test_a_run_killed_after_a_validation_ends_with_the_same_weights_and_tables(outputs, tmp_path):
    assert run(tmp_path / "undisturbed", *VALIDATED) == 0
    for step in (4, 7):
        trap = killed_after("student-1", step, when="on_validation_end")
        assert run(outputs, *VALIDATED, before=trap) == -signal.SIGKILL
    assert run(outputs, *VALIDATED) == 0
    assert outcome(outputs) == outcome(tmp_path / "undisturbed")


def test_a_run_killed_between_checkpoints_goes_back_to_the_last_one(undisturbed, outputs):
    overrides, expected = undisturbed

    def die_without_saving() -> None:
        from tutelage.runs import callbacks

        hook = callbacks.EpochTable.on_train_batch_end

        def trap(self, trainer, *rest):
            hook(self, trainer, *rest)
            if trainer.global_step == 5:
                os.kill(os.getpid(), signal.SIGKILL)

        callbacks.EpochTable.on_train_batch_end = trap

    assert run(outputs, *overrides, before=killed_after("teacher", 3)) == -signal.SIGKILL
    assert run(outputs, *overrides, before=die_without_saving) == -signal.SIGKILL
    assert len(tables(only_run(outputs))["stages/1-teacher/metrics.csv"]) <= 5
    assert run(outputs, *overrides) == 0
    assert outcome(outputs) == expected


def test_a_run_killed_while_labelling_or_testing_ends_the_same(undisturbed, outputs):
    overrides, expected = undisturbed

    def die_in(name: str) -> Callable[[], None]:
        def trap() -> None:
            from tutelage.runs import runner

            setattr(runner, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))

        return trap

    for name in ("write_probabilities", "write_table", "_write_answers", "measure"):
        assert run(outputs, *overrides, before=die_in(name)) == -signal.SIGKILL
    assert run(outputs, *overrides) == 0
    assert outcome(outputs) == expected


@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_changes_nothing_also_when_killed(undisturbed, outputs, workers):
    overrides, expected = undisturbed
    overrides = (*overrides, f"data.num_workers={workers}")
    assert run(outputs, *overrides, before=killed_after("student-1", 3)) == -signal.SIGKILL
    assert run(outputs, *overrides) == 0
    assert outcome(outputs) == expected


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_and_the_same_command_goes_on(undisturbed, outputs, sent, capfd):
    overrides, expected = undisturbed
    assert run(outputs, *overrides, before=signalled(sent, step=4)) == 128 + sent
    assert "The same command goes on from here" in capfd.readouterr().err
    checkpoint = torch.load(only_run(outputs) / "stages/1-teacher/checkpoints" / LAST, weights_only=True)
    assert checkpoint["global_step"] == 4
    assert run(outputs, *overrides) == 0
    assert outcome(outputs) == expected


def signalled(sent: int, step: int) -> Callable[[], None]:
    """Return a trap that sends ``sent`` to the process during ``step`` of the first stage."""

    def trap() -> None:
        from tutelage.runs import callbacks

        hook = callbacks.EpochTable.on_train_batch_end

        def send(self, trainer, *rest):
            hook(self, trainer, *rest)
            if trainer.global_step == step:
                os.kill(os.getpid(), sent)

        callbacks.EpochTable.on_train_batch_end = send

    return trap


def test_sigusr1_saves_and_the_run_goes_on(outputs):
    written = []

    def watch() -> None:
        from tutelage.runs import checkpoints

        signalled(signal.SIGUSR1, step=4)()
        save = checkpoints.WholeCheckpointIO.save_checkpoint

        def note(self, checkpoint, path, storage_options=None):
            written.append(checkpoint["global_step"])
            (outputs / "saved").write_text(json.dumps(written))
            save(self, checkpoint, path)

        checkpoints.WholeCheckpointIO.save_checkpoint = note

    assert run(outputs, *NOISY, before=watch) == 0
    assert json.loads((outputs / "saved").read_text())[:2] == [4, 7]


@pytest.mark.parametrize("harm", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(undisturbed, outputs, harm, capfd):
    overrides, expected = undisturbed
    assert run(outputs, *overrides, before=killed_after("teacher", 5)) == -signal.SIGKILL
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
        place = bytes(content).find(tensor.numpy().tobytes())
        assert place > 0
        content[place + 100] ^= 1
    path.write_bytes(content[: {"truncated": len(content) // 2, "flipped": None, "empty": 0}[harm]])


def test_two_damaged_checkpoints_mean_a_fresh_start_of_the_stage(tmp_path):
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"not a checkpoint")
    assert newest_sound(tmp_path) == (None, [tmp_path / LAST, tmp_path / PREVIOUS])


def test_a_sound_checkpoint_is_told_from_a_damaged_one(tmp_path):
    file = tmp_path / LAST
    torch.save({"weights": torch.arange(1000.0)}, file)
    assert is_sound(file)
    damage_at = file.read_bytes().find(torch.arange(1000.0).numpy().tobytes()) + 17
    content = bytearray(file.read_bytes())
    content[damage_at] ^= 4
    file.write_bytes(content)
    assert not is_sound(file)


def test_a_second_process_on_the_same_run_is_refused_and_told_who_holds_it(outputs):
    from tutelage.compose import compose
    from tutelage.errors import UserError
    from tutelage.runs import RunFolder, run_path
    from tutelage.storage import locked
    from tutelage.train import execute

    config = compose([*QUIET, f"paths.outputs={outputs}", *NOISY])
    with (
        locked(RunFolder(run_path(config, "")).lock_file, "run"),
        pytest.raises(UserError, match=rf"in use by process {os.getpid()} on \S+ \(since .*wait for it, or stop it"),
    ):
        execute(config)
    assert not list(outputs.glob("*/*/run.json"))


@pytest.mark.slow
def test_the_real_command_killed_at_random_moments_ends_the_same(tmp_path):
    """No forks, no traps: the command itself, killed with -9 at moments spread over its whole length."""
    command = [sys.executable, "-m", "tutelage.train", "experiment=digits_noisy_student", "schedule.steps=40"]
    command += ["trainer.threads=1", "callbacks.report=false", "callbacks.checkpoint_minutes=0.001"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    subprocess.run([*command, f"paths.outputs={tmp_path / 'a'}"], check=True, cwd=ROOT, env=environment)
    whole = time.monotonic() - started
    kills = 0
    for part in (0.3, 0.45, 0.6, 0.75, 0.9, 1.1):
        process = subprocess.Popen([*command, f"paths.outputs={tmp_path / 'b'}"], cwd=ROOT, env=environment)
        try:
            process.wait(timeout=part * whole)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.wait()
    subprocess.run([*command, f"paths.outputs={tmp_path / 'b'}"], check=True, cwd=ROOT, env=environment)
    assert kills >= 3
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
