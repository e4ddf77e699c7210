"""The budget of the tests: the CPU time that it counts, and when it fails."""

import signal
import sys

import pytest

from helpers import budget

BURNS = "import time\nwhile time.process_time() < 0.6: pass"
BY_A_GRANDCHILD = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {BURNS!r}]).returncode)"
IDLE = "import time; time.sleep(0.6)"
MINUTES = 0.5 / 60


@pytest.fixture(autouse=True)
def ci(monkeypatch):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(budget, "calibrate", lambda: [budget.REFERENCE])
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize(("program", "code"), [(BURNS, budget.OVER), (BY_A_GRANDCHILD, budget.OVER), (IDLE, 0)])
def test_the_processors_time_counts_also_that_of_grandchildren_and_no_waiting(program, code, capfd):
    assert budget.main(MINUTES, [sys.executable, "-c", program]) == code
    assert ("over budget" in capfd.readouterr().err) == bool(code)


def test_a_slow_machine_has_more_time(monkeypatch, capfd):
    monkeypatch.setattr(budget, "calibrate", lambda: [2 * budget.REFERENCE])
    assert budget.main(MINUTES, [sys.executable, "-c", BURNS]) == 0
    assert "(0.50 of the reference) 0.0 CPU minutes of 0.00833" in capfd.readouterr().out


def test_a_budget_binds_in_ci_alone(monkeypatch):
    monkeypatch.setenv("CI", "false")
    assert budget.main(MINUTES, [sys.executable, "-c", BURNS]) == 0


@pytest.mark.parametrize(("end", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 128 + 9)])
def test_a_command_that_fails_gives_its_own_code(end, code):
    assert budget.main(1.0, [sys.executable, "-c", f"import os, sys; {end}"]) == code


def test_the_fixed_piece_of_work_takes_the_longer_the_more_it_is(monkeypatch):
    monkeypatch.setattr(budget, "WORK", 100)
    short = budget.compile_program()
    monkeypatch.setattr(budget, "WORK", 2_000)
    assert 2 * short < budget.compile_program()


def test_two_processes_time_it_several_times(monkeypatch):
    monkeypatch.undo()
    seconds = budget.calibrate()
    assert len(seconds) == 2 * budget.TIMES
    assert min(seconds) > 0
