"""Starts the processes of a run on this machine, one for each device, and ends with them.

Each is a ``python -m tutelage.app.launched``. Its rank is in the variables that torchrun would set; the checked config
is its input, so that the processes cannot come to different ones. Lightning would start processes by the command line
again, and torchrun restarts all of them where one fails.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from tutelage.app.job import LAUNCHED
from tutelage.errors import BY_SIGNAL
from tutelage.runs.cluster.signals import SAVE_AND_CONTINUE, installed_signals
from tutelage.world import World, torchrun_environment

if TYPE_CHECKING:
    from tutelage.config import Config

MODULE = "tutelage.app.launched"
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
POLL_SECONDS = 0.05  # between two looks whether a process has ended
GRACE, LAST_GRACE = 30.0, 10.0  # seconds that the others have where one has failed, until SIGTERM and until SIGKILL
THIS_MACHINE = "127.0.0.1"


def launch_processes(config: "Config", arguments: Sequence[str], count: int) -> int:
    """Run a config by ``count`` processes on this machine; return 0, or the exit code of the first one that failed.

    Signals are forwarded, those that came before too. A process that fails ends the others; they have some seconds to
    end by themselves.
    """
    order = json.dumps({"config": config.model_dump(mode="json"), "arguments": list(arguments)})
    port = _free_port()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # in the processes too, until they install handlers
    try:
        processes = [_start(World(rank, count, rank, count), port, order) for rank in range(count)]
        with _forwarded_signals(processes):
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return _wait_for_processes(processes)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(world: World, port: int, order: str) -> "subprocess.Popen[str]":
    """Start one of the processes, in a process group of its own: a terminal's signals reach it only forwarded."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    rank = {
        **torchrun_environment(world),
        "MASTER_ADDR": THIS_MACHINE,
        "MASTER_PORT": str(port),
        LAUNCHED: str(os.getpid()),
    }
    command = [sys.executable, "-P", "-m", MODULE]  # imports nothing from the current folder
    process = subprocess.Popen(  # noqa: S603 - our own module
        command, stdin=subprocess.PIPE, text=True, env={**inherited, **rank}, process_group=0
    )
    if process.stdin is not None:
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(order)
    return process


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((THIS_MACHINE, 0))
        return int(free.getsockname()[1])


@contextmanager
def _forwarded_signals(processes: Sequence["subprocess.Popen[str]"]) -> Iterator[None]:
    """Forward signals to processes while the block runs, and a request that came before it."""

    def forward(number: int, frame: FrameType | None) -> None:
        _send(processes, number)

    earlier = installed_signals()
    before = {number: signal.signal(number, forward) for number in FORWARDED}
    if earlier is not None and earlier.requested > SAVE_AND_CONTINUE:
        _send(processes, earlier.requested)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(processes: Sequence["subprocess.Popen[str]"], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _wait_for_processes(processes: Sequence["subprocess.Popen[str]"]) -> int:
    """Wait for all processes; return the exit code of the first one that failed, 0 where none did."""
    failed, failed_at, measures = None, 0.0, [(GRACE, signal.SIGTERM), (GRACE + LAST_GRACE, signal.SIGKILL)]
    while any(process.poll() is None for process in processes):
        if failed is None:
            failed, failed_at = _find_failed([process.poll() for process in processes]), time.monotonic()
        elif measures and time.monotonic() - failed_at > measures[0][0]:
            _send(processes, measures.pop(0)[1])
        time.sleep(POLL_SECONDS)
    codes = [process.wait() for process in processes]
    failed = _find_failed(codes) if failed is None else failed
    code = 0 if failed is None else codes[failed]
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    print(
        f"tutelage: process {failed} of {len(codes)} was ended by {name}, and the others with it: "
        "the same command goes on from the last checkpoint",
        file=sys.stderr,
    )
    return BY_SIGNAL - code


def _find_failed(codes: Sequence[int | None]) -> int | None:
    """Return the rank of a process that has failed, one that a signal killed before others; None where none has."""
    failed = [rank for rank, code in enumerate(codes) if code]
    return min(failed, key=lambda rank: ((codes[rank] or 0) > 0, rank), default=None)
