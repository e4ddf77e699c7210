"""Measure what resuming costs: the time from the command to the first step, of a resumed run against a new one.

LeNet-5 on Fashion-MNIST, as `tutelage train` trains it; each start is a new process. A run is stopped by SIGTERM at the
start, in the middle and at the end of its second epoch, and resumes from a copy of its folder each time. A cold start
has no folder; what a machine prepares only once (the download, its scan) is ready for both.

After a warm-up of each, 5 rounds in a rotating order; a figure is the median of the rounds' ratios to the cold start of
the same round.

    make bench
"""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lengths import length

BATCH, EPOCH = 128, 468  # steps of an epoch of 60,000 images
WARM_UP, ROUNDS = length(1, 0), length(5, 2)
STOPS = length({"start": EPOCH + 1, "middle": EPOCH + EPOCH // 2, "end": 2 * EPOCH - 1}, {"middle": EPOCH // 2})
AIM = 1.2  # times a cold start, at most
LIMIT = length(AIM, 2.0)
COLD, STOPPED = "cold", 128 + signal.SIGTERM
OVERRIDES = ["data=fashion_mnist", "model=lenet5", "augmentation=basic", "schedule.epochs=3", "logger=csv"]
OVERRIDES += ["data.validation=none", "callbacks=quiet", f"data.batch_size={BATCH}"]


def train_until(steps: int, code: int, overrides: list[str]) -> None:
    """Run ``tutelage train`` for ``steps`` steps; then exit if ``code`` is 0, or send SIGTERM: it saves and stops."""
    from torch.optim import Optimizer
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from tutelage.train import main as train

    steps_made = 0

    def count(optimizer: Optimizer, *_: object) -> None:
        nonlocal steps_made
        steps_made += 1
        if steps_made == steps:
            if not code:
                os._exit(0)
            os.kill(os.getpid(), signal.SIGTERM)

    register_optimizer_step_post_hook(count)
    sys.argv[1:] = overrides
    train()


def time_run(outputs: Path, steps: int = 1, code: int = 0) -> float:
    """Start or resume a run and return the seconds until it has made ``steps`` steps and ended."""
    command = [sys.executable, __file__, str(steps), str(code), *OVERRIDES, f"paths.outputs={outputs}"]
    started = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != code:
        raise SystemExit(f"exit code {result.returncode}, not {code}:\n{result.stdout}{result.stderr}")
    return time.perf_counter() - started


def make_stopped_runs(top: Path) -> dict[str, Path]:
    """Stop one run after each of the steps of ``STOPS`` and return copies of its outputs by the stop's name."""
    stopped, outputs, last_step = {}, top / "run", 0
    for name, step in STOPS.items():
        time_run(outputs, step - last_step, STOPPED)
        stopped[name] = top / name
        shutil.copytree(outputs, stopped[name])
        last_step = step
    return stopped


def main() -> None:
    """Print every round and the median ratios; end with an error if one is above the limit."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        stopped = make_stopped_runs(top)
        sides, ratios = [COLD, *stopped], {name: list[float]() for name in stopped}
        for number in range(-WARM_UP, ROUNDS):
            durations = {}
            for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
                outputs = top / f"{number}-{side}"
                if side != COLD:
                    shutil.copytree(stopped[side], outputs)
                durations[side] = time_run(outputs)
                shutil.rmtree(outputs)
            if number >= 0:
                print(
                    f"round {number + 1}: " + ", ".join(f"{side} {durations[side]:.2f} s" for side in sides), flush=True
                )
                for name in stopped:
                    ratios[name].append(durations[name] / durations[COLD])
    medians = ", ".join(f"{name} {statistics.median(ratios[name]):.2f}" for name in stopped)
    print(f"LeNet-5, Fashion-MNIST, time to the first step against a cold start, by stop: {medians} (aim: {AIM})")
    if max(map(statistics.median, ratios.values())) > LIMIT:
        sys.exit(f"resume: resuming takes more than {LIMIT} times as long as a cold start")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train_until(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
    else:
        main()
