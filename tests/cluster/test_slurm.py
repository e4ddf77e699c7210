"""On a real SLURM of two virtual nodes: whatever SLURM does to a job, the run ends with the same weights."""

import csv
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import pytest
from virtual_slurm import Slurm, virtual_slurm

from helpers.paths import ROOT
from helpers.runs import only_run, outcome
from tutelage.runs.cluster.crash_guard import MOST_FAILURES

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

PAGE = (ROOT / "docs" / "clusters.md").read_text()
RUN = (
    *("data=digits", "model=lenet5", "data.labels_per_class=20", "data.batch_size=100", "data.validation=outside:300"),
    *("augmentation=affine_randaugment", "optimizer.ema_decay=0.9", "schedule.epochs=null", "schedule.steps=200"),
    *("trainer.threads=1", "callbacks=quiet", "logger=csv"),
)
TWO_PROCESSES = ("trainer=ddp_cpu", "schedule.steps=80")
SMALL_JOB = ("--cpus-per-task=1", "--time=10")


@pytest.fixture(scope="module")
def slurm():
    with virtual_slurm() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory):
    outputs = tmp_path_factory.mktemp("undisturbed")
    run_outside_slurm(outputs)
    return outcome(outputs)


@pytest.fixture(scope="module")
def undisturbed_by_two(tmp_path_factory: pytest.TempPathFactory):
    """Return the outcome of a run by two processes on one machine, which the command starts itself."""
    outputs = tmp_path_factory.mktemp("undisturbed_by_two")
    run_outside_slurm(outputs, *TWO_PROCESSES)
    return outcome(outputs)


