"""SLURM: the batch job of this process, its requeue, and when to leave the end of the process to SLURM.

Behaviour of SLURM 22.05, as tried: before a time limit it sends the signal of ``--signal``, and the job has to
requeue itself. ``scontrol requeue``, a preemption and a ``scancel`` all send SIGTERM, then SIGKILL. A job that exits at
the SIGTERM counts as completed or failed and stays so; one that waits to be killed is started again where that was
intended, and stays cancelled otherwise.
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
from tutelage.world import read_world

SCONTROL_SECONDS = 60.0  # a busy controller needs time
LOCK_SECONDS = 600.0
LONGEST_WAIT_SECONDS = 3600.0  # longer than a grace time, but a node is not held for ever


@dataclass(frozen=True)
class SlurmJob:
    """The batch job that this process belongs to.

    Attributes:
        name: the id for ``scontrol``; a task of an array is ARRAY_TASK.
        restart: number of restarts by SLURM.
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


def lock_patience() -> float:
    """Return the seconds to wait for a run's lock.

    After a node was lost, SLURM may start a job again while the file server still holds the lock for the dead process,
    or while that process still runs.
    """
    job = slurm_job()
    return LOCK_SECONDS if job is not None and job.restart else 0.0


def error_log(job: SlurmJob) -> str:
    """Return the path of a job's error log, or the words "its log" where SLURM does not know it."""
    match = re.search(r"StdErr=(\S+)", _scontrol("show", "job", job.name).stdout)
    return match[1] if match else "its log"


def leave_to_slurm(code: int) -> int:
    """Return the exit code of a process that a signal stopped; in a job of SLURM, let SLURM go on with it instead.

    The caller holds nothing that the next start of the job needs: no lock, no unsaved file.

    Args:
        code: 128 + the number of the signal.
    """
    job = slurm_job()
    if job is None or code not in {BY_SIGNAL + signal.SIGUSR1, BY_SIGNAL + signal.SIGTERM}:
        return code
    for number in (signal.SIGUSR1, signal.SIGTERM):  # SLURM repeats them before it kills
        signal.signal(number, signal.SIG_IGN)
    is_rank0 = read_world().is_rank0
    if code == BY_SIGNAL + signal.SIGUSR1:
        if is_rank0 and (refusal := _requeue(job)):
            _print(f"SLURM job {job.name} could not be requeued ({refusal}): sbatch it anew to go on")
            return code
        message = f"SLURM job {job.name} is requeued; waiting for SLURM to end this start of it"
    else:
        message = (
            f"waiting for SLURM to end job {job.name}: requeued or preempted it will start again, cancelled it will not"
        )
    if is_rank0:
        _print(message)
    time.sleep(LONGEST_WAIT_SECONDS)
    return code


def _print(line: str) -> None:
    print(f"tutelage: {line}", file=sys.stderr, flush=True)


def _requeue(job: SlurmJob) -> str:
    """Put a job back into the queue; return the reason where SLURM refuses."""
    result = _scontrol("requeue", job.name)
    return " ".join(result.stderr.split()) or f"exit code {result.returncode}" if result.returncode else ""


def _scontrol(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = ["scontrol", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SCONTROL_SECONDS, check=False)  # noqa: S603 - ours
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
