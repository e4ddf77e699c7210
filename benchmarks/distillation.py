"""Measure what a teacher costs: LeNet-5 learns from VGG-11 on Fashion-MNIST at 32 pixels, on one thread.

Rows: the student trained on labels alone; distilled with teacher logits that are already cached (warm), with logits
computed for one pass (cold), with cached logits of 8 views for 40 passes (their cost divided by the passes), and with
the teacher run in each step (live); then a plain PyTorch loop with a live teacher. The runs train as `tutelage train`
does: Lightning, metrics.csv, checkpoints.

A figure is seconds for a pass over 60,000 images, computed from fewer. Supervised and warm take turns, 7 times; their
ratio is the median of the pairs' ratios. The script ends with an error if it is above the promised one.

    make bench
"""

import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import torch
from torch.nn import functional

from lengths import length
from overhead import begin_run
from tutelage.config.compose import compose
from tutelage.data import ImageDataModule, data_module
from tutelage.models import load_classifier, make_classifier, save_classifier
from tutelage.runs.context import RunContext, make_image_spec
from tutelage.runs.fit import fit_stage
from tutelage.runs.observer import Observer
from tutelage.runs.teachers import load_teacher, prepare_teacher

PROMISED = 1.15  # times supervised, with cached logits
LIMIT = length(PROMISED, 1.6)
PAIRS, STEPS = length(7, 2), length(150, 40)
FEW_STEPS = length(6, 2)  # with a live teacher a step takes as long as 20 others
IMAGES, BATCH, PASS = length(2560, 512), 128, 60_000
VIEWS, PASSES = 8, 40
OVERRIDES = [
    *("data=fashion_mnist", "data.image_size=32", f"data.limit={IMAGES}", f"data.batch_size={BATCH}"),
    *("data.validation=none", "model=lenet5", "augmentation=flip", "trainer=cpu", "schedule.epochs=null"),
]
DISTILLED = ["strategy=distillation", "strategy.cached_views=1", "strategy.control=false"]


@dataclass
class Bench:
    """A dataset, a teacher's weights file, and a folder for the runs."""

    data: ImageDataModule
    teacher: Path
    folder: Path
    runs: int = 0

    def start(self, steps: int, *overrides: str) -> RunContext:
        """Return a run that is about to train its one stage."""
        self.runs += 1
        config = compose([*OVERRIDES, f"schedule.steps={steps}", f"paths.outputs={self.folder}", *overrides])
        return begin_run(config, self.data, self.folder / "runs" / str(self.runs), Observer())

    def train(self, steps: int, *overrides: str) -> float:
        """Train for ``steps`` steps and return the seconds of a pass at that speed."""
        context = self.start(steps, *overrides)
        return float(fit_stage(context, context.stages[0])["seconds"]) / (steps * BATCH) * PASS

    def distil(self, steps: int, *overrides: str) -> float:
        """Distil for ``steps`` steps and return the seconds of a pass at that speed."""
        return self.train(steps, *DISTILLED, f"strategy.teachers=[{self.teacher}]", *overrides)

    def cache_logits(self) -> float:
        """Cache the teacher's logits and return the seconds that this takes for a pass."""
        context = self.start(STEPS, *DISTILLED, f"strategy.teachers=[{self.teacher}]")
        stage = context.stages[0]
        network = make_classifier(stage.model.arguments(), context.image_spec)
        started = time.perf_counter()
        prepare_teacher(context, stage, stage.teacher, network, load_teacher(context, stage.teacher))
        return (time.perf_counter() - started) / IMAGES * PASS

    def train_plain_loop(self, steps: int) -> float:
        """Distil in a plain loop with a live teacher and return the seconds of a pass."""
        config = compose([*OVERRIDES, f"schedule.steps={steps}"])
        student = make_classifier(
            config.model.arguments(), make_image_spec(config.data, self.data.source.classes)
        ).train()
        teacher = load_classifier(self.teacher).eval()
        optimizer = torch.optim.AdamW(student.parameters(), lr=config.optimizer.lr, weight_decay=0.01)
        images = torch.from_numpy(self.data.source.images[self.data.splits.labelled]).permute(0, 3, 1, 2)
        labels = torch.from_numpy(self.data.source.labels[self.data.splits.labelled])
        started = time.perf_counter()
        for _ in range(steps):
            batch = torch.randint(len(images), (BATCH,))
            views = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, images[batch].flip(3), images[batch])
            with torch.no_grad():
                teacher_logits = teacher(views)
            student_logits = student(views)
            divergence = functional.kl_div(
                (student_logits / 10).log_softmax(1), (teacher_logits / 10).softmax(1), reduction="batchmean"
            )
            loss = 0.1 * functional.cross_entropy(student_logits, labels[batch]) + 0.9 * 100 * divergence
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return (time.perf_counter() - started) / (steps * BATCH) * PASS


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*isinstance.*LeafSpec.*")
    config = compose([*OVERRIDES, "model=vgg", "model.depth=11", "schedule.steps=1"])
    data = data_module(config.data)
    with tempfile.TemporaryDirectory() as top:
        teacher = Path(top) / "vgg11.ckpt"
        network = make_classifier(config.model.arguments(), make_image_spec(config.data, data.source.classes))
        save_classifier(network, config.model.arguments(), teacher)
        bench = Bench(data, teacher, Path(top))
        cache = bench.cache_logits()
        bench.train(FEW_STEPS)
        pairs = []
        for number in range(PAIRS):
            sides = {"supervised": bench.train, "warm": bench.distil}
            order = sorted(sides, reverse=bool(number % 2))
            pairs.append({side: sides[side](STEPS) for side in order})
        supervised, warm = (statistics.median(pair[side] for pair in pairs) for side in ("supervised", "warm"))
        live_teacher, plain_loop = (
            bench.distil(FEW_STEPS, "strategy.teacher_logits=live"),
            bench.train_plain_loop(FEW_STEPS),
        )
    ratio = statistics.median(pair["warm"] / pair["supervised"] for pair in pairs)
    rows = {
        "supervised": supervised,
        "distilled, logits cached (warm)": warm,
        "distilled, logits computed for one pass (cold)": warm + cache,
        f"distilled, {VIEWS} views for {PASSES} passes": warm + cache * VIEWS / PASSES,
        "distilled, teacher run in each step (live)": live_teacher,
        "plain loop, teacher run in each step": plain_loop,
    }
    print("LeNet-5 from VGG-11, 32 px, batch 128, one thread: seconds for a pass over 60,000 images")
    for name, seconds in rows.items():
        print(f"{name:<46}{seconds:8.1f}{seconds / supervised:8.2f} x")
    print(f"warm against supervised: {ratio:.3f} (promised: at most {PROMISED})")
    if ratio > LIMIT:
        sys.exit(f"distillation: warm takes {ratio:.3f} times as long as supervised, at most {LIMIT} is allowed")


if __name__ == "__main__":
    main()
