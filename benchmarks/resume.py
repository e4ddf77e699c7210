"""What it costs to go on: from the command to its first step, of a run that goes on against one that begins.

LeNet-5 on Fashion-MNIST, as `tutelage train` does it, each start a new process. A run is stopped by SIGTERM at the
start, in the middle and at the end of its second epoch, and goes on from a copy of its folder each time. A cold start
has no folder; what is prepared once for a machine (the download, its scan) is there on both sides.

After a warm-up of each, 5 rounds, their order turned each time; a figure is the median of the rounds' ratios to the
cold start of the same round.

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


def child(steps: int, code: int, words: list[str]) -> None:
    """Be ``tutelage train`` until it has made so many steps; end at once, with code 0, or save and stop."""
    from torch.optim import Optimizer
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from tutelage.train import main as train

    made = 0

    def count(optimizer: Optimizer, *rest: object) -> None:
        nonlocal made
        made += 1
        if made == steps:
            if not code:
                os._exit(0)
            os.kill(os.getpid(), signal.SIGTERM)

    register_optimizer_step_post_hook(count)
    sys.argv[1:] = words
    train()


def seconds(outputs: Path, steps: int = 1, code: int = 0) -> float:
    """Start a run, or go on with it, and return the seconds until it has made so many steps and ended."""
    command = [sys.executable, __file__, str(steps), str(code), *OVERRIDES, f"paths.outputs={outputs}"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != code:
        raise SystemExit(f"exit code {done.returncode}, not {code}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


def stopped_runs(top: Path) -> dict[str, Path]:
    """Return the outputs of one run, stopped after each of the steps of ``STOPS``."""
    found, outputs, before = {}, top / "run", 0
    for name, step in STOPS.items():
        seconds(outputs, step - before, STOPPED)
        found[name] = top / name
        shutil.copytree(outputs, found[name])
        before = step
    return found


def main() -> None:
    """Print every round and the median ratios; end with an error where the aim is missed."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        stopped = stopped_runs(top)
        sides, ratios = [COLD, *stopped], {name: list[float]() for name in stopped}
        for number in range(-WARM_UP, ROUNDS):
            taken = {}
            for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
                outputs = top / f"{number}-{side}"
                if side != COLD:
                    shutil.copytree(stopped[side], outputs)
                taken[side] = seconds(outputs)
                shutil.rmtree(outputs)
            if number >= 0:
                print(f"round {number + 1}: " + ", ".join(f"{side} {taken[side]:.2f} s" for side in sides), flush=True)
                for name in stopped:
                    ratios[name].append(taken[name] / taken[COLD])
    told = ", ".join(f"{name} {statistics.median(ratios[name]):.2f}" for name in stopped)
    print(f"LeNet-5, Fashion-MNIST, to the first step against a cold start, by place in the epoch: {told} (aim: {AIM})")
    if max(map(statistics.median, ratios.values())) > LIMIT:
        sys.exit("resume: it takes too long to go on")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
    else:
        main()
