"""Check on a GPU: speed against a plain loop, exact resume, self-training to its end, two processes on one GPU.

Four checks, each with its seconds:

- a small VGG on Fashion-MNIST against a plain loop, as benchmarks/overhead.py does on the CPU;
- such a run, killed with -9 in the middle and started again: it ends with the weights of an undisturbed run, bit for
  bit;
- a noisy student on digits, from its teacher to its control and its report;
- two processes on one GPU train one run, as two machines with one GPU each would. NCCL refuses that, so gloo carries
  their gradients; the weights are those of one process within rounding.

Takes 8 minutes at most on a GPU; without a GPU, everything runs on the CPU. The script ends with an error if weights
differ, or if a run takes much longer than the plain loop.

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
from tutelage.runs.checkpoints import newest_sound
from tutelage.world import World, torchrun_environment

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
FEW = 20  # steps of the runs with one process and with two
CLOSE = 1e-4  # the largest difference between their weights
EXACT = {"NVIDIA_TF32_OVERRIDE": "0"}  # TF32 rounds the factors of a product to 10 bits
COUNT = "steps"  # the file with the number of steps that a process made

Outcome = dict[str, Any]


def command(outputs: Path, *words: str) -> list[str]:
    """Return the command of a run."""
    return [sys.executable, "-m", "tutelage.train", *words, f"paths.outputs={outputs}"]


def command_of_this_file(work: str, outputs: Path, *words: str) -> list[str]:
    """Return the command that trains by one of this file's functions: ``by_gloo`` or ``counted``."""
    return [sys.executable, __file__, work, *command(outputs, *words)[3:]]


def read_record(outputs: Path) -> Outcome:
    """Read run.json of the one run below ``outputs``."""
    (file,) = outputs.glob("*/*/run.json")
    outcome: Outcome = json.loads(file.read_text())
    return outcome


def wait_for(process: "subprocess.Popen[bytes]", code: int = 0) -> None:
    """Wait for a process; end with an error if its exit code is not ``code``."""
    if (ending := process.wait()) != code:
        sys.exit(f"gpu: a command ended with {ending}: {process.args!r}")


def speed(top: Path) -> str:
    """Compare the time of a run with that of a plain loop."""
    device = torch.device("cuda" if GPU else "cpu")
    words = ["model=small_vgg", WHERE, f"data.batch_size={BATCH}", *length([], ["model.width=0.25"])]
    ratio = overhead.measure_ratio(words, device, length(min(8, len(os.sched_getaffinity(0))), 0))
    if ratio > LIMIT:
        sys.exit(f"gpu: a run takes {ratio:.2f} times as long as a plain loop (at most {LIMIT})")
    return f"a run takes {ratio:.3f} times as long as a plain loop (aim: {AIM:.2f})"


def resume(top: Path) -> str:
    """Kill a run, start it again, and compare its weights with those of an undisturbed run."""
    words = [*RUN, "model=small_vgg", "model.width=0.25", "model.dropout=0.2", SAVES]
    wait_for(subprocess.Popen(command(top / "undisturbed", *words)))
    killed = subprocess.Popen(command(top / "killed", *words))
    while not list((top / "killed").glob("*/*/checkpoints/previous.ckpt")):
        if killed.poll() is not None:
            sys.exit("gpu: the run ended before it could be killed")
        time.sleep(0.01)
    killed.kill()
    wait_for(killed, -signal.SIGKILL)
    (folder,) = (top / "killed").glob("*/*/checkpoints")
    checkpoint, _ = newest_sound(folder)
    assert checkpoint is not None
    step = torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"]
    wait_for(subprocess.Popen(command_of_this_file("counted", top / "killed", *words)))
    undisturbed, resumed = (
        read_record(top / name)["stages"][0]["weights_sha256"] for name in ("undisturbed", "killed")
    )
    steps_made = int((top / "killed" / COUNT).read_text())
    if undisturbed != resumed or steps_made != STEPS - step:
        same = undisturbed == resumed
        sys.exit(f"gpu: killed after step {step} of {STEPS}, a run made {steps_made} more; same weights: {same}")
    return f"killed after step {step} of {STEPS}, it made {steps_made} more; the same weights, bit for bit"


