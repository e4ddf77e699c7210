"""Runs a command and tells what it cost; under CI=true it fails where that is more than its budget.

What counts is the processor's time, of the command and of all that it starts, since the clock also shows what else the
machine does. Two threads of one core slow each other down, and machines differ: the time is scaled by a fixed piece of
work that two processes do at once, before the command and after it.

    python tests/helpers/budget.py CPU_MINUTES COMMAND...
"""

import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

WORK, TIMES = 4000, 3  # functions to compile, how often that is timed before and after
REFERENCE = 0.47  # seconds that it takes on two cores of an AMD EPYC that do nothing else, November 2026
PROGRAM = """
def function_{number}(first, second={number}, *rest, **named):
    found = {{key: [value + {number}, str(second), first or None] for key, value in named.items() if value % 3}}
    while first is not None and len(found) < {number}:
        first, second = second, first(rest[{number}:], *found.values()) if callable(first) else None
    return sorted(found, key=lambda one: (one, -{number}))[::-1]
"""
OVER = 1  # exit code


def calibrated() -> list[float]:
    """Return the seconds of the processor's time that the work takes, in two processes at once, several times."""
    command = [sys.executable, "-S", __file__]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    return [float(seconds) for process in pair for seconds in process.communicate()[0].split()]


def work() -> float:
    """Compile a program, which is what tests do most: many small objects; return the processor's seconds."""
    program = "\n".join(PROGRAM.format(number=number) for number in range(WORK))
    started = time.process_time()
    compile(program, "program", "exec")
    return time.process_time() - started


def run(command: Sequence[str]) -> tuple[int, float, float]:
    """Run a command; return its exit code, and the seconds of the clock and of the processor that it took."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the command that Ctrl-C ends
    code, after = process.wait(), resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return code if code >= 0 else 128 - code, time.monotonic() - started, used


def main(minutes: float, command: Sequence[str]) -> int:
    """Run a command, tell what it cost, and return its exit code, or ``OVER``."""
    before = calibrated()
    code, seconds, used = run(command)
    speed = REFERENCE / statistics.median([*before, *calibrated()])
    scaled = used * speed / 60
    print(
        f"{seconds / 60:.1f} minutes, {used / 60:.1f} CPU minutes; by the speed of this machine ({speed:.2f} of the "
        f"reference) {scaled:.1f} CPU minutes of {minutes:g}",
        flush=True,
    )
    if scaled > minutes and not code and os.environ.get("CI") == "true":
        print("over budget: pytest --durations=30 shows where the time goes", file=sys.stderr)
        return OVER
    return code


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
    print(*(work() for _ in range(TIMES)))
