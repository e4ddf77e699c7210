"""Starts the processes of a run on this machine, one for each device, and ends with them.

They are told who they are as torchrun tells it, and what to run by their input: the checked config itself, so that they
cannot come to different ones.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from tutelage.app.job import LAUNCHED, execute
from tutelage.errors import BY_SIGNAL, USER_ERROR, UserError, complain
from tutelage.process_group import World, as_torchrun
from tutelage.runs.cluster.process_checks import Abandoned
from tutelage.runs.cluster.signals import SAVE, SAVE_AND_GO_ON, Signals

if TYPE_CHECKING:
    from tutelage.config import Config

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LOOK = 0.05  # seconds between two looks whether a process has ended
GRACE, LAST_GRACE = 30.0, 10.0  # seconds that the others have when one has failed: until they are told, and killed
THIS_MACHINE = "127.0.0.1"
PARENT_DIES = 1  # PR_SET_PDEATHSIG of prctl(2)


def launch(config: "Config", arguments: Sequence[str], count: int) -> int:
    """Run a config by ``count`` processes on this machine; return 0, or the exit code of the first one that failed.

    Signals are handed on, those too that came before. A process that fails ends the others: they are left some time to
    end by themselves.
    """
    order = json.dumps({"config": config.model_dump(mode="json"), "arguments": list(arguments)})
    port = _free_port()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # for the processes too, until they can note signals
    try:
        processes = [_start(World(rank, count, rank, count), port, order) for rank in range(count)]
        with _handed_on(processes):
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return _wait(processes)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(world: World, port: int, order: str) -> "subprocess.Popen[str]":
    """Start one of the processes, in a process group of its own: what a terminal sends comes by way of this one."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    who = {**as_torchrun(world), "MASTER_ADDR": THIS_MACHINE, "MASTER_PORT": str(port), LAUNCHED: str(os.getpid())}
    command = [sys.executable, "-m", "tutelage.app.launch"]
    process = subprocess.Popen(  # noqa: S603 - our own module
        command, stdin=subprocess.PIPE, text=True, env={**inherited, **who}, process_group=0
    )
    assert process.stdin is not None  # noqa: S101 - it was asked for
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(order)
    return process


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((THIS_MACHINE, 0))
        return int(free.getsockname()[1])


@contextmanager
def _handed_on(processes: Sequence["subprocess.Popen[str]"]) -> Iterator[None]:
    """Hand signals on to processes while the block runs, and what has been asked for before it."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        _send(processes, number)

    before = {number: signal.signal(number, hand_on) for number in FORWARDED}
    earlier = getattr(before[SAVE], "__self__", None)
    if isinstance(earlier, Signals) and earlier.asked > SAVE_AND_GO_ON:
        _send(processes, earlier.asked)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(processes: Sequence["subprocess.Popen[str]"], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _wait(processes: Sequence["subprocess.Popen[str]"]) -> int:
    """Wait for all processes; return the exit code of the first one that failed, 0 where none did."""
    first, since, measures = None, 0.0, [(GRACE, signal.SIGTERM), (GRACE + LAST_GRACE, signal.SIGKILL)]
    while None in (codes := [process.poll() for process in processes]):
        if first is None:
            first, since = _failed(codes), time.monotonic()
        elif measures and time.monotonic() - since > measures[0][0]:
            _send(processes, measures.pop(0)[1])
        time.sleep(LOOK)
    first = _failed(codes) if first is None else first
    code = codes[first] if first is not None else 0
    assert code is not None  # noqa: S101 - all have ended
    if code >= 0:
        return code
    print(
        f"tutelage: process {first} of {len(codes)} was ended by {signal.Signals(-code).name}, and the others with it: "
        "the same command goes on from the last checkpoint",
        file=sys.stderr,
    )
    return BY_SIGNAL - code


def _failed(codes: Sequence[int | None]) -> int | None:
    """Return the number of a process that has failed, by a signal before all others; None where none has."""
    failed = [rank for rank, code in enumerate(codes) if code]
    return min(failed, key=lambda rank: ((codes[rank] or 0) > 0, rank), default=None)


def main() -> None:
    """Be one of the processes, which notes signals from the start: one that died of them would leave the others."""
    from tutelage.config import Config

    Signals().install()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    _end_with_parent(int(os.environ[LAUNCHED]))
    order: Mapping[str, Any] = json.load(sys.stdin)
    try:
        sys.exit(execute(Config.model_validate(order["config"]), order["arguments"]))
    except Abandoned:  # who started this process saw how the other one ended, and says it
        sys.exit(USER_ERROR)
    except UserError as error:
        sys.exit(complain(error))


def _end_with_parent(parent: int) -> None:
    """Be told to save and stop when the process that started this one is gone (where the system can do that)."""
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PARENT_DIES, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
