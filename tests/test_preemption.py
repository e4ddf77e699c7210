"""In a batch job of SLURM a signal saves, and what follows is left to SLURM; here a script stands in for scontrol."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.overrides import NOISY_STUDENT, QUIET
from helpers.paths import ROOT
from helpers.runs import only_run, outcome, run
from helpers.traps import kill_before_save, send_signal
from tutelage.runs.cluster.slurm import SlurmJob, slurm_job
from tutelage.testing import kill_after

BATCH = {"SLURM_JOB_ID": "12", "ENVIRONMENT": "BATCH"}
USR1, TERM = signal.SIGUSR1, signal.SIGTERM


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory):
    outputs = tmp_path_factory.mktemp("undisturbed")
    assert run(outputs, *NOISY_STUDENT) == 0
    return outcome(outputs)


class Scontrol:
    """A script that records its arguments and succeeds or fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.agrees()

    def agrees(self) -> None:
        self._write('case "$1" in show) echo "JobId=12 StdErr=/logs/job-12.err StdOut=/logs/job-12.out";; esac')

    def refuses(self) -> None:
        self._write('echo "Requested operation is presently disabled" >&2; exit 1')

    def _write(self, reply: str) -> None:
        script = self.folder / "scontrol"
        script.write_text(f'#!/bin/sh\necho "$@" >> {self.folder}/calls\n{reply}\n')
        script.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def scontrol(tmp_path):
    return Scontrol(tmp_path / "bin")


def in_slurm(scontrol: Scontrol, trap: Callable[[], None] = lambda: None, **variables: str) -> Callable[[], None]:
    """Return a trap that makes the process one of a batch job whose wait is over at once."""

    def enter() -> None:
        from tutelage.runs.cluster import slurm
        from tutelage.runs.cluster.signals import defer_slurm_signals

        os.environ.update({**BATCH, **variables, "PATH": f"{scontrol.folder}:{os.environ['PATH']}"})
        slurm.LONGEST_WAIT_SECONDS = 0.0
        defer_slurm_signals()
        trap()

    return enter


def send_signal_before(part: str, sent: int) -> Callable[[], None]:
    """Return a trap that sends ``sent`` when a stage, or the test, is about to begin."""

    def trap() -> None:
        from tutelage.runs.context import RunContext

        show_part = RunContext.show_part

        def send(context, name):
            if name == part:
                os.kill(os.getpid(), sent)
            show_part(context, name)

        RunContext.show_part = send

    return trap


@pytest.mark.parametrize("sent", [USR1, TERM])
@pytest.mark.parametrize("part", ["teacher", "labels-1", "student-1", "control", "test"])
def test_a_signal_in_any_part_of_a_run_is_followed_and_the_next_start_ends_the_same(
    undisturbed, outputs, scontrol, part, sent, capfd
):
    assert run(outputs, *NOISY_STUDENT, before=in_slurm(scontrol, send_signal_before(part, sent))) == 128 + sent
    assert scontrol.calls == (["requeue 12"] if sent == USR1 else [])
    messages = capfd.readouterr().err
    assert ("SLURM job 12 is requeued; waiting" if sent == USR1 else "waiting for SLURM to end job 12") in messages
    assert run(outputs, *NOISY_STUDENT, before=in_slurm(scontrol, SLURM_RESTART_COUNT="1")) == 0
    assert outcome(outputs) == undisturbed


def test_the_step_of_the_signal_is_saved_and_the_next_session_says_where_it_begins(undisturbed, outputs, scontrol):
    assert run(outputs, *NOISY_STUDENT, before=in_slurm(scontrol, send_signal(USR1, step=4))) == 128 + USR1
    assert run(outputs, *NOISY_STUDENT, before=in_slurm(scontrol, SLURM_RESTART_COUNT="1")) == 0
    first, second = json.loads((only_run(outputs) / "run.json").read_text())["sessions"]
    assert (first["slurm"], first["restart"], first["stage"], first["step"]) == ("12", 0, "teacher", 0)
    assert (second["slurm"], second["restart"], second["stage"], second["step"]) == ("12", 1, "teacher", 4)
    assert "stopped" in first
    assert "stopped" not in second
    assert outcome(outputs) == undisturbed


def test_a_job_waits_with_the_runs_lock_given_up(outputs, scontrol):
    def trap() -> None:
        from tutelage.runs.cluster import slurm
        from tutelage.storage import is_held

        send_signal(TERM, step=2)()
        locks = outputs / "runs" / ".locks"

        def look(seconds: float) -> None:
            (outputs / "held").write_text(json.dumps([is_held(file) for file in locks.glob("*.lock")]))

        slurm.time = type("Clock", (), {"sleep": staticmethod(look)})

    assert run(outputs, *NOISY_STUDENT, before=in_slurm(scontrol, trap)) == 128 + TERM
    assert json.loads((outputs / "held").read_text()) == [False]


