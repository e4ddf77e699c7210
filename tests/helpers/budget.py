"""Run a command and print what it cost; with CI=true, fail if it cost more than its budget.

The cost is the CPU time of the command and of all processes that it starts, since the clock's time also depends on what
else the machine does. Two threads of one core slow each other down, and machines differ, so the time is scaled by a
fixed piece of work that two processes do at the same time, before the command and after it.

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


def calibrate() -> list[float]:
    """Return the CPU seconds of ``compile_program``, measured several times by two processes at once."""
    command = [sys.executable, "-S", __file__]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    return [float(seconds) for process in pair for seconds in process.communicate()[0].split()]


def compile_program() -> float:
    """Compile a program and return the CPU seconds; like the tests, it makes many small objects."""
    program = "\n".join(PROGRAM.format(number=number) for number in range(WORK))
    started = time.process_time()
    compile(program, "program", "exec")
    return time.process_time() - started


def run(command: Sequence[str]) -> tuple[int, float, float]:
    """Run a command; return its exit code, its clock seconds and its CPU seconds."""
    usage_before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the command, not this script
    code, usage_after = process.wait(), resource.getrusage(resource.RUSAGE_CHILDREN)
    used = usage_after.ru_utime + usage_after.ru_stime - usage_before.ru_utime - usage_before.ru_stime
    return code if code >= 0 else 128 - code, time.monotonic() - started, used


def main(minutes: float, command: Sequence[str]) -> int:
    """Run a command, print what it cost, and return its exit code, or ``OVER``."""
    seconds_before = calibrate()
    code, seconds, used = run(command)
    speed = REFERENCE / statistics.median([*seconds_before, *calibrate()])
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
    print(*(compile_program() for _ in range(TIMES)))
