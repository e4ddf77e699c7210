"""Traps: patches set in a fork before a run, by which the run is killed or gets a signal at a chosen step."""

import os
import signal
from collections.abc import Callable


def kill_before_save() -> None:
    """Kill the process with -9 at its fifth step, with nothing saved since it began."""
    from tutelage.runs import callbacks

    hook = callbacks.EpochTable.on_train_batch_end

    def trap(self, trainer, *rest):
        hook(self, trainer, *rest)
        if trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    callbacks.EpochTable.on_train_batch_end = trap


def send_signal(sent: int, step: int) -> Callable[[], None]:
    """Return a trap that sends ``sent`` to the process during ``step`` of the first stage."""

    def trap() -> None:
        from tutelage.runs import callbacks

        hook = callbacks.EpochTable.on_train_batch_end

        def send(self, trainer, *rest):
            hook(self, trainer, *rest)
            if trainer.global_step == step:
                os.kill(os.getpid(), sent)

        callbacks.EpochTable.on_train_batch_end = send

    return trap
