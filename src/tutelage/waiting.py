"""Long waits: after a minute, a line says what is waited for."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL_SECONDS = 1.0
LINE_SECONDS = 60.0  # until the first line; each further one comes after twice the time

OnWait = Callable[[str, float], None]  # receives what is waited for and for how many seconds so far; may raise to stop


class WaitLines:
    """An ``OnWait`` that prints a line once a wait has taken a minute, then two, four and so on."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or _print
        self._last, self._due = 0.0, LINE_SECONDS

    def __call__(self, what: str, seconds: float) -> None:
        """Say what is waited for where a line is due; fewer seconds than at the last call are another wait."""
        if seconds < self._last:
            self._due = LINE_SECONDS
        self._last = seconds
        if seconds >= self._due:
            self._say(f"note: waiting for {what}, {seconds:.0f} s so far")
            self._due = 2 * seconds


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Print the lines of a long wait from a thread, while the block waits in a call that returns only at its end."""
    ended, lines, since = threading.Event(), WaitLines(), time.monotonic()

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            lines(what, time.monotonic() - since)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
