"""What SLURM is told and asked: which job this is, to put it back into the queue, and when to leave things to SLURM.

What SLURM does by itself (tried on 22.05): before a time limit it sends the signal of ``--signal``, and the job has to
requeue itself. ``scontrol requeue``, a preemption and a ``scancel`` all send SIGTERM, then SIGKILL. A job that exits at
the SIGTERM counts as completed or failed and stays so; one that waits to be killed is started again where that was the
point, and stays cancelled where it was not.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tutelage.errors import BY_SIGNAL
from tutelage.process_group import world

ANSWER_SECONDS = 60.0  # a busy controller takes its time
LOCK_SECONDS = 600.0
LONGEST_WAIT = 3600.0  # seconds; longer than a grace time, short of holding a node for ever where nobody kills


@dataclass(frozen=True)
class SlurmJob:
    """The batch job that this process belongs to.

    Attributes:
        name: what ``scontrol`` calls it; a task of an array is ARRAY_TASK.
        restart: how often SLURM has started it again.
    """

    name: str
    restart: int


def slurm_job(environment: Mapping[str, str] = os.environ) -> SlurmJob | None:
    """Return the batch job that this process belongs to; None outside SLURM and in an interactive session of it."""
    if "SLURM_JOB_ID" not in environment or environment.get("ENVIRONMENT") != "BATCH":
        return None
    array = [environment.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK")]
    name = "_".join(part for part in array if part) if all(array) else environment["SLURM_JOB_ID"]
    return SlurmJob(name, int(environment.get("SLURM_RESTART_COUNT", "0")))


def patience() -> float:
    """Return for how many seconds a run's lock is waited for.

    After a node was lost, SLURM may start a job again while the file server still holds the lock for the dead process,
    or while that process still runs.
    """
    job = slurm_job()
    return LOCK_SECONDS if job is not None and job.restart else 0.0


def log_of(job: SlurmJob) -> str:
    """Return where a job's errors go, as far as SLURM tells."""
    found = re.search(r"StdErr=(\S+)", _scontrol("show", "job", job.name).stdout)
    return found[1] if found else "its log"


def leave_to_slurm(code: int) -> int:
    """Return the exit code of a process that a signal stopped; in a job of SLURM, let SLURM go on with it instead.

    Call it with nothing held that the job's next start needs: a lock, an unsaved file.

    Args:
        code: 128 + the number of the signal.
    """
    job = slurm_job()
    if job is None or code not in {BY_SIGNAL + signal.SIGUSR1, BY_SIGNAL + signal.SIGTERM}:
        return code
    for number in (signal.SIGUSR1, signal.SIGTERM):  # SLURM repeats them before it kills
        signal.signal(number, signal.SIG_IGN)
    first = world().first
    if code == BY_SIGNAL + signal.SIGUSR1:
        if first and (refusal := _requeue(job)):
            _say(f"SLURM job {job.name} could not be requeued ({refusal}): sbatch it anew to go on")
            return code
        told = f"SLURM job {job.name} is requeued; waiting for SLURM to end this start of it"
    else:
        told = (
            f"waiting for SLURM to end job {job.name}: requeued or preempted it will start again, cancelled it will not"
        )
    if first:
        _say(told)
    time.sleep(LONGEST_WAIT)
    return code


def _say(line: str) -> None:
    print(f"tutelage: {line}", file=sys.stderr, flush=True)


def _requeue(job: SlurmJob) -> str:
    """Put a job back into the queue; return why SLURM refused, if it did."""
    done = _scontrol("requeue", job.name)
    return " ".join(done.stderr.split()) or f"exit code {done.returncode}" if done.returncode else ""


def _scontrol(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = ["scontrol", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)  # noqa: S603 - ours
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
