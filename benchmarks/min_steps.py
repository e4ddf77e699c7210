"""Measure test accuracy over the steps of a schedule, at few labels a class: the table behind ``schedule.min_steps``.

Every cell is a run of its own, whose learning rate falls to zero by its last step. Digits and Fashion-MNIST train
LeNet-5 with the project's defaults; emoji fine-tune ImageNet's weights with the settings of
`experiment=oquab2014_transfer`, and are left out where their npm packages are not installed (the experiment's file says
how). Prints a Markdown table of the mean and the standard deviation over the seeds; a seed decides the labels and the
weights.

    python benchmarks/min_steps.py [FOLDER]

FOLDER keeps the runs, and the same command goes on from there; without it they lie in a temporary folder.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

from lengths import length
from tutelage.app.job import locate_run, run_job
from tutelage.config.compose import compose
from tutelage.runs import read_record

STEPS = length((25, 50, 100, 200, 400, 800, 1600), (2, 4))
LABELS = length((1, 5, 10, 100), (5,))  # of each class
SEEDS = length((1, 2, 3), (1,))
FASHION = Path("/usr/share/datasets/fashion-mnist")  # of Debian's dataset-fashion-mnist
EMOJI_LABELS = (5, 10)
EMOJI_STEPS = 200  # a step takes 16 times as long as one of Fashion-MNIST
EMOJI_PACKAGES = Path("~/.cache/tutelage/emoji").expanduser()
EMOJI_SCRIPT = Path(__file__).parent.parent / "conf" / "experiment" / "oquab2014_emoji.py"
COMMON = ("logger=csv", "callbacks=quiet", "trainer=cpu", "trainer.threads=1", "schedule.epochs=null")


class Case(NamedTuple):
    """A dataset and its settings, with the cells of the table that are measured for it."""

    title: str
    overrides: Sequence[str]
    labels: Sequence[int]
    steps: Sequence[int]
    seeds: Sequence[int]


def list_cases(top: Path) -> Iterator[Case]:
    """Yield the cases whose data is there; the folder of emoji is made in ``top``."""
    yield Case("digits", ["data=digits", "model=lenet5"], LABELS, STEPS, SEEDS)
    if FASHION.is_dir():
        overrides = ["data=fashion_mnist", "model=lenet5", f"data.root={FASHION}"]
        yield Case("Fashion-MNIST", overrides, LABELS, STEPS, SEEDS)
    if (EMOJI_PACKAGES / "node_modules").is_dir():
        folder = top / "emoji"
        subprocess.run([sys.executable, EMOJI_SCRIPT, EMOJI_PACKAGES, folder], check=True)
        overrides = ["experiment=oquab2014_transfer", "hydra.mode=RUN", "hydra.sweeper.params=null"]
        overrides += ["strategy.control=false", f"data.root={folder}"]
        steps = [count for count in STEPS if count <= EMOJI_STEPS]
        yield Case("emoji", overrides, [count for count in LABELS if count in EMOJI_LABELS], steps, SEEDS[:2])


def measure(overrides: Sequence[str], top: Path) -> float:
    """Return the test accuracy in percent of a run, trained where it is not finished yet."""
    config = compose([*overrides, *COMMON, f"paths.outputs={top / 'outputs'}"], [])
    with redirect_stdout(sys.stderr):
        run_job(config, one_line=True)
    record = read_record(locate_run(config).folder) or {}
    return 100 * float(record["result"]["test/accuracy"])


def format_row(case: Case, labels: int, top: Path) -> str:
    """Return the table's row of a number of labels, measured."""
    cells = []
    for steps in STEPS:
        runs = [
            [*case.overrides, f"data.labels_per_class={labels}", f"schedule.steps={steps}", f"seed={seed}"]
            for seed in case.seeds
        ]
        accuracies = [measure(run, top) for run in runs] if steps in case.steps else []
        spread = f" +- {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
        cells.append(f"{statistics.mean(accuracies):.1f}{spread}" if accuracies else "")
    return " | ".join([f"| {case.title}, {labels} a class", *cells]) + " |"


def main() -> None:
    """Print the table, row by row."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(name)
        print(" | ".join(["| labels", *(f"{steps:,} steps" for steps in STEPS)]) + " |")
        print("|---" * (len(STEPS) + 1) + "|", flush=True)
        for case in list_cases(top):
            for labels in case.labels:
                print(format_row(case, labels, top), flush=True)


if __name__ == "__main__":
    main()
