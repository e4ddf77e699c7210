"""What a GPU is to show: speed against a plain loop, exact resume, self-training to its end, two processes on one GPU.

Four parts, each with its seconds:

- a small VGG on Fashion-MNIST against a plain loop, as benchmarks/overhead.py has it for the CPU;
- such a run killed with -9 in the middle and typed again: it ends with the weights of an undisturbed run, bit for bit;
- a noisy student on digits, from its teacher to its control and its report;
- two processes that share one GPU train one run, as two machines of a GPU each would. NCCL refuses that, so gloo
  carries their gradients; the weights are those of one process within rounding.

Takes 8 minutes at most on a GPU. Where there is none, all of it runs on the CPU. Ends with an error where weights
differ, or where a run takes much longer than the loop.

    make bench-gpu
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

import overhead
from lengths import length
from tutelage.process_group import World, torchrun_environment
from tutelage.runs.checkpoints import newest_sound

GPU = torch.cuda.is_available()
WHERE = "trainer=gpu" if GPU else "trainer=cpu"
BATCH = length(512, 32)
AIM = 1.10  # times the plain loop
LIMIT = length(1.5, 2.5)
STEPS = length(1000, 60)
RUN = [
    *("data=fashion_mnist", "augmentation=basic", "data.validation=none", "schedule.epochs=null", "logger=csv"),
    *(f"schedule.steps={STEPS}", f"data.batch_size={BATCH}", "callbacks=quiet", WHERE),
]
SAVES = "callbacks.checkpoint_minutes=0.001"  # at every end of an epoch, and nearly every step
SELF_TRAINING = ["experiment=digits_noisy_student", WHERE, *length([], ["debug=tiny"])]
FEW = 20  # steps of one process and of two
CLOSE = 1e-4  # between their weights
EXACT = {"NVIDIA_TF32_OVERRIDE": "0"}  # no products of 10 bits
COUNT = "steps"  # file

Outcome = dict[str, Any]


def command(outputs: Path, *words: str) -> list[str]:
    """Return the command of a run."""
    return [sys.executable, "-m", "tutelage.train", *words, f"paths.outputs={outputs}"]


def child(work: str, outputs: Path, *words: str) -> list[str]:
    """Return the command of a run that does one of the things of this file too."""
    return [sys.executable, __file__, work, *command(outputs, *words)[3:]]


def record(outputs: Path) -> Outcome:
    """Return the record of the one run below ``outputs``."""
    (file,) = outputs.glob("*/*/run.json")
    found: Outcome = json.loads(file.read_text())
    return found


def ended(process: "subprocess.Popen[bytes]", code: int = 0) -> None:
    """Wait for a process; end with an error where it ends otherwise."""
    if (found := process.wait()) != code:
        sys.exit(f"gpu: a command ended with {found}: {process.args!r}")


def speed(top: Path) -> str:
    """Compare with a plain loop."""
    device = torch.device("cuda" if GPU else "cpu")
    words = ["model=small_vgg", WHERE, f"data.batch_size={BATCH}", *length([], ["model.width=0.25"])]
    ratio = overhead.compared(words, device, length(min(8, len(os.sched_getaffinity(0))), 0))
    if ratio > LIMIT:
        sys.exit(f"gpu: a run takes {ratio:.2f} times as long as a plain loop (at most {LIMIT})")
    return f"a run takes {ratio:.3f} times as long as a plain loop (aim: {AIM:.2f})"


def resume(top: Path) -> str:
    """Kill a run, type it again, and compare its weights with those of a run that nobody disturbed."""
    words = [*RUN, "model=small_vgg", "model.width=0.25", "model.dropout=0.2", SAVES]
    ended(subprocess.Popen(command(top / "undisturbed", *words)))
    killed = subprocess.Popen(command(top / "killed", *words))
    while not list((top / "killed").glob("*/*/checkpoints/previous.ckpt")):
        if killed.poll() is not None:
            sys.exit("gpu: the run ended before it could be killed")
        time.sleep(0.01)
    killed.kill()
    ended(killed, -signal.SIGKILL)
    (folder,) = (top / "killed").glob("*/*/checkpoints")
    checkpoint, _ = newest_sound(folder)
    assert checkpoint is not None
    step = torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"]
    ended(subprocess.Popen(child("counted", top / "killed", *words)))
    one, other = (record(top / name)["stages"][0]["weights_sha256"] for name in ("undisturbed", "killed"))
    made = int((top / "killed" / COUNT).read_text())
    if one != other or made != STEPS - step:
        sys.exit(f"gpu: killed behind step {step} of {STEPS}, a run made {made} more; same weights: {one == other}")
    return f"killed behind step {step} of {STEPS}, it made {made} more and ended with the same weights, bit for bit"


def self_training(top: Path) -> str:
    """Run a noisy student to its end."""
    ended(subprocess.Popen(command(top, *SELF_TRAINING)))
    (_,) = top.glob("*/*/report/index.html")
    accuracies = [
        f"{stage['name']} {100 * stage['result']['test/accuracy']:.1f} %"
        for stage in record(top)["stages"]
        if "test/accuracy" in stage["result"]
    ]
    return ", ".join(accuracies)


def two_processes(top: Path) -> str:
    """Train one run by two processes on one device, and compare its weights with those of one process.

    Plain gradient descent in full precision: a rounding then moves a weight by as little.
    """
    words = [*RUN, "model=lenet5", "optimizer=sgd", f"schedule.steps={FEW}"]
    ended(subprocess.Popen(command(top / "one", *words), env={**os.environ, **EXACT}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    two = child("by_gloo", top / "two", *words, "trainer.parallel=ddp", "trainer.devices=1", "trainer.nodes=2")
    both = [
        subprocess.Popen(
            two, env={**os.environ, **EXACT, **torchrun_environment(World(rank, 2, 0, 1, rank)), **address}
        )
        for rank in range(2)
    ]
    try:
        while None in (codes := [process.poll() for process in both]) and not any(codes):
            time.sleep(0.05)
        if any(codes):
            sys.exit(f"gpu: of two processes one ended with an error: {codes}")
    finally:
        for process in both:
            process.kill()
    one, other = (weights(top / name) for name in ("one", "two"))
    difference = max(float((one[name] - other[name]).abs().max()) for name in one)
    if record(top / "two")["processes"] != len(both) or not difference < CLOSE:
        sys.exit(f"gpu: two processes ended with weights that differ by {difference:.1e} from those of one")
    return f"after {FEW} steps their weights differ by {difference:.1e} from those of one process"


def weights(outputs: Path) -> dict[str, torch.Tensor]:
    """Return the final weights of the one run below ``outputs``."""
    (file,) = outputs.glob("*/*/checkpoints/final.ckpt")
    found: dict[str, torch.Tensor] = torch.load(file, weights_only=True, map_location="cpu")["state_dict"]
    return found


def by_gloo(words: Sequence[str]) -> None:
    """Train as one of two processes, with gloo in NCCL's place."""
    import torch.distributed as dist

    from tutelage.train import main as train

    begin = dist.init_process_group

    def begin_by_gloo(backend: str, **named: Any) -> None:
        begin("gloo", **named)

    dist.init_process_group = begin_by_gloo
    sys.argv[1:] = words
    train()


def counted(words: Sequence[str]) -> None:
    """Train, and write down how many steps this process made."""
    from torch.optim import Optimizer
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from tutelage.train import main as train

    made = 0

    def count(optimizer: Optimizer, *rest: object) -> None:
        nonlocal made
        made += 1

    register_optimizer_step_post_hook(count)
    sys.argv[1:] = words
    try:
        train()
    finally:
        outputs = words[-1].partition("=")[2]
        Path(outputs, COUNT).write_text(str(made))


def main() -> None:
    """Go through the parts; print what each shows, and its seconds."""
    parts: list[Callable[[Path], str]] = [speed, resume, self_training, two_processes]
    lines = [torch.cuda.get_device_name() if GPU else "no GPU: on the CPU"]
    print(*lines, flush=True)
    for part in parts:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as top:
            told = part(Path(top))
        lines.append(f"{part.__name__.replace('_', ' '):<14} {time.perf_counter() - started:5.0f} s  {told}")
        print(lines[-1], flush=True)
    print("", *lines, sep="\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        {"by_gloo": by_gloo, "counted": counted}[sys.argv[1]](sys.argv[2:])
    else:
        main()
