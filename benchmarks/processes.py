"""What a second process gains: two of them, a core each, against one on one core, on the same batches.

A small VGG on Fashion-MNIST, as `tutelage train trainer=ddp_cpu` does it: each process trains on half of every batch,
and after each step they share their gradients. One thread a process, pinned to its core. Each trains 32 steps, of which
the last 24 count. After a warm-up of each, 5 pairs, interleaved; the figure is the median of the pairs' ratios of
images a second.

Two threads of one core, as many virtual machines have for two cores, cannot give twice of one, nor can two cores that
others use. So two single processes that share nothing run at the same time too: their ratio to one is the most that the
machine gives, and stands beside the figure. The aim is 1.6 times one where they give 2, and the same share of what they
give elsewhere. What others do on the machine moves both by a tenth and more: below a share of 0.65 this ends with an
error.

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
from tutelage.process_group import World, torchrun_environment

BATCH, STEPS, UNCOUNTED, PAIRS = 256, length(32, 12), length(8, 4), length(5, 1)
AIM, IDEAL = 1.6, 2.0  # times one: what two processes are to give, and what two whole cores would
LEAST = length(0.65, 0.4)  # of what the machine gives
OVERRIDES = ["data=fashion_mnist", "model=small_vgg", "augmentation=basic", "schedule.epochs=null", "logger=csv"]
OVERRIDES += ["data.validation=none", "evaluate_test=false", "callbacks=quiet", f"data.batch_size={BATCH}"]
OVERRIDES += ["trainer.threads=1"]


def timed(file: Path) -> None:
    """Write down how many seconds the steps of this process take that count."""
    made, began = 0, 0.0

    def count(optimizer: Optimizer, *rest: object) -> None:
        nonlocal made, began
        made += 1
        if made == UNCOUNTED:
            began = time.perf_counter()
        elif made == STEPS:
            file.write_text(str(time.perf_counter() - began))

    register_optimizer_step_post_hook(count)


def trained(outputs: Path, worlds: Sequence[World]) -> float:
    """Train in a fork for each of some worlds, on a core each, and return the images a second of the whole."""
    outputs.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for core, world in zip(sorted(os.sched_getaffinity(0)), worlds, strict=False):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.sched_setaffinity(0, {core})
        os.environ.update(torchrun_environment(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        trainer = "ddp_cpu" if world.size > 1 else "cpu"
        place = outputs if world.size > 1 else outputs / str(core)
        timed(outputs / f"{core}.seconds")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        words = [*OVERRIDES, f"trainer={trainer}", f"schedule.steps={STEPS}", f"paths.outputs={place}"]
        os._exit(run_job(compose(words), one_line=True))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise SystemExit(f"the processes ended with {codes}")
    taken = [float(file.read_text()) for file in outputs.glob("*.seconds")]
    images = BATCH * (STEPS - UNCOUNTED) / worlds[0].size  # of each process
    return sum(images / seconds for seconds in taken)


def main() -> None:
    """Print every pair and the median ratios; end with an error where the aim is missed."""
    torch.set_num_threads(1)
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("this needs two cores")
    sides = {"one": [World()], "two": [World(rank, 2, rank, 2) for rank in range(2)], "apart": [World(), World()]}
    gained, most = [], []
    with tempfile.TemporaryDirectory() as top:
        for number in range(-1, PAIRS):
            order = list(sides) if number % 2 else list(sides)[::-1]
            speed = {side: trained(Path(top) / f"{number}-{side}", sides[side]) for side in order}
            if number >= 0:
                gained.append(speed["two"] / speed["one"])
                most.append(speed["apart"] / speed["one"])
                told = ", ".join(f"{side} {speed[side]:.0f}" for side in sides)
                print(f"pair {number + 1}: images a second: {told}", flush=True)
    two, apart = statistics.median(gained), statistics.median(most)
    share = statistics.median(ours / theirs for ours, theirs in zip(gained, most, strict=True))
    print(
        f"small VGG, Fashion-MNIST, batch {BATCH}, {STEPS} steps: two processes give {two:.2f} times one (aim: {AIM} "
        f"on two cores); two that share nothing give {apart:.2f} times one here, of which that is {share:.2f} "
        f"(aim: {AIM / IDEAL:.2f})"
    )
    if share < LEAST:
        sys.exit("processes: a second one gains too little")


if __name__ == "__main__":
    main()
