"""Worker processes that run a sweep's jobs side by side on one machine, and stop with the process that began them."""

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tutelage.errors import BY_SIGNAL

WITH_WORKERS = ("joblib",)  # launchers whose processes run one job after another
PARENT = "TUTELAGE_SWEEP"  # environment variable of a worker: the pid of the process that began it
POLL_SECONDS = 0.5  # between two looks whether that process is still there
STOPS = (signal.SIGTERM, signal.SIGINT)


class Worker:
    """This process, where a launcher gives it one job after another.

    A signal stops the current job and no other. When the parent process is gone, the worker stops its job and ends.
    """

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._busy = threading.Lock()
        threading.Thread(target=self._watch_parent, daemon=True).start()

    @contextmanager
    def running_job(self) -> Iterator[bool]:
        """Be busy with a job while the block runs; signals set flags from now on and do not end the process.

        Yields:
            whether the parent process is still there.
        """
        from tutelage.runs.cluster.signals import Signals

        with self._busy:
            Signals().install()
            yield self._has_parent()

    def _has_parent(self) -> bool:
        return os.getppid() == self._parent

    def _watch_parent(self) -> None:
        while self._has_parent():
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        with self._busy:
            os._exit(BY_SIGNAL + signal.SIGTERM)


@functools.cache
def current_worker() -> Worker | None:
    """Return this process as a worker; None where it is none."""
    parent = os.environ.get(PARENT, str(os.getpid()))
    return None if parent == str(os.getpid()) else Worker(int(parent))


@contextmanager
def forward_signals(stop: Callable[[], object] = lambda: None) -> Iterator[list[int]]:
    """Forward signals to this process's workers while the block runs; a second Ctrl-C ends it at once.

    Args:
        stop: called at a signal that stops all; it keeps workers from beginning further jobs.

    Yields:
        the signals that stop all, as they come.
    """
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if number in STOPS:
            received.append(number)
            stop()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        order = signal.SIGTERM if number in STOPS else number  # a SIGINT after a terminal's own would end it at once
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, order)

    os.environ[PARENT] = str(os.getpid())
    before = {number: signal.signal(number, forward) for number in (*STOPS, signal.SIGUSR1)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
