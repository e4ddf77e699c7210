"""Measure what the framework costs: LeNet-5 on Fashion-MNIST against a plain PyTorch loop, in one process.

Both train the same network on the same images with the same augmentation, batch size and optimizer. The run trains as
`tutelage train` does: Lightning, metrics.csv, TensorBoard, checkpoints and the display. The plain loop is what a
careful person would write by hand: Albumentations in a Dataset, a DataLoader, normalisation on the device.

After a warm-up of each, 9 pairs of 200 steps, interleaved; the figure is the median of the pairs' ratios. The script
ends with an error if the run takes much longer than the loop.

    make bench
"""

import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from itertools import chain, islice, repeat
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations
import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from lengths import length
from tutelage.config import Config
from tutelage.config.compose import compose
from tutelage.data import DataRuntime, ImageDataModule, data_module
from tutelage.models import ImageSpec, make_classifier
from tutelage.runs import RunFolder, run_identity
from tutelage.runs.cluster.signals import Signals
from tutelage.runs.code import describe_current_code
from tutelage.runs.context import RunContext
from tutelage.runs.fit import fit_stage
from tutelage.runs.folder import Record
from tutelage.runs.observer import Observer, Part, Work
from tutelage.terminal.display import create_display

STEPS, PAIRS, WARM_UP = length(200, 40), length(9, 3), length(50, 10)
AIM = 1.10  # times the plain loop
LIMIT = length(1.25, 1.6)
OVERRIDES = ["data=fashion_mnist", "augmentation=basic", "schedule.epochs=null", "data.validation=none"]


class PlainDataset(Dataset[tuple[torch.Tensor, int]]):
    """Images and labels in memory; each image is augmented when it is read."""

    def __init__(self, config: Config, images: np.ndarray, labels: np.ndarray) -> None:
        crop, flip = ({k: v for k, v in t.items() if k != "_target_"} for t in config.augmentation.transforms)
        self.transform = albumentations.Compose(
            [albumentations.RandomResizedCrop(**crop), albumentations.HorizontalFlip(**flip)]
        )
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return an augmented image (1, 28, 28) uint8 and its label."""
        view = self.transform(image=self.images[index])["image"].reshape(28, 28)
        return torch.from_numpy(view)[None], int(self.labels[index])


def synchronized_time(device: torch.device) -> float:
    """Wait for the device's work and return the clock's time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def time_plain_loop(config: Config, data: ImageDataModule, steps: int, device: torch.device, workers: int) -> float:
    """Train by a plain loop and return the seconds of its steps."""
    source = data.source
    spec = ImageSpec(1, 28, source.classes, tuple(config.data.mean), tuple(config.data.std))
    torch.manual_seed(0)
    network = make_classifier(config.model.arguments(), spec).train().to(device)
    dataset = PlainDataset(config, source.images[data.splits.labelled], source.labels[data.splits.labelled])
    loader = DataLoader(
        dataset,
        batch_size=config.data.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.optimizer.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    started = synchronized_time(device)
    batches = chain.from_iterable(repeat(loader))  # a new pass after each one
    for images, labels in islice(batches, steps):
        images, labels = (part.to(device, non_blocking=True) for part in (images, labels))  # noqa: PLW2901
        loss = functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return synchronized_time(device) - started


def begin_run(config: Config, data: ImageDataModule, folder: Path, observer: Observer) -> RunContext:
    """Return a run that is about to train its first stage."""
    record = Record(RunFolder(folder))
    record.begin(run_identity(config, ""), "", describe_current_code([]), 1, {}, {})
    context = RunContext(config, RunFolder(folder), record, data, Signals(), observer)
    context.follow_results()
    return context


def time_run(config: Config, data: ImageDataModule, folder: Path) -> float:
    """Train as a run does, with all logging and the display, and return the seconds of its steps."""
    observer = create_display(wanted=True)
    context = begin_run(config, data, folder, observer)
    observer.begin([Part(stage.name, [Work(("training",), 1.0)]) for stage in context.stages])
    observer.part(1)
    entry = fit_stage(context, context.train_stages[0])
    observer.end()
    return float(entry["seconds"])


def measure_ratio(overrides: Sequence[str], device: torch.device, workers: int = 0) -> float:
    """Print every pair and return the median ratio of a run's seconds to the plain loop's."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="(pytorch_lightning|lightning_fabric)")
    data = data_module(compose([*OVERRIDES, *overrides, "schedule.steps=1"]).data, DataRuntime(device))
    ratios = []
    with tempfile.TemporaryDirectory() as top:
        for number in range(-1, PAIRS):
            steps = WARM_UP if number < 0 else STEPS
            config = compose([*OVERRIDES, *overrides, f"schedule.steps={steps}"])
            sides = {
                "run": lambda config=config, folder=Path(top) / str(number): time_run(config, data, folder),
                "plain": lambda config=config, steps=steps: time_plain_loop(config, data, steps, device, workers),
            }
            times = {side: sides[side]() for side in sorted(sides, reverse=bool(number % 2))}
            if number >= 0:
                ratios.append(times["run"] / times["plain"])
                print(f"pair {number + 1}: run {times['run']:.2f} s, plain {times['plain']:.2f} s", flush=True)
    return statistics.median(ratios)


def main() -> None:
    """Print every pair and the median ratio; end with an error if it is above the limit."""
    ratio = measure_ratio(["model=lenet5", "trainer=cpu"], torch.device("cpu"))
    setting = f"LeNet-5, Fashion-MNIST, batch 128, {STEPS} steps"
    print(f"{setting}: median ratio to a plain loop {ratio:.3f} (aim: {AIM:.2f})")
    if ratio > LIMIT:
        sys.exit(f"overhead: a run takes {ratio:.3f} times as long as a plain loop, at most {LIMIT} is allowed")


if __name__ == "__main__":
    main()
