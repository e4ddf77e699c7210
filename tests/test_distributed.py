"""Several processes train one run: batches, weights, metrics and checkpoints are those of a single process."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from helpers import fork_server
from helpers.forks import fork
from helpers.overrides import CLIPPED_AND_SMOOTHED, QUIET
from helpers.paths import ROOT
from helpers.runs import only_run, outcome, run, tables
from tutelage.runs import RunFolder
from tutelage.runs.checkpoints import LAST
from tutelage.storage import is_held
from tutelage.world import World, torchrun_environment


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_processes(
    count: int, work: Callable[[], int], before: Callable[[int], None] = lambda rank: None
) -> list[int]:
    """Start forks of this process with torchrun's environment and return their process ids."""
    port = free_port()

    def child(rank: int) -> int:
        environment = torchrun_environment(World(rank, count, rank, count))
        os.environ.update(environment, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        before(rank)
        try:
            return work()
        except SystemExit as error:
            return error.code

    return [fork(partial(child, rank)) for rank in range(count)]


def exit_codes(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def run_processes(outputs: Path, *overrides: str, count: int = 2, before: Callable[[int], None] = lambda rank: None):
    """Train a run by ``count`` processes and return their exit codes; ``before`` may set traps in each."""
    fork_server.preload()
    from tutelage import errors
    from tutelage.app.job import run_job
    from tutelage.config.compose import compose
    from tutelage.errors import UserError, complain

    def work() -> int:
        errors.RANK0_HEAD_START_SECONDS = 0.0  # there is no launcher that would end the others
        arguments = [*QUIET, "trainer=ddp_cpu", f"trainer.devices={count}", f"paths.outputs={outputs}", *overrides]
        try:
            return run_job(compose(arguments))
        except UserError as error:
            return complain(error)

    return exit_codes(start_processes(count, work, before))


SMALL = ("model=lenet5", "data.limit=120", "data.batch_size=8", "schedule.epochs=null", "schedule.steps=7")
VALIDATED = (*SMALL, "data.labels_per_class=5", "data.validation=outside:31")  # an odd number for two processes
MIXED = (*VALIDATED, "augmentation=cutmix_mixup")
LONGER = (*MIXED, *CLIPPED_AND_SMOOTHED, "schedule.steps=12", "optimizer.ema_decay=0.9")
LONGER = (*LONGER, "optimizer.weight_decay=0.5", "logger=tensorboard")
NOISY = (
    *SMALL,
    "strategy=noisy_student",
    "strategy.students=[{model:{width:1.5},length:1.0}]",
    "data.labels_per_class=3",
    "augmentation=affine_randaugment",
)
DISTILLED = ("strategy=distillation", "model@strategy.teacher=lenet5", "strategy.control=false")
TASKS = ("strategy=lwf", "strategy.tasks=[[0,1,2,3,4],[5,6,7,8,9]]")
METHODS = {
    "accumulated and clipped gradients, averaged weights": (
        *MIXED,
        "trainer.accumulate=2",
        "optimizer=sgd",  # Adam's steps do not depend on the scale of gradients
        "optimizer.ema_decay=0.9",
        *CLIPPED_AND_SMOOTHED,
    ),
    "noisy student": NOISY,
    "teacher logits for each step": (*MIXED, *DISTILLED),
}
MORE_METHODS = {
    "cutmix and mixup": MIXED,
    "class weights": (*SMALL, "data.balance=weights"),
    "fewer validation images than processes": (*SMALL, "data.labels_per_class=5", "data.validation=outside:1"),
    "cached views": (*SMALL, *DISTILLED, "strategy.cached_views=2"),
    "live teacher": (*SMALL, *DISTILLED, "strategy.teacher_logits=live"),
    "hints": (*SMALL, *DISTILLED, "+strategy.hints={}"),
    "mean teacher": (*SMALL, "strategy=mean_teacher", "data.labels_per_class=3", "strategy.control=false"),
    "forgetting": (*VALIDATED, *TASKS),
    "workers": (*MIXED, "data.num_workers=1"),
    "nearest neighbours": (*VALIDATED, "model=nearest_neighbours"),
}


SHARDED = "trainer.parallel=fsdp"


def read_weights(outputs: Path) -> dict[str, torch.Tensor]:
    """Read the weights of every stage of a run."""
    tensors = {}
    for pattern in ("best.ckpt", "final.ckpt"):
        for file in sorted(only_run(outputs).rglob(pattern)):
            content = torch.load(file, weights_only=True)
            tensors |= {
                f"{file.parent.parent.name if 'stages' in str(file) else ''}/{name}": value
                for name, value in content["state_dict"].items()
            }
    return tensors


def assert_close(first: Path, second: Path) -> None:
    """Check that two runs are equal within rounding: weights and every row of every table."""
    torch.testing.assert_close(read_weights(first), read_weights(second), rtol=2e-4, atol=2e-5)
    assert tables(only_run(first)).keys() == tables(only_run(second)).keys()
    for name, rows in tables(only_run(first)).items():
        for row, second_row in zip(rows, tables(only_run(second))[name], strict=True):
            values = {key: float(value) for key, value in row.items()}
            assert values == pytest.approx({key: float(value) for key, value in second_row.items()}, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_two_processes_train_the_weights_of_one(method, outputs, tmp_path):
    assert run_processes(outputs, *method) == [0, 0]
    assert run(tmp_path / "one", *method, "trainer.accumulate=1") == 0
    assert_close(outputs, tmp_path / "one")
    assert only_run(outputs).name == only_run(tmp_path / "one").name


@pytest.mark.slow
@pytest.mark.parametrize("method", MORE_METHODS.values(), ids=MORE_METHODS)
def test_two_processes_train_the_weights_of_one_by_every_method(method, outputs, tmp_path):
    test_two_processes_train_the_weights_of_one(method, outputs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS.values(), *MORE_METHODS.values()], ids=[*METHODS, *MORE_METHODS])
def test_two_processes_with_sharded_weights_train_the_weights_of_one(method, outputs, tmp_path):
    test_two_processes_train_the_weights_of_one((*method, SHARDED), outputs, tmp_path)


def check_sharded(rank: int) -> None:
    """Make a run fail if its weights, averages or optimizer state are not sharded at the start of a step."""
    from torch.distributed.tensor import DTensor

    from tutelage.runs import callbacks

    hook = callbacks.StepRandomness.on_train_batch_start

    def check(self, trainer, module, *rest):
        (averages,) = [
            callback._average_model.module for callback in trainer.callbacks if hasattr(callback, "_average_model")
        ]
        moments = [part["exp_avg"] for part in trainer.optimizers[0].state.values()]
        tensors = [*module.parameters(), *averages.parameters(), *moments]
        assert tensors
        assert all(isinstance(value, DTensor) and value.placements[0].is_shard() for value in tensors)
        assert sum(value.to_local().numel() for value in module.parameters()) < 0.6 * 61_706  # of LeNet-5
        hook(self, trainer, module, *rest)

    callbacks.StepRandomness.on_train_batch_start = check


@pytest.mark.slow
def test_sharded_weights_are_saved_whole_and_two_processes_or_one_resume(outputs, undisturbed, tmp_path):
    """Weights decay and biases do not; this must hold for each shard, too."""

    def stops(rank: int) -> None:
        check_sharded(rank)
        send_signal_at(4)(rank)

    assert run_processes(outputs, *LONGER, SHARDED, before=stops) == [128 + signal.SIGTERM] * 2
    assert run(tmp_path / "one", *LONGER, before=lambda: send_signal_at(7, by=0)(0)) == 128 + signal.SIGTERM
    shutil.copytree(outputs, tmp_path / "by_one")
    for value in read_checkpoint(outputs)["state_dict"].values():
        assert type(value) is torch.Tensor
    assert run_processes(outputs, *LONGER, SHARDED, before=check_sharded) == [0, 0]
    assert run(tmp_path / "by_one", *LONGER) == 0
    assert run_processes(tmp_path / "one", *LONGER, SHARDED) == [0, 0]
    for resumed in (outputs, tmp_path / "by_one", tmp_path / "one"):
        assert_close(resumed, undisturbed)


NORMS = {
    "averaged weights": (*MIXED, "model=resnet", "model.width=8", "optimizer.ema_decay=0.9", "schedule.steps=14"),
    "mean teacher": (*VALIDATED, "model=small_vgg", "model.width=0.25", "strategy=mean_teacher"),
    "lower precision": (*LONGER, "trainer.precision=bf16-mixed"),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", NORMS.values(), ids=NORMS)
def test_what_depends_on_the_number_of_devices_does_not_depend_on_sharding(method, outputs, tmp_path):
    """Batch norm uses a device's part of a batch, and low precision rounds each part's gradients."""
    assert run_processes(outputs, *method, SHARDED) == [0, 0]
    assert run_processes(tmp_path / "ddp", *method) == [0, 0]
    assert_close(outputs, tmp_path / "ddp")


def test_a_weight_that_cannot_be_sharded_is_named():
    from tutelage.errors import UserError
    from tutelage.runs.cluster.parallel import check_shardable

    network = torch.nn.Linear(2, 2)
    check_shardable("plain", network)
    network.temperature = torch.nn.Parameter(torch.tensor(1.0))
    with pytest.raises(UserError, match=r"temperature of model odd is a single number.* use trainer.parallel=ddp"):
        check_shardable("odd", network)


@pytest.mark.slow
def test_four_processes_train_the_weights_of_one(outputs, tmp_path):
    assert run_processes(outputs, *MIXED, count=4) == [0, 0, 0, 0]
    assert run(tmp_path / "one", *MIXED) == 0
    assert_close(outputs, tmp_path / "one")


def send_signal_at(step: int, sent: int = signal.SIGTERM, by: int = 1, stage: str = "") -> Callable[[int], None]:
    """Return a trap that sends a signal to the process of rank ``by`` at the start of ``step`` of ``stage``."""

    def install_trap(rank: int) -> None:
        from tutelage.runs import callbacks

        hook = callbacks.StepRandomness.on_train_batch_start

        def send(self, trainer, *rest):
            hook(self, trainer, *rest)
            if trainer.global_step == step and rank == by and stage in {"", self._key.stage}:
                os.kill(os.getpid(), sent)

        callbacks.StepRandomness.on_train_batch_start = send

    return install_trap


def read_checkpoint(outputs: Path, stage: str = "") -> dict:
    return torch.load(only_run(outputs) / stage / "checkpoints" / LAST, weights_only=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("undisturbed")
    assert run_processes(outputs, *LONGER) == [0, 0]
    return outputs


@pytest.mark.parametrize("by", [0, 1])
def test_a_signal_to_one_process_stops_both_at_one_step_and_the_same_command_resumes_exactly(
    outputs, undisturbed, by, capfd
):
    assert run_processes(outputs, *LONGER, before=send_signal_at(4, by=by)) == [128 + signal.SIGTERM] * 2
    messages = capfd.readouterr().err
    assert messages.count("stopped by SIGTERM; saved. The same command goes on from here.") == 1
    assert "Traceback" not in messages
    assert (
        5 <= read_checkpoint(outputs)["global_step"] <= 7
    )  # signals are exchanged at the end of a step and read at the end of the next
    assert run_processes(outputs, *LONGER) == [0, 0]
    assert outcome(outputs) == outcome(undisturbed)


@pytest.mark.parametrize(("first_count", "second"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_resumes_with_another_number_of_processes(outputs, undisturbed, first_count, second, accumulate):
    def go(count: int, *overrides: str, stops: bool = False) -> None:
        trap = send_signal_at(4, by=count - 1) if stops else lambda rank: None
        code = 128 + signal.SIGTERM if stops else 0
        if count == 1:
            assert run(outputs, *LONGER, *overrides, before=lambda: trap(0)) == code
        else:
            assert run_processes(outputs, *LONGER, *overrides, before=trap) == [code] * count

    go(first_count, f"trainer.accumulate={accumulate}", stops=True)
    assert "stopped" in only_run(outputs).joinpath("run.json").read_text()
    go(second)
    assert_close(outputs, undisturbed)


def test_a_checkpoint_is_the_same_on_any_number_of_devices(outputs, tmp_path):
    whole = tmp_path / "one"
    assert run(whole, *LONGER, before=lambda: send_signal_at(4, by=0)(0)) == 128 + signal.SIGTERM
    step = read_checkpoint(whole)["global_step"]
    assert (
        run_processes(outputs, *LONGER, "trainer.accumulate=2", before=send_signal_at(step - 2))
        == [128 + signal.SIGTERM] * 2
    )
    checkpoint, whole_checkpoint = read_checkpoint(outputs), read_checkpoint(whole)
    assert checkpoint["global_step"] == whole_checkpoint["global_step"] == step
    checkpoint, whole_checkpoint = (
        checkpoint | checkpoint["callbacks"],
        whole_checkpoint | whole_checkpoint["callbacks"],
    )
    for part in ("state_dict", "current_model_state", "averaging_state"):
        torch.testing.assert_close(checkpoint[part], whole_checkpoint[part], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        checkpoint["EpochTable"]["sums"], whole_checkpoint["EpochTable"]["sums"], rtol=1e-4, atol=1e-5
    )
    assert checkpoint["EpochTable"]["steps"] == whole_checkpoint["EpochTable"]["steps"]
    counters = "epoch_loop.batch_progress"
    assert checkpoint["loops"]["fit_loop"][counters] == whole_checkpoint["loops"]["fit_loop"][counters]


def test_sigusr1_to_one_process_saves_once_and_the_run_goes_on(outputs, undisturbed):
    """The first process records the steps of the saved checkpoints."""

    def set_trap(rank: int) -> None:
        from tutelage.runs import checkpoints

        send_signal_at(4, sent=signal.SIGUSR1)(rank)
        save = checkpoints.WholeCheckpointIO.save_checkpoint

        def note(self, checkpoint, path, storage_options=None):
            with (outputs / "saved").open("a") as file:
                file.write(f"{checkpoint['global_step']} ")
            save(self, checkpoint, path)

        checkpoints.WholeCheckpointIO.save_checkpoint = note

    outputs.mkdir()
    assert run_processes(outputs, *LONGER, before=set_trap) == [0, 0]
    steps = [int(step) for step in (outputs / "saved").read_text().split()]
    assert len(steps) == 2
    assert 5 <= steps[0] <= 7
    assert steps[1] == 12
    assert outcome(outputs) == outcome(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("by", [0, 1])
@pytest.mark.parametrize("part", ["labelling", "testing", "the table"])
def test_a_signal_outside_of_training_stops_both(outputs, by, part, capfd):
    """Both stop if one gets a signal while they label, or while one of them tests and the other waits."""

    def set_trap(rank: int) -> None:
        from tutelage.runs import evaluate, label, runner

        module, name = {
            "labelling": (label, "fill_store"),
            "testing": (evaluate, "predict"),
            "the table": (label, "write_table"),
        }[part]
        original = getattr(module, name)
        signalled = outputs / "signalled"

        def send(*arguments, **options):
            if rank == by:
                os.kill(os.getpid(), signal.SIGTERM)
                signalled.touch()
            while part == "labelling" and not signalled.exists():  # else one may label the pool before the other comes
                time.sleep(0.01)
            return original(*arguments, **options)

        setattr(module, name, send)
        if part != "labelling" and rank == by == 1:  # it waits for the first process
            check, sent = runner.RunContext.check_signals, []

            def check_and_send(self):
                if self.stages and self.record.content.get("stages") and not sent:
                    sent.append(os.kill(os.getpid(), signal.SIGTERM))
                check(self)

            runner.RunContext.check_signals = check_and_send

    assert run_processes(outputs, *NOISY, before=set_trap) == [128 + signal.SIGTERM] * 2
    messages = capfd.readouterr().err
    assert messages.count("stopped by SIGTERM") == 1
    assert "Traceback" not in messages
    assert run_processes(outputs, *NOISY) == [0, 0]


def test_a_process_that_dies_ends_the_other_and_the_same_command_resumes(outputs, undisturbed, capfd):
    assert run_processes(outputs, *LONGER, before=send_signal_at(8, sent=signal.SIGKILL, by=1)) == [2, -signal.SIGKILL]
    assert "tutelage: a process of the run has ended without a word" in capfd.readouterr().err
    assert json.loads((only_run(outputs) / "run.json").read_text())["status"] == "failed"
    assert run_processes(outputs, *LONGER) == [0, 0]
    assert outcome(outputs) == outcome(undisturbed)


def test_an_error_of_one_process_is_printed_once(outputs, capfd):
    def before(rank: int) -> None:
        from tutelage.data.pseudo_labels import store as label_store
        from tutelage.errors import UserError

        def write_to_a_full_disk(self, shard, probabilities):
            (outputs / "full").touch()
            raise UserError("the disk is full: make room")

        def claim_after_the_other(self, shard):
            wait_for((outputs / "full").exists)
            return claim(self, shard)

        claim = label_store.LabelStore.claim
        if rank == 1:
            label_store.LabelStore.write = write_to_a_full_disk
        else:
            label_store.LabelStore.claim = claim_after_the_other

    assert run_processes(outputs, *NOISY, before=before) == [2, 2]
    messages = capfd.readouterr().err
    assert messages.count("tutelage: the disk is full: make room") == 1
    assert "Traceback" not in messages


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("trainer.devices=3",),
            r"torchrun has started 2 processes, 2 on this machine, .* set trainer.parallel=ddp "
            r"trainer.devices=2 trainer.nodes=1",
        ),
        (("trainer=cpu", "trainer.devices=1"), "torchrun has started 2 processes"),
        (("data.batch_size=9",), r"data.batch_size=9 is the batch of all devices .* give 8 or 10"),
        (("data.batch_size=10", "trainer.accumulate=4"), r"2 processes in 4 turns each cannot .*: give 8 or 16"),
        (
            ("strategy=mean_teacher", "data.batch_size=6", "strategy.unlabelled_ratio=1.5"),
            "batches of 9 unlabelled images.* give a ratio that makes 8 or 10 of data.batch_size=6",
        ),
        (("data=mnist", "data.root=/nowhere"), "data.root=/nowhere: no such folder"),
        (("model=lenet5", "data.image_size=8"), "needs images of"),
    ],
)
def test_a_users_error_is_printed_once_and_both_processes_exit_with_2(outputs, overrides, message, capfd):
    assert run_processes(outputs, *overrides) == [2, 2]
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.search(message, lines[0])
    assert not list(outputs.glob("*/*/run.json"))


def test_a_run_that_another_process_holds_is_refused_once(outputs, capfd):
    from tutelage.config.compose import compose
    from tutelage.runs import RunFolder, run_path
    from tutelage.storage import hold_lock

    config = compose([*QUIET, f"paths.outputs={outputs}", *SMALL])
    with hold_lock(RunFolder(run_path(config, "")).lock_file, "run"):
        assert run_processes(outputs, *SMALL) == [2, 2]
    assert capfd.readouterr().err.count("in use by process") == 1


def test_a_finished_run_is_shown_once(outputs, capfd):
    assert run(outputs, *SMALL) == 0
    capfd.readouterr()
    assert run_processes(outputs, *SMALL) == [0, 0]
    assert capfd.readouterr().out.count("supervised") == 1


def test_one_machine_starts_no_processes_on_others(outputs, capfd):
    assert run(outputs, *SMALL, "trainer=ddp_cpu", "trainer.nodes=2") != 0
    assert "trainer.nodes=2: a command on one machine starts no processes on others" in capfd.readouterr().err


def test_the_process_that_fails_first_gives_the_exit_code_and_ends_the_others(monkeypatch, capfd, tmp_path):
    from tutelage.app import launch

    monkeypatch.setattr(launch, "GRACE", 0.2)
    monkeypatch.setattr(launch, "LAST_GRACE", 0.5)
    for failing, code in (("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 128 + 9)):
        ignores = tmp_path / str(code)
        programs = (
            f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(ignores)!r}, 'x'); time.sleep(600)",
            f"import os, sys, time\nwhile not os.path.exists({str(ignores)!r}): time.sleep(0.01)\n{failing}",
            "import time; time.sleep(600)",
        )
        processes = [subprocess.Popen([sys.executable, "-c", program], text=True) for program in programs]
        assert launch._wait_for_processes(processes) == code
        assert [process.wait() for process in processes] == [-9, code if code < 128 else 128 - code, -15]
    assert "process 1 of 3 was ended by SIGKILL, and the others with it" in capfd.readouterr().err


def test_of_processes_that_ended_together_the_killed_one_counts_as_failed():
    from tutelage.app.launch import _find_failed

    assert _find_failed([None, 0]) is None
    assert _find_failed([2, -signal.SIGKILL, None]) == 1
    assert _find_failed([0, 2, 1]) == 1


@pytest.mark.parametrize("before", [True, False])
def test_signals_are_forwarded_to_the_processes(before, monkeypatch):
    """In a batch job of SLURM, also the signals that came before the processes were started."""
    from tutelage.app import launch
    from tutelage.runs.cluster.signals import Signals, defer_slurm_signals

    program = "import signal, time; signal.signal(signal.SIGUSR1, lambda *_: exit(5)); print('ready', flush=True)"
    processes = [
        subprocess.Popen([sys.executable, "-c", f"{program}; time.sleep(60)"], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("ENVIRONMENT", "BATCH")
    numbers = (signal.SIGUSR1, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    defer_slurm_signals()
    if before:
        os.kill(os.getpid(), signal.SIGUSR1)
    noting = signal.getsignal(signal.SIGUSR1)
    assert isinstance(noting.__self__, Signals)
    try:
        with launch._forwarded_signals(processes):
            if not before:
                os.kill(os.getpid(), signal.SIGUSR1)
            assert launch._wait_for_processes(processes) == 5
        assert signal.getsignal(signal.SIGUSR1) == noting
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_command_and_its_processes_end_together_and_resume_however_they_are_ended(outputs, tmp_path, capfd):
    """In turn, one process is killed, the command is killed, the command gets SIGTERM, and it finishes."""
    words = [*LONGER, "schedule.steps=1500", "callbacks.checkpoint_minutes=0.01", "logger=csv"]
    command = [sys.executable, "-m", "tutelage.train", *QUIET, "trainer=ddp_cpu", f"paths.outputs={outputs}", *words]
    for sent, to_a_child in ((signal.SIGKILL, True), (signal.SIGKILL, False), (signal.SIGTERM, False), (0, False)):
        process, started, children = subprocess.Popen(command, cwd=ROOT), time.time(), []
        if sent:
            wait_for(lambda: any(file.stat().st_mtime > started for file in outputs.rglob(LAST)))  # noqa: B023
            children = list_children(process.pid)
            os.kill(children[-1] if to_a_child else process.pid, sent)
        code = process.wait()
        assert code == (-sent if sent == signal.SIGKILL and not to_a_child else 128 + sent if sent else 0)
        wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))  # noqa: B023
        assert not is_held(RunFolder(only_run(outputs)).lock_file)
        messages = capfd.readouterr().err
        assert messages.count("process 1 of 2 was ended by SIGKILL, and the others with it") == to_a_child
        assert messages.count("stopped by SIGTERM; saved.") == (bool(sent) and not to_a_child)
        assert "Traceback" not in messages
        record = json.loads((only_run(outputs) / "run.json").read_text())
        assert record["status"] == ("failed" if to_a_child else "running" if sent else "finished")
        assert ("stopped" in record["sessions"][-1]) == (bool(sent) and not to_a_child)
    assert run_processes(tmp_path / "undisturbed", *words) == [0, 0]
    assert outcome(outputs) == outcome(tmp_path / "undisturbed")


@pytest.mark.slow
def test_torchrun_trains_as_the_command_alone_does(outputs, tmp_path):
    """The command is that of docs/clusters.md."""
    page = (ROOT / "docs" / "clusters.md").read_text()
    _, *arguments = [*shlex.split(re.search("^torchrun .*", page, re.MULTILINE)[0]), *QUIET, "debug=tiny"]
    alone = arguments[arguments.index("-m") :]
    for first, rest, folder in (
        ([str(Path(sys.executable).with_name("torchrun"))], arguments, outputs),
        ([sys.executable], alone, tmp_path / "alone"),
    ):
        subprocess.run([*first, *rest, f"paths.outputs={folder}"], cwd=ROOT, check=True, capture_output=True)
    assert json.loads((only_run(outputs) / "run.json").read_text())["processes"] == 2
    assert outcome(outputs) == outcome(tmp_path / "alone")


def list_children(process: int) -> list[int]:
    """Return the process ids of the children of a process."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def wait_for(condition: Callable[[], bool], seconds: float = 200) -> None:
    started = time.monotonic()
    while not condition():
        time.sleep(0.05)
        assert time.monotonic() - started < seconds
