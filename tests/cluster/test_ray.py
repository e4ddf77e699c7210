"""Sweeps by Ray, each job in a process of Ray's: they end as they would one job after the other."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE

import pytest

from helpers.commands import fresh_command
from helpers.overrides import QUIET

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

REFUSED = ("-m", "debug=tiny", "model=timm", "model.name=test_resnet,resnet_18")
LONG = (
    *("-m", "seed=0,1,2", "data=digits", "model=lenet5", "data.labels_per_class=20", "data.batch_size=100"),
    *("schedule.epochs=null", "schedule.steps=150"),
)


@pytest.fixture
def environment():
    """What Ray needs to leave nothing behind; its sockets want a short path."""
    if find_spec("ray") is None:
        assert os.environ.get("CI") != "true", "the extra ray is not installed"
        pytest.skip("needs the extra ray")
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield {**os.environ, "HOME": folder, "RAY_TMPDIR": folder}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(environment):
    """A Ray that runs already, in another folder than a sweep is begun in."""
    head = ["start", "--head", "--block", "--port=0", "--num-cpus=2", "--include-dashboard=false"]
    script = [sys.executable, "-m", "ray.scripts.scripts", *head, "--disable-usage-stats"]
    with subprocess.Popen(script, cwd=environment["HOME"], env=environment, stdout=subprocess.DEVNULL) as ray:
        try:
            wait_until(lambda: Path(environment["RAY_TMPDIR"], "ray", "ray_current_cluster").exists())
            yield environment
        finally:
            ray.terminate()


def wait_until(true, seconds=400):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.1)


def records(outputs):
    found = [json.loads(file.read_text()) for file in sorted(outputs.glob("runs/*/run.json"))]
    return {one["identity"]["seed"]: one for one in found}


def weights(outputs):
    return {seed: (one["threads"], one["stages"][0]["weights_sha256"]) for seed, one in records(outputs).items()}


def one_after_the_other(outputs, *words):
    return fresh_command("tutelage.train", *QUIET, f"paths.outputs={outputs}", *words).returncode


def under_way(outputs, seed):
    """Return whether a job has begun to train."""
    return any(len(file.read_text().splitlines()) > 2 for file in outputs.glob(f"runs/*-s{seed}-*/metrics.csv"))


def process_of(outputs, seed):
    (record,) = outputs.glob(f"runs/*-s{seed}-*/run.json")
    (holder,) = (one for one in outputs.rglob("*.holder.json") if record.parent.name in str(one))
    return json.loads(holder.read_text())["pid"]


def test_a_sweep_by_ray_gives_what_it_gives_one_job_after_the_other(environment, outputs, tmp_path):
    words = [*QUIET, f"paths.outputs={outputs}", *REFUSED]
    by_ray = ["hydra/launcher=ray", "hydra.launcher.init.num_cpus=2"]
    done = fresh_command("tutelage.train", *words, *by_ray, env=environment)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("no result: model.name=resnet_18") == 1
    assert "model.name=resnet_18: timm has no such architecture" in done.stdout
    assert one_after_the_other(tmp_path / "alone", *REFUSED) == 1
    assert len(weights(outputs)) == 1
    assert weights(outputs) == weights(tmp_path / "alone")
    finished = [word.replace(",resnet_18", "") for word in words]
    again = fresh_command("tutelage.train", *finished, *by_ray, env=environment)
    assert (again.returncode, again.stderr) == (0, "")  # nothing is missing: Ray is not begun


def test_jobs_stop_in_order_die_alone_and_go_on(cluster, outputs, tmp_path):
    # A path that is relative to where the sweep is begun, which is not where Ray was
    by_ray = ["hydra/launcher=ray", "hydra.launcher.init.address=auto", f"paths.outputs={outputs.name}"]
    begin = partial(
        *(subprocess.Popen, [sys.executable, "-m", "tutelage.train", *QUIET, *LONG, *by_ray]),
        **{"cwd": outputs.parent, "env": cluster, "stdout": PIPE, "stderr": PIPE, "text": True},
    )
    with begin() as told_to_stop:
        wait_until(lambda: under_way(outputs, 0) and under_way(outputs, 1))
        told_to_stop.send_signal(signal.SIGTERM)
        said, complaints = told_to_stop.communicate(timeout=500)
    assert told_to_stop.returncode == 128 + signal.SIGTERM, (said, complaints)
    assert "the same command goes on from here" in complaints
    assert all("stopped" in one["sessions"][0] for one in records(outputs).values())
    assert len(list(outputs.glob("runs/*/checkpoints/last.ckpt"))) == len(records(outputs))

    with begin() as losing_one:
        wait_until(lambda: len(records(outputs)[0]["sessions"]) == 2)
        os.kill(process_of(outputs, 0), signal.SIGKILL)
        said, complaints = losing_one.communicate(timeout=500)
    assert losing_one.returncode == 1, (said, complaints)
    assert re.findall("no result: (.*?):", said) == ["seed=0"]
    assert re.search(r"tutelage: Ray has lost a job: .* seed=0 ", complaints)
    assert {seed for seed, one in records(outputs).items() if one["status"] == "finished"} == {1, 2}

    with begin() as again:
        said, complaints = again.communicate(timeout=500)
    assert again.returncode == 0, (said, complaints)
    assert re.findall(r"pid=.*run (\d) of 3", said) == ["1"]
    assert one_after_the_other(tmp_path / "alone", *LONG) == 0
    assert weights(outputs) == weights(tmp_path / "alone")
