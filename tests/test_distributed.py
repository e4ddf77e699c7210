"""Several processes train as one: what is shown, learned, measured and saved is what a single process does."""

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
from helpers.overrides import QUIET
from helpers.paths import ROOT
from helpers.runs import only_run, outcome, run, tables
from tutelage.process_group import World, torchrun_environment
from tutelage.runs import RunFolder
from tutelage.runs.checkpoints import LAST
from tutelage.storage import is_held


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def begin(count: int, work: Callable[[], int], before: Callable[[int], None] = lambda rank: None) -> list[int]:
    """Start forks of this process that torchrun might have started, and return their process ids."""
    port = free_port()

    def child(rank: int) -> int:
        who = torchrun_environment(World(rank, count, rank, count))
        os.environ.update(who, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        before(rank)
        try:
            return work()
        except SystemExit as error:
            return error.code

    return [fork(partial(child, rank)) for rank in range(count)]


def codes_of(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def ranks(outputs: Path, *overrides: str, count: int = 2, before: Callable[[int], None] = lambda rank: None):
    """Execute a run as so many processes and return their exit codes."""
    fork_server.preload()
    from tutelage import errors
    from tutelage.app.job import run_job
    from tutelage.config.compose import compose
    from tutelage.errors import UserError, complain

    def work() -> int:
        errors.RANK0_HEAD_START_SECONDS = 0.0  # nobody ends the others here
        words = [*QUIET, "trainer=ddp_cpu", f"trainer.devices={count}", f"paths.outputs={outputs}", *overrides]
        try:
            return run_job(compose(words))
        except UserError as error:
            return complain(error)

    return codes_of(begin(count, work, before))


SMALL = ("model=lenet5", "data.limit=120", "data.batch_size=8", "schedule.epochs=null", "schedule.steps=7")
VALIDATED = (*SMALL, "data.labels_per_class=5", "data.validation=outside:31")  # an odd number for two processes
MIXED = (*VALIDATED, "augmentation=cutmix_mixup")
LONGER = (*MIXED, "schedule.steps=12", "optimizer.ema_decay=0.9", "optimizer.weight_decay=0.5", "logger=tensorboard")
NOISY = (
    *SMALL,
    "strategy=noisy_student",
    "strategy.students=[{model:{width:1.5},length:1.0}]",
    "data.labels_per_class=3",
    "augmentation=affine_randaugment",
)
TAUGHT = ("strategy=distillation", "model@strategy.teacher=lenet5", "strategy.control=false")
TASKS = ("strategy=lwf", "strategy.tasks=[[0,1,2,3,4],[5,6,7,8,9]]")
RECIPES = {
    "in two pieces, averaged weights": (*MIXED, "trainer.accumulate=2", "optimizer.ema_decay=0.9"),
    "noisy student": NOISY,
    "answers for each step": (*MIXED, *TAUGHT),
}
MORE_RECIPES = {
    "cutmix and mixup": MIXED,
    "class weights": (*SMALL, "data.balance=weights"),
    "fewer validation images than processes": (*SMALL, "data.labels_per_class=5", "data.validation=outside:1"),
    "answers to views": (*SMALL, *TAUGHT, "strategy.cached_views=2"),
    "live answers": (*SMALL, *TAUGHT, "strategy.teacher_logits=live"),
    "hints": (*SMALL, *TAUGHT, "+strategy.hints={}"),
    "mean teacher": (*SMALL, "strategy=mean_teacher", "data.labels_per_class=3", "strategy.control=false"),
    "forgetting": (*VALIDATED, *TASKS),
    "workers": (*MIXED, "data.num_workers=1"),
    "nearest neighbours": (*VALIDATED, "model=nearest_neighbours"),
}


SPREAD = "trainer.parallel=fsdp"


def weights(outputs: Path) -> dict[str, torch.Tensor]:
    """Return the weights of every stage of a run."""
    found = {}
    for pattern in ("best.ckpt", "final.ckpt"):
        for file in sorted(only_run(outputs).rglob(pattern)):
            content = torch.load(file, weights_only=True)
            found |= {
                f"{file.parent.parent.name if 'stages' in str(file) else ''}/{name}": value
                for name, value in content["state_dict"].items()
            }
    return found


def alike(ours: Path, theirs: Path) -> None:
    """Check that two runs are the same within rounding: weights and every row of every table."""
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=2e-4, atol=2e-5)
    assert tables(only_run(ours)).keys() == tables(only_run(theirs)).keys()
    for name, rows in tables(only_run(ours)).items():
        for row, other in zip(rows, tables(only_run(theirs))[name], strict=True):
            found = {key: float(value) for key, value in row.items()}
            assert found == pytest.approx({key: float(value) for key, value in other.items()}, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_two_processes_learn_what_one_does(recipe, outputs, tmp_path):
    assert ranks(outputs, *recipe) == [0, 0]
    assert run(tmp_path / "one", *recipe, "trainer.accumulate=1") == 0
    alike(outputs, tmp_path / "one")
    assert only_run(outputs).name == only_run(tmp_path / "one").name


@pytest.mark.slow
@pytest.mark.parametrize("recipe", MORE_RECIPES.values(), ids=MORE_RECIPES)
def test_two_processes_learn_what_one_does_by_every_method(recipe, outputs, tmp_path):
    test_two_processes_learn_what_one_does(recipe, outputs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [*RECIPES.values(), *MORE_RECIPES.values()], ids=[*RECIPES, *MORE_RECIPES])
def test_two_processes_with_the_weights_spread_over_them_learn_what_one_does(recipe, outputs, tmp_path):
    test_two_processes_learn_what_one_does((*recipe, SPREAD), outputs, tmp_path)


def was_spread(rank: int) -> None:
    """Let a run fail whose weights, averages or optimizer's state are not spread when a step begins."""
    from torch.distributed.tensor import DTensor

    from tutelage.runs import callbacks

    hook = callbacks.StepRandomness.on_train_batch_start

    def look(self, trainer, module, *rest):
        (averages,) = [one._average_model.module for one in trainer.callbacks if hasattr(one, "_average_model")]
        moments = [part["exp_avg"] for part in trainer.optimizers[0].state.values()]
        spread = [*module.parameters(), *averages.parameters(), *moments]
        assert spread
        assert all(isinstance(value, DTensor) and value.placements[0].is_shard() for value in spread)
        assert sum(value.to_local().numel() for value in module.parameters()) < 0.6 * 61_706  # of LeNet-5
        hook(self, trainer, module, *rest)

    callbacks.StepRandomness.on_train_batch_start = look


def test_weights_spread_over_processes_are_saved_whole_and_gone_on_with_by_two_or_one(outputs, undisturbed, tmp_path):
    """Weights decay and biases do not: a share of either is as it was."""

    def stops(rank: int) -> None:
        was_spread(rank)
        stopped_at(4)(rank)

    assert ranks(outputs, *LONGER, SPREAD, before=stops) == [128 + signal.SIGTERM] * 2
    assert run(tmp_path / "one", *LONGER, before=lambda: stopped_at(7, by=0)(0)) == 128 + signal.SIGTERM
    shutil.copytree(outputs, tmp_path / "by_one")
    for value in checkpoint_of(outputs)["state_dict"].values():
        assert type(value) is torch.Tensor
    assert ranks(outputs, *LONGER, SPREAD, before=was_spread) == [0, 0]
    assert run(tmp_path / "by_one", *LONGER) == 0
    assert ranks(tmp_path / "one", *LONGER, SPREAD) == [0, 0]
    for resumed in (outputs, tmp_path / "by_one", tmp_path / "one"):
        alike(resumed, undisturbed)


NORMS = {
    "averaged weights": (*MIXED, "model=resnet", "model.width=4", "optimizer.ema_decay=0.9", "schedule.steps=14"),
    "mean teacher": (*VALIDATED, "model=small_vgg", "model.width=0.25", "strategy=mean_teacher"),
    "lower precision": (*LONGER, "trainer.precision=bf16-mixed"),
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", NORMS.values(), ids=NORMS)
def test_what_differs_on_two_devices_does_not_by_how_the_weights_lie(recipe, outputs, tmp_path):
    """Batch norms see a device's part of a batch, and low precision rounds each part's gradients."""
    assert ranks(outputs, *recipe, SPREAD) == [0, 0]
    assert ranks(tmp_path / "ddp", *recipe) == [0, 0]
    alike(outputs, tmp_path / "ddp")


def test_a_weight_that_cannot_be_spread_is_named():
    from tutelage.errors import UserError
    from tutelage.runs.cluster.parallel import check_shardable

    network = torch.nn.Linear(2, 2)
    check_shardable("plain", network)
    network.temperature = torch.nn.Parameter(torch.tensor(1.0))
    with pytest.raises(UserError, match=r"temperature of model odd is a single number.* use trainer.parallel=ddp"):
        check_shardable("odd", network)


@pytest.mark.slow
def test_four_processes_learn_what_one_does(outputs, tmp_path):
    assert ranks(outputs, *MIXED, count=4) == [0, 0, 0, 0]
    assert run(tmp_path / "one", *MIXED) == 0
    alike(outputs, tmp_path / "one")


def stopped_at(step: int, sent: int = signal.SIGTERM, by: int = 1, stage: str = "") -> Callable[[int], None]:
    """Return what lets one process alone be sent a signal at the start of a step of a stage."""

    def before(rank: int) -> None:
        from tutelage.runs import callbacks

        hook = callbacks.StepRandomness.on_train_batch_start

        def send(self, trainer, *rest):
            hook(self, trainer, *rest)
            if trainer.global_step == step and rank == by and stage in {"", self._key.stage}:
                os.kill(os.getpid(), sent)

        callbacks.StepRandomness.on_train_batch_start = send

    return before


def checkpoint_of(outputs: Path, stage: str = "") -> dict:
    return torch.load(only_run(outputs) / stage / "checkpoints" / LAST, weights_only=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("undisturbed")
    assert ranks(outputs, *LONGER) == [0, 0]
    return outputs


@pytest.mark.parametrize("by", [0, 1])
def test_a_signal_to_one_process_stops_both_at_one_step_and_the_same_command_goes_on_to_the_bit(
    outputs, undisturbed, by, capfd
):
    assert ranks(outputs, *LONGER, before=stopped_at(4, by=by)) == [128 + signal.SIGTERM] * 2
    told = capfd.readouterr().err
    assert told.count("stopped by SIGTERM; saved. The same command goes on from here.") == 1
    assert "Traceback" not in told
    assert 5 <= checkpoint_of(outputs)["global_step"] <= 7  # at the end of a step they tell, of the next they hear
    assert ranks(outputs, *LONGER) == [0, 0]
    assert outcome(outputs) == outcome(undisturbed)


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_goes_on_with_another_number_of_processes(outputs, undisturbed, first, then, accumulate):
    def go(count: int, *words: str, stops: bool = False) -> None:
        trap = stopped_at(4, by=count - 1) if stops else lambda rank: None
        code = 128 + signal.SIGTERM if stops else 0
        if count == 1:
            assert run(outputs, *LONGER, *words, before=lambda: trap(0)) == code
        else:
            assert ranks(outputs, *LONGER, *words, before=trap) == [code] * count

    go(first, f"trainer.accumulate={accumulate}", stops=True)
    assert "stopped" in only_run(outputs).joinpath("run.json").read_text()
    go(then)
    alike(outputs, undisturbed)


def test_a_checkpoint_says_the_same_on_any_number_of_devices(outputs, tmp_path):
    whole = tmp_path / "one"
    assert run(whole, *LONGER, before=lambda: stopped_at(4, by=0)(0)) == 128 + signal.SIGTERM
    step = checkpoint_of(whole)["global_step"]
    assert ranks(outputs, *LONGER, "trainer.accumulate=2", before=stopped_at(step - 2)) == [128 + signal.SIGTERM] * 2
    ours, theirs = checkpoint_of(outputs), checkpoint_of(whole)
    assert ours["global_step"] == theirs["global_step"] == step
    ours, theirs = ours | ours["callbacks"], theirs | theirs["callbacks"]
    for part in ("state_dict", "current_model_state", "averaging_state"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours["EpochTable"]["sums"], theirs["EpochTable"]["sums"], rtol=1e-4, atol=1e-5)
    assert ours["EpochTable"]["steps"] == theirs["EpochTable"]["steps"]
    counters = "epoch_loop.batch_progress"
    assert ours["loops"]["fit_loop"][counters] == theirs["loops"]["fit_loop"][counters]


def test_sigusr1_to_one_process_saves_once_and_the_run_goes_on(outputs, undisturbed):
    """The first process notes what is saved."""

    def before(rank: int) -> None:
        from tutelage.runs import checkpoints

        stopped_at(4, sent=signal.SIGUSR1)(rank)
        save = checkpoints.WholeCheckpointIO.save_checkpoint

        def note(self, checkpoint, path, storage_options=None):
            with (outputs / "saved").open("a") as file:
                file.write(f"{checkpoint['global_step']} ")
            save(self, checkpoint, path)

        checkpoints.WholeCheckpointIO.save_checkpoint = note

    outputs.mkdir()
    assert ranks(outputs, *LONGER, before=before) == [0, 0]
    steps = [int(step) for step in (outputs / "saved").read_text().split()]
    assert len(steps) == 2
    assert 5 <= steps[0] <= 7
    assert steps[1] == 12
    assert outcome(outputs) == outcome(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("by", [0, 1])
@pytest.mark.parametrize("where", ["labelling", "testing", "the table"])
def test_a_signal_outside_of_training_stops_both(outputs, by, where, capfd):
    """What one is told while they label, or while one of them tests and the other waits, both follow."""

    def before(rank: int) -> None:
        from tutelage.runs import evaluate, label, runner

        module, name = {
            "labelling": (label, "fill_store"),
            "testing": (evaluate, "predict"),
            "the table": (label, "write_table"),
        }[where]
        real = getattr(module, name)

        def send(*given, **options):
            if rank == by:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*given, **options)

        setattr(module, name, send)
        if where != "labelling" and rank == by == 1:  # it waits meanwhile for the first one
            check, sent = runner.RunContext.check_signals, []

            def check_and_send(self):
                if self.stages and self.record.content.get("stages") and not sent:
                    sent.append(os.kill(os.getpid(), signal.SIGTERM))
                check(self)

            runner.RunContext.check_signals = check_and_send

    assert ranks(outputs, *NOISY, before=before) == [128 + signal.SIGTERM] * 2
    told = capfd.readouterr().err
    assert told.count("stopped by SIGTERM") == 1
    assert "Traceback" not in told
    assert ranks(outputs, *NOISY) == [0, 0]


def test_a_process_that_dies_ends_the_other_and_the_same_command_goes_on(outputs, undisturbed, capfd):
    assert ranks(outputs, *LONGER, before=stopped_at(8, sent=signal.SIGKILL, by=1)) == [2, -signal.SIGKILL]
    assert "tutelage: a process of the run has ended without a word" in capfd.readouterr().err
    assert json.loads((only_run(outputs) / "run.json").read_text())["status"] == "failed"
    assert ranks(outputs, *LONGER) == [0, 0]
    assert outcome(outputs) == outcome(undisturbed)


def test_what_one_process_meets_is_said_once_by_the_first(outputs, capfd):
    def before(rank: int) -> None:
        from tutelage.data.pseudo_labels import store as label_store
        from tutelage.errors import UserError

        def full(self, shard, probabilities):
            (outputs / "full").touch()
            raise UserError("the disk is full: make room")

        def behind_the_other(self, shard):
            wait_for((outputs / "full").exists)
            return claim(self, shard)

        claim = label_store.LabelStore.claim
        if rank == 1:
            label_store.LabelStore.write = full
        else:
            label_store.LabelStore.claim = behind_the_other

    assert ranks(outputs, *NOISY, before=before) == [2, 2]
    told = capfd.readouterr().err
    assert told.count("tutelage: the disk is full: make room") == 1
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("words", "told"),
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
def test_what_is_wrong_is_said_once_and_both_end_with_2(outputs, words, told, capfd):
    assert ranks(outputs, *words) == [2, 2]
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.search(told, lines[0])
    assert not list(outputs.glob("*/*/run.json"))


def test_a_run_that_another_process_holds_is_refused_once(outputs, capfd):
    from tutelage.config.compose import compose
    from tutelage.runs import RunFolder, run_path
    from tutelage.storage import hold_lock

    config = compose([*QUIET, f"paths.outputs={outputs}", *SMALL])
    with hold_lock(RunFolder(run_path(config, "")).lock_file, "run"):
        assert ranks(outputs, *SMALL) == [2, 2]
    assert capfd.readouterr().err.count("in use by process") == 1


def test_a_finished_run_is_shown_once(outputs, capfd):
    assert run(outputs, *SMALL) == 0
    capfd.readouterr()
    assert ranks(outputs, *SMALL) == [0, 0]
    assert capfd.readouterr().out.count("supervised") == 1


def test_several_machines_are_not_started_from_one(outputs, capfd):
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


def test_of_those_that_ended_together_the_one_that_was_killed_counts():
    from tutelage.app.launch import _find_failed

    assert _find_failed([None, 0]) is None
    assert _find_failed([2, -signal.SIGKILL, None]) == 1
    assert _find_failed([0, 2, 1]) == 1


@pytest.mark.parametrize("before", [True, False])
def test_signals_are_handed_on(before, monkeypatch):
    """Those that came before the processes were there too, in a batch job of SLURM."""
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
def test_the_command_ends_and_goes_on_with_its_processes_however_they_are_ended(outputs, tmp_path, capfd):
    """One of them is killed; the command itself is, and leaves none behind; it is told to stop; it is left alone."""
    words = [*LONGER, "schedule.steps=1500", "callbacks.checkpoint_minutes=0.01", "logger=csv"]
    command = [sys.executable, "-m", "tutelage.train", *QUIET, "trainer=ddp_cpu", f"paths.outputs={outputs}", *words]
    for sent, to_a_child in ((signal.SIGKILL, True), (signal.SIGKILL, False), (signal.SIGTERM, False), (0, False)):
        process, started, children = subprocess.Popen(command, cwd=ROOT), time.time(), []
        if sent:
            wait_for(lambda: any(file.stat().st_mtime > started for file in outputs.rglob(LAST)))  # noqa: B023
            children = children_of(process.pid)
            os.kill(children[-1] if to_a_child else process.pid, sent)
        code = process.wait()
        assert code == (-sent if sent == signal.SIGKILL and not to_a_child else 128 + sent if sent else 0)
        wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))  # noqa: B023
        assert not is_held(RunFolder(only_run(outputs)).lock_file)
        told = capfd.readouterr().err
        assert told.count("process 1 of 2 was ended by SIGKILL, and the others with it") == to_a_child
        assert told.count("stopped by SIGTERM; saved.") == (bool(sent) and not to_a_child)
        assert "Traceback" not in told
        record = json.loads((only_run(outputs) / "run.json").read_text())
        assert record["status"] == ("failed" if to_a_child else "running" if sent else "finished")
        assert ("stopped" in record["sessions"][-1]) == (bool(sent) and not to_a_child)
    assert ranks(tmp_path / "undisturbed", *words) == [0, 0]
    assert outcome(outputs) == outcome(tmp_path / "undisturbed")


@pytest.mark.slow
def test_torchrun_trains_as_the_command_alone_does(outputs, tmp_path):
    """By the command on the page about clusters."""
    page = (ROOT / "docs" / "clusters.md").read_text()
    _, *words = [*shlex.split(re.search("^torchrun .*", page, re.MULTILINE)[0]), *QUIET, "debug=tiny"]
    alone = words[words.index("-m") :]
    for first, rest, place in (
        ([str(Path(sys.executable).with_name("torchrun"))], words, outputs),
        ([sys.executable], alone, tmp_path / "alone"),
    ):
        subprocess.run([*first, *rest, f"paths.outputs={place}"], cwd=ROOT, check=True, capture_output=True)
    assert json.loads((only_run(outputs) / "run.json").read_text())["processes"] == 2
    assert outcome(outputs) == outcome(tmp_path / "alone")


def children_of(process: int) -> list[int]:
    """Return the process ids of the children of a process."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def wait_for(what: Callable[[], bool], seconds: float = 200) -> None:
    started = time.monotonic()
    while not what():
        time.sleep(0.05)
        assert time.monotonic() - started < seconds
