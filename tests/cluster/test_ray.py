"""Sweeps with Ray, each job in its own process: their results are those of one job after the other."""

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
from helpers.shadows import run_installed, write_own_code, write_shadows

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

ONE_FAILING = ("-m", "debug=tiny", "model=timm", "model.name=test_resnet,resnet_18")
LONG_SWEEP = (
    *("-m", "seed=0,1,2", "data=digits", "model=lenet5", "data.labels_per_class=20", "data.batch_size=100"),
    *("schedule.epochs=null", "schedule.steps=150"),
)


@pytest.fixture
def environment():
    """The environment of Ray, with a folder that is removed; its sockets need a short path."""
    if find_spec("ray") is None:
        assert os.environ.get("CI") != "true", "the extra ray is not installed"
        pytest.skip("needs the extra ray")
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield {**os.environ, "HOME": folder, "RAY_TMPDIR": folder}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(environment):
    """A Ray cluster that runs already, in another folder than the one where a sweep starts."""
    arguments = ["start", "--head", "--block", "--port=0", "--num-cpus=2", "--include-dashboard=false"]
    script = [sys.executable, "-m", "ray.scripts.scripts", *arguments, "--disable-usage-stats"]
    with subprocess.Popen(script, cwd=environment["HOME"], env=environment, stdout=subprocess.DEVNULL) as head:
        try:
            wait_until(lambda: Path(environment["RAY_TMPDIR"], "ray", "ray_current_cluster").exists())
            yield environment
        finally:
            head.terminate()


def wait_until(condition, seconds=400):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def records(outputs):
    runs = [json.loads(file.read_text()) for file in sorted(outputs.glob("runs/*/run.json"))]
    return {run["identity"]["seed"]: run for run in runs}


def weights(outputs):
    return {seed: (run["threads"], run["stages"][0]["weights_sha256"]) for seed, run in records(outputs).items()}


def run_one_after_the_other(outputs, *words):
    return fresh_command("tutelage.train", *QUIET, f"paths.outputs={outputs}", *words).returncode


def is_training(outputs, seed):
    """Return whether a job has started to train."""
    return any(len(file.read_text().splitlines()) > 2 for file in outputs.glob(f"runs/*-s{seed}-*/metrics.csv"))


def process_id(outputs, seed):
    (record,) = outputs.glob(f"runs/*-s{seed}-*/run.json")
    (holder,) = (file for file in outputs.rglob("*.holder.json") if record.parent.name in str(file))
    return json.loads(holder.read_text())["pid"]


def test_a_sweep_with_ray_gives_the_weights_of_one_job_after_the_other(environment, outputs, tmp_path):
    words = [*QUIET, f"paths.outputs={outputs}", *ONE_FAILING]
    with_ray = ["hydra/launcher=ray", "hydra.launcher.init.num_cpus=2"]
    process = fresh_command("tutelage.train", *words, *with_ray, env=environment)
    assert process.returncode == 1, process.stderr
    assert process.stdout.count("no result: model.name=resnet_18") == 1
    assert "model.name=resnet_18: timm has no such architecture" in process.stdout
    assert run_one_after_the_other(tmp_path / "alone", *ONE_FAILING) == 1
    assert len(weights(outputs)) == 1
    assert weights(outputs) == weights(tmp_path / "alone")
    finished_job = [word.replace(",resnet_18", "") for word in words]
    again = fresh_command("tutelage.train", *finished_job, *with_ray, env=environment)
    assert (again.returncode, again.stderr) == (0, "")  # nothing is missing: Ray is not started


def test_a_job_imports_from_the_folder_of_the_sweep_only_what_is_allowed(environment, tmp_path):
    marker = write_shadows(tmp_path)
    words = ["-m", *QUIET, "debug=tiny", "hydra/launcher=ray", "hydra.launcher.init.num_cpus=1", "seed=0"]
    process = run_installed(tmp_path, "train", "--allow=mycode", *words, *write_own_code(tmp_path), env=environment)
    assert process.returncode == 0, process.stderr
    assert not marker.exists()


def test_jobs_stop_at_a_signal_die_alone_and_resume(cluster, outputs, tmp_path):
    # The path of the outputs is relative to the folder where the sweep starts, which is not that of Ray
    with_ray = ["hydra/launcher=ray", "hydra.launcher.init.address=auto", f"paths.outputs={outputs.name}"]
    start_sweep = partial(
        *(subprocess.Popen, [sys.executable, "-m", "tutelage.train", *QUIET, *LONG_SWEEP, *with_ray]),
        **{"cwd": outputs.parent, "env": cluster, "stdout": PIPE, "stderr": PIPE, "text": True},
    )
    with start_sweep() as stopped_sweep:
        wait_until(lambda: is_training(outputs, 0) and is_training(outputs, 1))
        stopped_sweep.send_signal(signal.SIGTERM)
        stdout, stderr = stopped_sweep.communicate(timeout=500)
    assert stopped_sweep.returncode == 128 + signal.SIGTERM, (stdout, stderr)
    assert "the same command goes on from here" in stderr
    assert all("stopped" in run["sessions"][0] for run in records(outputs).values())
    assert len(list(outputs.glob("runs/*/checkpoints/last.ckpt"))) == len(records(outputs))

    with start_sweep() as sweep_with_a_loss:
        wait_until(lambda: len(records(outputs)[0]["sessions"]) == 2)
        os.kill(process_id(outputs, 0), signal.SIGKILL)
        stdout, stderr = sweep_with_a_loss.communicate(timeout=500)
    assert sweep_with_a_loss.returncode == 1, (stdout, stderr)
    assert re.findall("no result: (.*?):", stdout) == ["seed=0"]
    assert re.search(r"tutelage: Ray has lost a job: .* seed=0 ", stderr)
    assert {seed for seed, run in records(outputs).items() if run["status"] == "finished"} == {1, 2}

    with start_sweep() as again:
        stdout, stderr = again.communicate(timeout=500)
    assert again.returncode == 0, (stdout, stderr)
    assert re.findall(r"pid=.*run (\d) of 3", stdout) == ["1"]
    assert run_one_after_the_other(tmp_path / "alone", *LONG_SWEEP) == 0
    assert weights(outputs) == weights(tmp_path / "alone")