def run_outside_slurm(outputs: Path, *overrides: str) -> None:
    """Run the command to its end, outside SLURM."""
    command = [str(Path(sys.executable).with_name("tutelage")), "train", *RUN, *overrides, f"paths.outputs={outputs}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def read_script(heading: str) -> str:
    """Return the first script below a heading of the page on clusters."""
    return re.search(rf"^## {heading}$.*?```bash\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)[1]


def submit(slurm: Slurm, outputs: Path, *options: str, arguments=RUN) -> str:
    """Submit a run by the page's script."""
    return slurm.submit(
        read_script("A run as a batch job"), [*SMALL_JOB, *options], [*arguments, f"paths.outputs={outputs}"]
    )


def wait_for_step(slurm: Slurm, job: str, outputs: Path, step: int) -> int:
    """Wait until a run has trained a number of steps and return how many it has trained."""
    deadline = time.monotonic() + 600
    while (count := steps(outputs)) < step:
        assert slurm.job(job)["JobState"] in {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}, slurm.log(job)
        assert time.monotonic() < deadline, slurm.log(job)
        time.sleep(0.1)
    return count


def steps(outputs: Path, run: str = "*") -> int:
    rows = [row for file in outputs.glob(f"*/{run}/metrics.csv") for row in csv.DictReader(file.open())]
    return int(rows[-1]["step"]) if rows else 0


def sessions(outputs: Path) -> list[dict]:
    return json.loads((only_run(outputs) / "run.json").read_text())["sessions"]


def check_completed(slurm: Slurm, job: str, restarts: int) -> None:
    """Wait until a job is completed, after a number of restarts."""
    state = slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", str(restarts)), slurm.log(job)


def test_a_job_is_requeued_at_each_warning_while_it_loads_and_while_it_trains(undisturbed, slurm, outputs):
    job = submit(slurm, outputs)
    slurm.wait_for_process(job, "tutelage.train")
    slurm.cancel(job, "--signal=USR1")
    slurm.wait_for_restart(job, 1)
    wait_for_step(slurm, job, outputs, 20)
    slurm.cancel(job, "--signal=USR1")
    check_completed(slurm, job, restarts=2)
    assert slurm.log(job).count(f"SLURM job {job} is requeued") == 2
    assert outcome(outputs) == undisturbed


def test_scontrol_requeue_loses_no_step(undisturbed, slurm, outputs):
    job = submit(slurm, outputs)
    step_before = wait_for_step(slurm, job, outputs, 20)
    slurm.call("scontrol", "requeue", job)
    check_completed(slurm, job, restarts=1)
    first, second = sessions(outputs)
    assert "stopped" in first
    assert second["step"] >= step_before
    assert (second["slurm"], second["restart"]) == (job, 1)
    assert outcome(outputs) == undisturbed


def test_a_preempted_job_makes_room_and_goes_on(undisturbed, slurm, outputs):
    job = submit(slurm, outputs, "--partition=low", "--exclusive")
    step_before = wait_for_step(slurm, job, outputs, 20)
    second_job = slurm.submit("#!/bin/bash\nsleep 1\n", ["--partition=high", "--nodes=2", "--exclusive"])
    slurm.wait(second_job, "COMPLETED")
    check_completed(slurm, job, restarts=1)
    assert sessions(outputs)[1]["step"] >= step_before
    assert outcome(outputs) == undisturbed


def test_a_cancelled_job_stays_cancelled_and_the_same_command_goes_on_from_there(undisturbed, slurm, outputs):
    job = submit(slurm, outputs)
    before = wait_for_step(slurm, job, outputs, 20)
    slurm.cancel(job)
    assert slurm.wait(job, "CANCELLED")["Restarts"] == "0"
    slurm.wait_until_gone(job)
    (session,) = sessions(outputs)
    assert "stopped" in session
    run_outside_slurm(outputs)
    assert slurm.job(job)["JobState"] == "CANCELLED"
    assert len(sessions(outputs)) == 2
    assert steps(outputs) > before
    assert outcome(outputs) == undisturbed


def test_a_job_whose_node_dies_goes_on_elsewhere_from_the_last_checkpoint(undisturbed, slurm, outputs):
    job = submit(slurm, outputs, arguments=(*RUN, "callbacks.checkpoint_minutes=0.001"))
    wait_for_step(slurm, job, outputs, 20)
    node = slurm.job(job)["NodeList"]
    slurm.kill_node(node)
    slurm.wait_for_restart(job, 1)
    slurm.start_node(node)
    check_completed(slurm, job, restarts=1)
    slurm.wait_for_nodes()
    first, second = sessions(outputs)
    assert "stopped" not in first
    assert second["step"] > 0
    assert outcome(outputs) == undisturbed


def test_a_job_that_dies_at_the_same_step_again_and_again_is_refused(slurm, outputs):
    script = read_script("A run as a batch job").replace("srun", "export PYTHONPATH=$TRAP:$PYTHONPATH\nsrun")
    trap = outputs.parent / "trap"
    trap.mkdir()
    (trap / "sitecustomize.py").write_text(KILL_AFTER_A_STEP)
    job = slurm.submit(script, [*SMALL_JOB, f"--export=ALL,TRAP={trap}"], [*RUN, f"paths.outputs={outputs}"])
    for restart in range(1, MOST_FAILURES + 1):
        slurm.wait(job, "FAILED")
        slurm.call("scontrol", "requeue", job)
        slurm.wait_for_restart(job, restart)
    state = slurm.wait(job, "FAILED", "COMPLETED")
    assert state["ExitCode"] == "2:0"
    assert f"SLURM job {job} has failed {MOST_FAILURES} times behind step 0 of stage supervised" in slurm.log(job)
    assert str(slurm.log_file(job)) in slurm.log(job)


def test_two_nodes_train_one_run_and_are_requeued_as_one(undisturbed_by_two, slurm, outputs):
    two_nodes = ("trainer.devices=1", "trainer.nodes=2")
    job = submit(slurm, outputs, "--nodes=2", arguments=(*RUN, *TWO_PROCESSES, *two_nodes))
    before = wait_for_step(slurm, job, outputs, 20)
    slurm.cancel(job, "--signal=USR1")
    check_completed(slurm, job, restarts=1)
    assert slurm.log(job).count(f"SLURM job {job} is requeued") == 1  # by the first process alone
    assert sessions(outputs)[1]["step"] >= before
    assert outcome(outputs) == undisturbed_by_two


def test_tasks_that_the_config_does_not_ask_for_are_an_error(slurm, outputs):
    job = submit(slurm, outputs, "--nodes=2")
    assert slurm.wait(job, "FAILED", "COMPLETED")["ExitCode"] == "2:0"
    assert "srun has started 2 processes" in slurm.log(job)
    assert not list(outputs.glob("*/*/run.json"))


def test_a_sweep_is_an_array_whose_tasks_are_requeued_and_die_one_by_one(undisturbed, slurm, outputs):
    command = [*shlex.split(read_script("A sweep as an array")), *RUN[1:], f"paths.outputs={outputs}"]
    command += ["hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=10"]
    with subprocess.Popen(command, cwd=ROOT, env=slurm.environment, stdout=PIPE, stderr=PIPE, text=True) as sweep:
        try:
            array = re.match(r"SLURM job (\d+) has 3 of the jobs", sweep.stdout.readline())[1]
            to_cancel = {0: (f"{array}_0", "--signal=USR1"), 1: (f"{array}_1",)}
            while to_cancel:  # each as soon as it trains
                assert sweep.poll() is None, sweep.communicate()
                for seed in [seed for seed in to_cancel if steps(outputs, f"*-s{seed}-*")]:
                    slurm.cancel(*to_cancel.pop(seed))
                time.sleep(0.05)
            stdout, stderr = sweep.communicate(timeout=600)
        finally:
            sweep.kill()
    assert sweep.returncode == 1, (stdout, stderr)
    assert re.search(rf"SLURM job {array}_1 left no result: {outputs}/.sweeps/slurm/{array}_1/\S+", stderr)
    assert finished_seeds(outputs) == {0, 2}
    (requeued,) = outputs.glob("*/*-s0-*/run.json")
    assert [session["restart"] for session in json.loads(requeued.read_text())["sessions"]] == [0, 1]
    assert read_weight_hashes(requeued) == [stage["weights_sha256"] for stage in undisturbed["stages"]]
    again = subprocess.run(command, cwd=ROOT, env=slurm.environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "has 1 of the jobs" in again.stdout
    assert finished_seeds(outputs) == {0, 1, 2}


def finished_seeds(outputs: Path) -> set[int]:
    records = [json.loads(file.read_text()) for file in outputs.glob("*/*/run.json")]
    return {record["identity"]["seed"] for record in records if record["status"] == "finished"}


def read_weight_hashes(record: Path) -> list[str]:
    return [stage["weights_sha256"] for stage in json.loads(record.read_text())["stages"]]


KILL_AFTER_A_STEP = f"""
import os, sys, threading, time

def die():
    while "tutelage.runs.callbacks" not in sys.modules:
        time.sleep(0.05)
    from tutelage.runs import callbacks
    callbacks.EpochTable.on_train_batch_end = lambda *arguments: os.kill(os.getpid(), {signal.SIGKILL.value})

if "tutelage.train" in " ".join(sys.orig_argv):
    threading.Thread(target=die, daemon=True).start()
"""
