"""A loader's worker processes: signals, shared memory, their deaths, and their end when an error has left them."""

import atexit
import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from tutelage.errors import UserError

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps what processes share
DEATH = "DataLoader worker (pid"  # begins torch's message
WAY_OUT = "set data.num_workers=0, which needs no worker; the same command goes on from here"
TOO_MANY_FILES = "Too many open files"
JOIN_SECONDS = 1.0  # for a killed worker to end
LOST_BATCH = 1  # exit code


def start_worker(worker: int) -> None:
    """Prepare a worker: it survives signals to the process group, and dies where it cannot send a batch."""
    ignore_signals(worker)
    Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]  # multiprocessing's own hook


def ignore_signals(worker: int) -> None:
    """Let a worker survive a signal to the whole process group, so that the current step is finished and saved."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _end_worker(error: Exception, batch: Any) -> None:
    """End a worker that cannot send a batch: multiprocessing would drop it, and the loader wait for it for ever."""
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(LOST_BATCH)


@contextmanager
def shared_memory_errors() -> Iterator[None]:
    """Raise a UserError where there is no room in shared memory for what the block puts there."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if TOO_MANY_FILES in str(error):
            raise UserError(f"too many open files for loader workers: raise 'ulimit -n', or {WAY_OUT}") from None
        if not any(words in str(error) for words in ("shm", "/torch_", "No space left", "semaphore")):
            raise
        raise UserError(
            f"{_describe_shared_memory()} is full, and loader workers send their batches through it: start the "
            f"container with a larger one (docker run --shm-size=8g), or {WAY_OUT}"
        ) from None


@contextmanager
def worker_deaths() -> Iterator[None]:
    """Raise a UserError of one line where a loader's worker dies while the block runs; torch raises anywhere in it."""
    try:
        yield
    except RuntimeError as error:
        if DEATH not in str(error):
            raise
        kill_workers()
        reason = str(error.__cause__ if DEATH in str(error.__cause__) else error)
        raise lost_worker(" ".join(reason.partition(") ")[2].partition(". ")[0].split())) from error


def lost_worker(reason: str) -> UserError:
    """Return the error of a loader one of whose workers is gone."""
    return UserError(
        f"a loader worker has ended too early ({reason}): where memory or {_describe_shared_memory()} is short, "
        f"give the container more (docker run --memory, --shm-size=8g), or {WAY_OUT}"
    )


def _describe_shared_memory() -> str:
    """Return the name of the shared memory, with its size where the system says it."""
    with suppress(OSError):
        return f"{SHARED_MEMORY} ({shutil.disk_usage(SHARED_MEMORY).total // 2**20:,} MB)"
    return str(SHARED_MEMORY)


def kill_workers() -> None:
    """Kill all workers of this process; torch, which raises an error for each that dies, sees none of them."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    children = [child for child in multiprocessing.active_children() if child.daemon]
    for child in children:
        child.kill()
    for child in children:
        child.join(JOIN_SECONDS)
    signal.signal(signal.SIGCHLD, handler)


# Python would send workers that an error has left SIGTERM at exit, which they ignore, and wait.
atexit.register(kill_workers)
