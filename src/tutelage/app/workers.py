"""Jobs side by side on one machine: what stops the process that began them stops each of them in good order."""

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
BEGUN_BY = "TUTELAGE_SWEEP"  # in a worker's environment: the process that began it
LOOK = 0.5  # seconds between two looks whether that process is still there
STOPS = (signal.SIGTERM, signal.SIGINT)


class Worker:
    """This process, where a launcher gives it one job after another.

    A signal stops the job that is under way, and no other. When the process that began it is gone, its job is told to
    stop, and then it ends.
    """

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._busy = threading.Lock()
        threading.Thread(target=self._end_with_parent, daemon=True).start()

    @contextmanager
    def at_work(self) -> Iterator[bool]:
        """Be busy with a job while the block runs, and note signals from now on rather than end at once.

        Yields:
            whether the process that began this one is still there.
        """
        from tutelage.runs.cluster.signals import Signals

        with self._busy:
            Signals().install()
            yield self._has_parent()

    def _has_parent(self) -> bool:
        return os.getppid() == self._parent

    def _end_with_parent(self) -> None:
        while self._has_parent():
            time.sleep(LOOK)
        os.kill(os.getpid(), signal.SIGTERM)
        with self._busy:
            os._exit(BY_SIGNAL + signal.SIGTERM)


@functools.cache
def worker() -> Worker | None:
    """Return what this process is as a worker; None where it is none."""
    parent = os.environ.get(BEGUN_BY, str(os.getpid()))
    return None if parent == str(os.getpid()) else Worker(int(parent))


@contextmanager
def handed_on(stop: Callable[[], object] = lambda: None) -> Iterator[list[int]]:
    """Hand signals on to this process's workers while the block runs; a second Ctrl-C ends it at once.

    Args:
        stop: called when one comes that stops all; it keeps workers from beginning what they have not begun.

    Yields:
        the signals that came and stop all.
    """
    came: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        if number in STOPS:
            came.append(number)
            stop()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        order = signal.SIGTERM if number in STOPS else number  # a SIGINT after a terminal's own would end it at once
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, order)

    os.environ[BEGUN_BY] = str(os.getpid())
    before = {number: signal.signal(number, hand_on) for number in (*STOPS, signal.SIGUSR1)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
