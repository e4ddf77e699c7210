"""Signal handlers that only set a flag, which the training loop reads at points where nothing is lost.

Lightning's own SIGTERM handling is not used: its handler broadcasts inside the handler, and waits for the device in
each step.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tutelage.errors import BY_SIGNAL
from tutelage.runs.cluster.slurm import slurm_job
from tutelage.waiting import OnWait, WaitLines

SAVE = signal.SIGUSR1
STOP = (signal.SIGTERM, signal.SIGINT)
FROM_SLURM = (signal.SIGUSR1, signal.SIGTERM)
PATIENCE_SECONDS = 5.0  # after 10, docker stop kills
NO_REQUEST, SAVE_AND_CONTINUE = 0, 1  # requests; a larger one is the number of the signal that stops the run


class Stopped(Exception):  # noqa: N818 - an order that was followed, not an error
    """A signal stopped the run.

    Attributes:
        exit_code: 128 and the signal's number.
        has_saved: whether nothing is lost; else what came after the last checkpoint is.
    """

    def __init__(self, signum: int, has_saved: bool = True) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code, self.has_saved = BY_SIGNAL + signum, has_saved


class Signals:
    """The request that signals have made since the run began: SIGUSR1 saves, SIGTERM and SIGINT save and stop.

    In a batch job of SLURM, SIGUSR1 is the warning before its time limit: it saves and stops too.
    """

    def __init__(self) -> None:
        self._requested = NO_REQUEST
        self._requested_at = 0.0
        self._save_request = signal.SIGUSR1.value if slurm_job() else SAVE_AND_CONTINUE

    @property
    def requested(self) -> int:
        """The request as a number: of several processes the largest applies to all."""
        return self._requested

    def check(self, requested: int | None = None) -> None:
        """Raise ``Stopped`` where the request is to stop, and drop a request to save; call it where nothing is lost.

        Args:
            requested: the request that the processes of a run agreed on; None stands for this process's own.
        """
        requested = self._requested if requested is None else requested
        if requested > SAVE_AND_CONTINUE:
            raise Stopped(requested)
        if self._requested == SAVE_AND_CONTINUE:
            self._requested = NO_REQUEST

    def check_waiting(self) -> None:
        """Raise ``Stopped`` where the request to stop is some seconds old; call it while a step waits for its batch.

        The step is then given up: a run goes on from its last checkpoint.
        """
        if time.monotonic() - self._requested_at >= PATIENCE_SECONDS and self._requested > SAVE_AND_CONTINUE:
            raise Stopped(self._requested, has_saved=False)

    def make_on_wait(self, say: Callable[[str], None]) -> OnWait:
        """Return an ``OnWait`` that says what a long wait is for, and calls ``check_waiting``."""
        lines = WaitLines(say)

        def on_wait(what: str, seconds: float) -> None:
            lines(what, seconds)
            self.check_waiting()

        return on_wait

    def install(self) -> None:
        """Install the handlers."""
        for number in (SAVE, *STOP):
            signal.signal(number, self._handle)

    @contextmanager
    def installed(self) -> Iterator["Signals"]:
        """Install the handlers while the block runs; a second SIGINT ends the process at once."""
        before = {number: signal.getsignal(number) for number in (SAVE, *STOP)}
        try:
            self.install()
            earlier = _owner(before[SAVE])
            if earlier is not None:
                self._requested = max(self._requested, earlier.requested)
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        requested = self._save_request if number == SAVE else number
        if requested > self._requested:
            self._requested, self._requested_at = requested, time.monotonic()


def installed_signals() -> Signals | None:
    """Return the ``Signals`` whose handlers are installed in this process."""
    return _owner(signal.getsignal(SAVE))


def _owner(handler: object) -> Signals | None:
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, Signals) else None


def defer_slurm_signals() -> None:
    """In a batch job of SLURM, set flags for its signals from now on, so that they do not kill a process that loads."""
    if slurm_job() is not None and installed_signals() is None:
        early = Signals()
        for number in FROM_SLURM:
            signal.signal(number, early._handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FROM_SLURM)  # the command that handed over may have blocked them
