"""Signals become flags that the training loop reads where it can be left."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tutelage.errors import BY_SIGNAL
from tutelage.runs.cluster.slurm import slurm_job

SAVE = signal.SIGUSR1
STOP = (signal.SIGTERM, signal.SIGINT)
FROM_SLURM = (signal.SIGUSR1, signal.SIGTERM)
NOTHING, SAVE_AND_GO_ON = 0, 1  # what may be asked for; beyond these, the number of the signal that stops


class Stopped(Exception):  # noqa: N818 - an order that was followed, not an error
    """The run was told to stop and has saved what it had."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = BY_SIGNAL + signum


class Signals:
    """What has been asked for since the run began: SIGUSR1 saves, SIGTERM and SIGINT save and stop.

    In a batch job of SLURM, SIGUSR1 is the warning before its time limit: it saves and stops too.
    """

    def __init__(self) -> None:
        self._asked = NOTHING
        self._save = signal.SIGUSR1.value if slurm_job() else SAVE_AND_GO_ON

    @property
    def asked(self) -> int:
        """What is asked for as a number: the largest of several processes' counts for them all."""
        return self._asked

    def answer(self, asked: int | None = None) -> None:
        """Raise ``Stopped`` where that is asked for; call it where nothing is lost.

        Args:
            asked: what the processes of a run agreed on; None stands for what this one was asked for.
        """
        asked = self._asked if asked is None else asked
        if asked > SAVE_AND_GO_ON:
            raise Stopped(asked)
        if self._asked == SAVE_AND_GO_ON:
            self._asked = NOTHING

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
            earlier = getattr(before[SAVE], "__self__", None)
            if isinstance(earlier, Signals):
                self._asked = max(self._asked, earlier.asked)
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._asked = max(self._asked, self._save if number == SAVE else number)


def defer_slurm_signals() -> None:
    """In a batch job of SLURM, note its signals from now on, rather than be killed by them before a run begins."""
    noting = isinstance(getattr(signal.getsignal(SAVE), "__self__", None), Signals)
    if slurm_job() is not None and not noting:
        noted = Signals()
        for number in FROM_SLURM:
            signal.signal(number, noted._note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FROM_SLURM)  # the command that handed over may have held them back
