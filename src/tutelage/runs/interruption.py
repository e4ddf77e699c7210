"""Signals become flags that the training loop reads where it can be left."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SAVE = signal.SIGUSR1
STOP = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):  # noqa: N818 - an order that was followed, not an error
    """The run was told to stop and has saved what it had."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class Signals:
    """What has been asked for since the run began: SIGUSR1 saves, SIGTERM and SIGINT save and stop."""

    def __init__(self) -> None:
        self.save = False
        self._stop: int | None = None

    @property
    def wanted(self) -> bool:
        """Whether a checkpoint is asked for."""
        return self.save or self._stop is not None

    def answer(self) -> None:
        """Raise ``Stopped`` where that is asked for; call it where nothing is lost."""
        self.save = False
        if self._stop is not None:
            raise Stopped(self._stop)

    def install(self) -> None:
        """Become the handler of the signals."""
        for number in (SAVE, *STOP):
            signal.signal(number, self._note)

    @contextmanager
    def watched(self) -> Iterator["Signals"]:
        """Turn signals into flags while the block runs; a second SIGINT ends the process at once."""
        before = {number: signal.getsignal(number) for number in (SAVE, *STOP)}
        try:
            self.install()
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == SAVE:
            self.save = True
            return
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._stop = number
