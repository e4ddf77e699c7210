"""Nothing is waited for for ever: loader workers that die or are stuck, full shared memory, devices, endless lists."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset

from helpers.paths import ROOT
from tutelage import waiting
from tutelage.data import BatchShard, DataRuntime
from tutelage.data.loading import loader
from tutelage.data.loading.loader import Loader
from tutelage.data.loading.workers import worker_deaths
from tutelage.data.shards.pools import find_shards
from tutelage.errors import UserError, complain
from tutelage.models import ImageSpec
from tutelage.models.parameter_groups import FineTuning
from tutelage.runs import checks
from tutelage.runs.cluster import signals
from tutelage.runs.cluster.signals import Signals, Stopped
from tutelage.runs.weight_sources import find_network, find_weights
from tutelage.storage import hold_lock
from tutelage.sweeps.search import check_sweep_command
from tutelage.waiting import WaitLines, announced


class Batches(Dataset):
    """Four batches; ``make`` makes the last one."""

    def __init__(self, make) -> None:
        self._make = make

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int):
        return {"images": torch.full((2, 3), number)} if number < 3 else self._make()


def test_batches_come_in_order_from_workers_that_share_them(monkeypatch):
    monkeypatch.setattr(loader, "POLL_SECONDS", 0.02)
    waits: list[tuple[str, float]] = []

    def make() -> torch.Tensor:
        time.sleep(0.2)
        return torch.empty(2, 0)

    batches = list(Loader(Batches(make), 2, lambda *wait: waits.append(wait)))
    assert [int(batch["images"][0, 0]) for batch in batches[:3]] == [0, 1, 2]
    assert all(batch["images"].is_shared() for batch in batches[:3])
    assert batches[3].shape == (2, 0)
    assert len(waits) > 1


def test_workers_that_stay_may_be_slow_to_begin_another_pass(monkeypatch):
    monkeypatch.setattr(loader, "POLL_SECONDS", 0.02)
    batches = Loader(Batches(lambda: torch.empty(1)), 1, lambda what, seconds: None, persistent_workers=True)
    assert len(list(batches)) == 4
    (worker,) = batches._iterator._workers
    os.kill(worker.pid, signal.SIGSTOP)
    threading.Timer(0.1, os.kill, (worker.pid, signal.SIGCONT)).start()
    assert len(list(batches)) == 4


@pytest.mark.parametrize(
    "make",
    [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: lambda: "a function cannot be sent"],
    ids=["killed", "cannot send"],
)
def test_a_worker_that_dies_ends_the_loop_in_one_line(make, capfd):
    with pytest.raises(UserError) as caught, worker_deaths():
        list(Loader(Batches(make), 1))
    capfd.readouterr()
    assert complain(caught.value) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("tutelage: a loader worker has ended too early (")
    assert "--shm-size" in line
    assert "data.num_workers=0" in line


def test_a_worker_that_finds_shared_memory_full_ends_the_loop_in_one_line(monkeypatch, capfd):
    def fail(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"
        )

    monkeypatch.setattr(loader, "_share", fail)
    with pytest.raises(UserError) as caught:
        list(Loader(Batches(torch.empty), 1))
    assert complain(caught.value) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("tutelage: /dev/shm")
    assert "--shm-size" in line
    assert "data.num_workers=0" in line


def test_a_signal_ends_the_wait_for_a_worker_that_is_stuck(monkeypatch):
    monkeypatch.setattr(loader, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(signals, "PATIENCE_SECONDS", 0.1)
    with Signals().installed() as installed:

        def on_wait(what: str, seconds: float) -> None:
            if not installed.requested:
                os.kill(os.getpid(), signal.SIGTERM)
            installed.check_waiting()

        started = time.monotonic()
        with pytest.raises(Stopped) as caught:
            list(Loader(Batches(lambda: time.sleep(60)), 1, on_wait))
        assert 0.1 < time.monotonic() - started < 20
        assert not caught.value.has_saved


def test_a_long_wait_is_said_after_a_minute_and_then_ever_more_rarely():
    lines: list[str] = []
    wait = WaitLines(lines.append)
    for second in [*range(250), *range(61)]:
        wait("a batch", second)
    assert lines == [f"note: waiting for a batch, {seconds} s so far" for seconds in (60, 120, 240, 60)]


def test_a_call_that_waits_and_returns_only_at_its_end_is_announced(monkeypatch, capsys):
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(waiting, "LINE_SECONDS", 0.05)
    with announced("the 3 other processes"):
        time.sleep(0.2)
    assert capsys.readouterr().err.startswith("note: waiting for the 3 other processes, 0 s so far")
    time.sleep(0.03)
    assert not capsys.readouterr().err


def test_a_lock_that_is_waited_for_tells_its_holder(tmp_path, monkeypatch):
    monkeypatch.setattr("tutelage.storage.LOCK_POLL_SECONDS", 0.01)
    waits: list[str] = []

    def on_wait(what: str, seconds: float) -> None:
        waits.append(what)
        raise Stopped(signal.SIGTERM)

    lock = tmp_path / "a.lock"
    with hold_lock(lock, "run x"), pytest.raises(Stopped), hold_lock(lock, "run x", 600.0, on_wait):
        pass
    assert waits[0].startswith(f"a lock: run x is in use by process {os.getpid()} ")


def test_weights_are_read_from_no_device_and_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("/dev/zero", str(tmp_path / "pipe")):
        for find, key in ((find_weights, "init_from"), (find_network, "strategy.teachers")):
            with pytest.raises(UserError, match=f"{key}={name}: a device, a pipe"):
                find(name, key)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=range(0,1000000000)"], "seed=.*: more than 10,000 values"),
        (["seed=range(0,10,0)"], "seed=.*: a range with a step of 0"),
        (["seed=shuffle(range(0,1000000000))"], "seed=.*: more than 10,000 values"),
        (["seed=range(0,1000)", "optimizer.lr=range(0.1,100,0.1)"], "a sweep of 999,000 jobs"),
        (["hydra/sweeper=random", "evaluate_test=false", "hydra.sweeper.trials=1000000000"], "hydra.sweeper.trials="),
    ],
)
def test_a_sweep_of_more_jobs_than_anybody_runs_is_refused_at_once(words, message):
    defaults = [] if words[0].startswith("hydra") else ["hydra/sweeper=grid"]
    started = time.monotonic()
    with pytest.raises(UserError, match=message):
        check_sweep_command(["data=digits", *defaults, *words], [])
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("braces", ["{0..99999999}", "{00..99}{000..999}{000..999}", "{{0..99999999},a}"])
def test_braces_that_stand_for_more_files_than_anybody_has_are_refused_at_once(braces):
    started = time.monotonic()
    with pytest.raises(UserError, match="its braces stand for more than 100,000 files"):
        find_shards(f"/nowhere/x-{braces}.tar")
    assert time.monotonic() - started < 2


SMALL_MEMORY = 'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'


@pytest.mark.slow
def test_with_a_containers_64_mb_of_shared_memory_a_run_ends_in_one_line_and_goes_on(tmp_path):
    unshare = shutil.which("unshare")
    works = unshare and not subprocess.run([unshare, "-m", "true"], capture_output=True, check=False).returncode
    if not works and not os.environ.get("CI"):
        pytest.skip("needs unshare -m (util-linux, as root)")

    def train(size: str, *words: str) -> subprocess.CompletedProcess[str]:
        overrides = ["data=digits", "data.image_size=256", "data.channels=3", "data.batch_size=512", "model=mlp"]
        overrides += ["data.mean=[0.3,0.3,0.3]", "data.std=[0.3,0.3,0.3]", "model.width=2", "trainer=cpu"]
        overrides += ["schedule.epochs=null", "schedule.steps=2", f"paths.outputs={tmp_path}", *words]
        shell = ["unshare", "-m", "sh", "-c", SMALL_MEMORY.format(size=size), "sh"]
        command = [*shell, sys.executable, "-m", "tutelage.train", *overrides]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)

    process = train("64m", "data.num_workers=2")
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("tutelage: ")]
    assert process.returncode == 2
    assert "Traceback" not in process.stderr
    assert line.startswith("tutelage: /dev/shm (64 MB) is full")
    assert train("64m", "data.num_workers=0").returncode == 0  # the same run: workers are no part of its name
    assert len(list(tmp_path.glob("*/*/run.json"))) == 1


@pytest.mark.parametrize(
    ("shard", "joined", "parts"),
    [
        (BatchShard(accumulate=4), False, 4),
        (BatchShard(processes=4), False, 4),
        (BatchShard(processes=4), True, None),  # a joined norm sees the images of all processes
        (BatchShard(accumulate=4), True, 4),
    ],
)
def test_batch_norm_with_a_single_value_of_each_channel_is_refused_in_one_line(shard, joined, parts):
    model = SimpleNamespace(
        arguments=lambda: {"_target_": "tutelage.models.Timm", "name": "mobilenetv3_small_050"},
    )
    spec = ImageSpec(1, 32, ("a", "b"), (0.3,), (0.3,))
    context = SimpleNamespace(
        data=SimpleNamespace(runtime=DataRuntime(shard=shard)),
        config=SimpleNamespace(data=SimpleNamespace(batch_size=4), trainer=SimpleNamespace(sync_batchnorm=joined)),
        stage_image_spec=lambda stage: spec,
    )
    stage = SimpleNamespace(one_pass=False, images_per_step=4, model=model, fine_tuning=FineTuning())
    message = f"data.batch_size=4 in {parts} parts: batch norm of model mobilenetv3_small_050 needs"
    with pytest.raises(UserError, match=message) if parts else nullcontext():
        checks._check_batch_norm(context, stage)
    checks._check_batch_norm(context, SimpleNamespace(**{**vars(stage), "images_per_step": 8}))
