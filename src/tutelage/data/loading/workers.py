"""Worker processes of a loader: how they treat signals, and how they end when an error has left them."""

import atexit
import multiprocessing
import signal


def ignore_signals(worker: int) -> None:
    """Let a worker survive a signal to the whole process group, so that the current step is finished and saved."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _kill_workers() -> None:
    """Kill workers that an error has left: Python would send them SIGTERM at exit, which they ignore, and wait."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises an error where a worker is killed
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