def self_training(top: Path) -> str:
    """Run noisy-student training to its end and return the stages' test accuracies."""
    wait_for(subprocess.Popen(command(top, *SELF_TRAINING)))
    (_,) = top.glob("*/*/report/index.html")
    accuracies = [
        f"{stage['name']} {100 * stage['result']['test/accuracy']:.1f} %"
        for stage in read_record(top)["stages"]
        if "test/accuracy" in stage["result"]
    ]
    return ", ".join(accuracies)


def two_processes(top: Path) -> str:
    """Train one run by two processes on one device, and compare its weights with those of one process.

    With plain gradient descent in full precision, a rounding error changes a weight by no more than its own size.
    """
    words = [*RUN, "model=lenet5", "optimizer=sgd", f"schedule.steps={FEW}"]
    wait_for(subprocess.Popen(command(top / "one", *words), env={**os.environ, **EXACT}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command_of_two = command_of_this_file(
        "by_gloo", top / "two", *words, "trainer.parallel=ddp", "trainer.devices=1", "trainer.nodes=2"
    )
    processes = [
        subprocess.Popen(
            command_of_two, env={**os.environ, **EXACT, **torchrun_environment(World(rank, 2, 0, 1, rank)), **address}
        )
        for rank in range(2)
    ]
    try:
        while None in (codes := [process.poll() for process in processes]) and not any(codes):
            time.sleep(0.05)
        if any(codes):
            sys.exit(f"gpu: one of two processes ended with an error; their exit codes: {codes}")
    finally:
        for process in processes:
            process.kill()
    single, parallel = (read_weights(top / name) for name in ("one", "two"))
    difference = max(float((single[name] - parallel[name]).abs().max()) for name in single)
    if read_record(top / "two")["processes"] != len(processes) or not difference < CLOSE:
        sys.exit(f"gpu: the weights of two processes differ by {difference:.1e} from those of one")
    return f"after {FEW} steps their weights differ by {difference:.1e} from those of one process"


def read_weights(outputs: Path) -> dict[str, torch.Tensor]:
    """Read the final weights of the one run below ``outputs``."""
    (file,) = outputs.glob("*/*/checkpoints/final.ckpt")
    state_dict: dict[str, torch.Tensor] = torch.load(file, weights_only=True, map_location="cpu")["state_dict"]
    return state_dict


def train_with_gloo(words: Sequence[str]) -> None:
    """Train as one of two processes, with gloo instead of NCCL."""
    import torch.distributed as dist

    from tutelage.train import main as train

    init_process_group = dist.init_process_group

    def init_with_gloo(backend: str, **options: Any) -> None:
        init_process_group("gloo", **options)

    dist.init_process_group = init_with_gloo
    sys.argv[1:] = words
    train()


def train_and_count(words: Sequence[str]) -> None:
    """Train, and write the number of this process's steps to the file ``COUNT``."""
    from torch.optim import Optimizer
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from tutelage.train import main as train

    steps = 0

    def count(optimizer: Optimizer, *_: object) -> None:
        nonlocal steps
        steps += 1

    register_optimizer_step_post_hook(count)
    sys.argv[1:] = words
    try:
        train()
    finally:
        outputs = words[-1].partition("=")[2]
        Path(outputs, COUNT).write_text(str(steps))


def main() -> None:
    """Run the checks; print each one's outcome and its seconds."""
    checks: list[Callable[[Path], str]] = [speed, resume, self_training, two_processes]
    lines = [torch.cuda.get_device_name() if GPU else "no GPU: on the CPU"]
    print(*lines, flush=True)
    for check in checks:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as top:
            outcome = check(Path(top))
        lines.append(f"{check.__name__.replace('_', ' '):<14} {time.perf_counter() - started:5.0f} s  {outcome}")
        print(lines[-1], flush=True)
    print("", *lines, sep="\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        {"by_gloo": train_with_gloo, "counted": train_and_count}[sys.argv[1]](sys.argv[2:])
    else:
        main()
