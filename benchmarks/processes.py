"""Measure what a second process gains: two processes on a core each against one on one core, on the same batches.

A small VGG on Fashion-MNIST, as `tutelage train trainer=ddp_cpu` trains it: each process trains on half of every batch,
and they average their gradients in each step. A process has one thread, pinned to its core, and trains 32 steps, of
which the last 24 count. After a warm-up of each, 5 pairs, interleaved; the figure is the median of the pairs' ratios of
images a second.

Two cores cannot be twice as fast as one if they are two threads of one core, as on many virtual machines, or if other
programs use them. So two independent single processes run at the same time too: their ratio to one process is the most
that the machine allows, and is printed beside the figure. The aim is 1.6 times one process where they reach 2, and the
same fraction of their ratio elsewhere. Other programs on the machine change both by a tenth or more; the script ends
with an error if the fraction is below 0.65.

    make bench
"""

import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

import tutelage.runs.runner  # noqa: F401 - imported once, before the forks
from lengths import length
from tutelage.app.job import run_job
from tutelage.config.compose import compose
from tutelage.world import World, torchrun_environment

BATCH, STEPS, UNCOUNTED, PAIRS = 256, length(32, 12), length(8, 4), length(5, 1)
AIM, IDEAL = 1.6, 2.0  # times one process: the aim for two, and what two whole cores would give
LEAST = length(0.65, 0.4)  # the fraction of the two independent processes' ratio
OVERRIDES = ["data=fashion_mnist", "model=small_vgg", "augmentation=basic", "schedule.epochs=null", "logger=csv"]
OVERRIDES += ["data.validation=none", "evaluate_test=false", "callbacks=quiet", f"data.batch_size={BATCH}"]
OVERRIDES += ["trainer.threads=1"]


def time_steps(file: Path) -> None:
    """Write to ``file`` the seconds that this process's steps take, without the first ones (``UNCOUNTED``)."""
    steps, started = 0, 0.0

    def count(optimizer: Optimizer, *_: object) -> None:
        nonlocal steps, started
        steps += 1
        if steps == UNCOUNTED:
            started = time.perf_counter()
        elif steps == STEPS:
            file.write_text(str(time.perf_counter() - started))

    register_optimizer_step_post_hook(count)


def measure_speed(outputs: Path, worlds: Sequence[World]) -> float:
    """Train in a fork for each of ``worlds``, each on its own core, and return the images a second of all together."""
    outputs.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for core, world in zip(sorted(os.sched_getaffinity(0)), worlds, strict=False):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.sched_setaffinity(0, {core})
        os.environ.update(torchrun_environment(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        trainer = "ddp_cpu" if world.size > 1 else "cpu"
        run_outputs = outputs if world.size > 1 else outputs / str(core)
        time_steps(outputs / f"{core}.seconds")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        overrides = [*OVERRIDES, f"trainer={trainer}", f"schedule.steps={STEPS}", f"paths.outputs={run_outputs}"]
        os._exit(run_job(compose(overrides), one_line=True))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise SystemExit(f"processes: the exit codes are {codes}")
    durations = [float(file.read_text()) for file in outputs.glob("*.seconds")]
    images = BATCH * (STEPS - UNCOUNTED) / worlds[0].size  # of each process
    return sum(images / seconds for seconds in durations)


def main() -> None:
    """Print every pair and the median ratios; end with an error if the fraction is below the limit."""
    torch.set_num_threads(1)
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("processes: this benchmark needs two cores")
    sides = {"one": [World()], "two": [World(rank, 2, rank, 2) for rank in range(2)], "apart": [World(), World()]}
    gains, limits = [], []
    with tempfile.TemporaryDirectory() as top:
        for number in range(-1, PAIRS):
            order = list(sides) if number % 2 else list(sides)[::-1]
            speed = {side: measure_speed(Path(top) / f"{number}-{side}", sides[side]) for side in order}
            if number >= 0:
                gains.append(speed["two"] / speed["one"])
                limits.append(speed["apart"] / speed["one"])
                rates = ", ".join(f"{side} {speed[side]:.0f}" for side in sides)
                print(f"pair {number + 1}: images a second: {rates}", flush=True)
    gain, limit = statistics.median(gains), statistics.median(limits)
    fraction = statistics.median(one_gain / one_limit for one_gain, one_limit in zip(gains, limits, strict=True))
    print(
        f"small VGG, Fashion-MNIST, batch {BATCH}, {STEPS} steps: two processes are {gain:.2f} times as fast as one "
        f"(aim: {AIM} on two cores); two independent ones are {limit:.2f} times as fast as one on this machine; the "
        f"first ratio is {fraction:.2f} of the second (aim: {AIM / IDEAL:.2f})"
    )
    if fraction < LEAST:
        sys.exit(f"processes: {fraction:.2f} of two independent processes' ratio, at least {LEAST} is required")


if __name__ == "__main__":
    main()