def test_a_signal_before_the_run_begins_is_kept_until_it_can_be_followed(outputs, scontrol):
    trap = in_slurm(scontrol, lambda: os.kill(os.getpid(), USR1))
    assert run(outputs, *NOISY_STUDENT, before=trap) == 128 + USR1
    assert scontrol.calls == ["requeue 12"]


@pytest.mark.slow
def test_a_signal_while_the_command_is_loading_does_not_kill_it(tmp_path, scontrol):
    """The real command, from its first moment as the app on; the command that hands over holds signals back."""
    scontrol.refuses()
    environment = {**os.environ, **BATCH, "PATH": f"{scontrol.folder}:{os.environ['PATH']}"}
    arguments = ["tutelage", "train", *QUIET, *NOISY_STUDENT, f"paths.outputs={tmp_path}"]
    command = [sys.executable, "-c", f"import sys; sys.argv = {arguments!r}; from tutelage.cli import main; main()"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    line = Path(f"/proc/{process.pid}/cmdline")
    while b"tutelage.train\0" not in line.read_bytes():
        time.sleep(0.001)
    process.send_signal(USR1)
    assert "SLURM job 12 could not be requeued (Requested operation is presently" in process.communicate()[1]
    assert process.returncode == 128 + USR1


def test_sigint_is_a_plain_stop_in_a_job_too(outputs, scontrol):
    assert (
        run(outputs, *NOISY_STUDENT, before=in_slurm(scontrol, send_signal(signal.SIGINT, step=2)))
        == 128 + signal.SIGINT
    )
    assert scontrol.calls == []


def test_sigusr1_in_an_interactive_session_saves_and_the_run_goes_on(undisturbed, outputs, scontrol):
    trap = in_slurm(scontrol, send_signal(USR1, step=4), ENVIRONMENT="")
    assert run(outputs, *NOISY_STUDENT, before=trap) == 0
    assert scontrol.calls == []
    assert outcome(outputs) == undisturbed


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "bash"}, None),
        (BATCH, SlurmJob("12", 0)),
        ({**BATCH, "SLURM_JOB_NAME": "bash", "SLURM_RESTART_COUNT": "2"}, SlurmJob("12", 2)),
        ({**BATCH, "SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": "3"}, SlurmJob("11_3", 0)),
        ({"ENVIRONMENT": "BATCH"}, None),
    ],
)
def test_a_batch_job_is_known_by_what_sbatch_sets(variables, expected):
    assert slurm_job(variables) == expected


def start(outputs: Path, scontrol: Scontrol, restart: int, trap: Callable[[], None], job: str = "12") -> int | str:
    """Start a run as SLURM starts a job, and return its exit code."""
    return run(
        outputs, *NOISY_STUDENT, before=in_slurm(scontrol, trap, SLURM_JOB_ID=job, SLURM_RESTART_COUNT=str(restart))
    )


def test_a_job_that_fails_at_the_same_step_again_and_again_is_refused_and_a_person_may_go_on(
    undisturbed, outputs, scontrol, capfd
):
    assert start(outputs, scontrol, 0, kill_after("teacher", 3)) == -signal.SIGKILL  # saved at step 3
    for restart in (1, 2, 3):
        assert start(outputs, scontrol, restart, kill_before_save) == -signal.SIGKILL
    assert start(outputs, scontrol, 4, kill_before_save) == 70  # the fork's, for an exception
    messages = capfd.readouterr().err
    assert "SLURM job 12 has failed 3 times behind step 3 of stage teacher" in messages
    assert "/logs/job-12.err may say why" in messages
    assert start(outputs, scontrol, 0, kill_before_save, job="13") == -signal.SIGKILL  # handed in anew
    assert run(outputs, *NOISY_STUDENT) == 0  # typed by a person
    assert outcome(outputs) == undisturbed


def test_a_job_that_makes_progress_or_is_stopped_by_a_signal_is_never_refused(undisturbed, outputs, scontrol):
    for restart, step in enumerate((1, 2, 3, 4)):
        assert start(outputs, scontrol, restart, kill_after("teacher", step)) == -signal.SIGKILL
    for restart in (4, 5, 6, 7):
        assert start(outputs, scontrol, restart, send_signal_before("labels-1", TERM)) == 128 + TERM
    assert start(outputs, scontrol, 8, lambda: None) == 0
    assert outcome(outputs) == undisturbed
