"""Measure pseudo-labelling: images a second against a bare inference loop of the same network, batch and precision.

Labelling does all that `tutelage train` does between a trained teacher and the next student: it claims shards, reads
the pool's images by their indices, computes probabilities, packs them to float16, writes shards with checksums, and
shows progress. The bare loop slices a tensor of images in memory and computes the logits, nothing more. The two take
turns, after a warm-up of each; the figure is the median of the pairs' ratios.

Runs on the CPU in float32 and, if there is a GPU, also there in bfloat16, on images of 224 pixels and 1,000 classes.

    make bench
"""

import os
import statistics
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import numpy as np
import torch

from lengths import length
from overhead import synchronized_time
from tutelage.config.compose import compose
from tutelage.data import EVALUATION_BATCH, ImageDataModule, LabelStore, Source
from tutelage.data.source import IndexNames
from tutelage.models import ImageClassifier, ImageSpec, make_classifier
from tutelage.runs.label import fill_store
from tutelage.runs.observer import Part, Work
from tutelage.terminal.display import create_display

PAIRS, AIM = length(5, 2), 0.90
LEAST = length(0.75, 0.5)  # below it the script fails; on some machines the ratio of a small network is mostly noise


@dataclass(frozen=True)
class Case:
    """A network, its device and precision, and the shape and number of the images that it labels."""

    model: str
    device: str
    precision: str
    size: int
    channels: int
    classes: int
    images: int

    def __str__(self) -> str:
        """Return the case's description for the printed line."""
        shape = f"{self.size}x{self.size}x{self.channels}"
        where = f"{self.model}, {self.device}, {self.precision}"
        return f"{where}, {shape}, {self.classes} classes, batch {EVALUATION_BATCH}"


CASES = (
    Case("lenet5", "cpu", "float32", 28, 1, 10, length(20_480, 4_096)),
    Case("resnet", "cpu", "float32", 32, 3, 10, length(1_024, 512)),
    Case("lenet5", "cuda", "bfloat16", 28, 1, 10, length(1_000_000, 10_000)),
    Case("resnet", "cuda", "bfloat16", 224, 3, 1_000, length(20_480, 1_024)),
)


class Pool(ImageDataModule):
    """A pool of random images in memory."""

    def __init__(self, case: Case) -> None:
        """Create the data config of the case."""
        data = compose(["data=digits", "data.labels=100%", "data.validation=none"]).data
        super().__init__(data.model_copy(update={"image_size": case.size, "channels": case.channels}))
        self.case, self.device = case, torch.device(case.device)

    def read(self) -> Source:
        """Return random images without labels, and one labelled image for each class, which no batch contains."""
        count, classes = self.case.images, self.case.classes
        distinct = np.random.default_rng(0).integers(0, 256, (1024, self.case.size, self.case.size, self.case.channels))
        images = np.resize(distinct.astype(np.uint8), (count + classes, *distinct.shape[1:]))
        labels = np.concatenate([np.full(count, -1), np.arange(classes)])
        train, names = np.arange(count, count + classes), tuple(map(str, range(classes)))
        no_indices = np.empty(0, dtype=np.int64)
        return Source(images, labels, names, train, train, no_indices, np.arange(count), IndexNames(count + classes))


def make_network(case: Case) -> ImageClassifier:
    """Return a network with random weights."""
    spec = ImageSpec(case.channels, case.size, tuple(map(str, range(case.classes))), *[(0.5,) * case.channels] * 2)
    torch.manual_seed(0)
    return make_classifier(compose([f"model={case.model}"]).model.arguments(), spec).eval().to(case.device)


def time_bare_loop(case: Case, network: ImageClassifier, images: torch.Tensor) -> float:
    """Compute the logits of all images and return the seconds."""
    started, precision = synchronized_time(torch.device(case.device)), getattr(torch, case.precision)
    with torch.inference_mode(), torch.autocast(case.device, precision, enabled=case.precision != "float32"):
        for first in range(0, len(images), EVALUATION_BATCH):
            network(images[first : first + EVALUATION_BATCH].to(case.device, non_blocking=True))
    return synchronized_time(torch.device(case.device)) - started


def time_labelling(case: Case, network: ImageClassifier, data: Pool, folder: Path) -> float:
    """Label all images into a store and return the seconds."""
    observer = create_display(wanted=True)
    observer.begin([Part("labels-1", [Work(("labelling",), 1.0)])])
    observer.part(1)
    started = synchronized_time(torch.device(case.device))
    store = LabelStore(folder, case.images, case.classes, {"views": "one", "precision": case.precision})
    with closing(fill_store(store, network, data, torch.device(case.device))) as batches:
        for labelled in batches:
            observer.progress(labelled / case.images, {"images": f"{labelled}/{case.images}"})
    seconds = synchronized_time(torch.device(case.device)) - started
    assert store.complete
    observer.end()
    return seconds


def measure_ratio(case: Case, top: Path) -> float:
    """Print the images a second of labelling and of the bare loop, and return the median of their ratios."""
    data, network, pairs = Pool(case), make_network(case), []
    images = torch.from_numpy(data.source.images[data.splits.pool]).permute(0, 3, 1, 2)
    if case.device == "cuda":
        images = images.pin_memory()
    for number in range(-1, PAIRS):
        folder = top / f"{case.model}-{case.device}-{number}"
        sides = {
            "bare": lambda: time_bare_loop(case, network, images),
            "ours": lambda folder=folder: time_labelling(case, network, data, folder),
        }
        order = sides if number % 2 else dict(reversed(sides.items()))
        times = {side: measure() for side, measure in order.items()}
        if number >= 0:
            pairs.append(times)
    speed = {side: case.images / statistics.median(times[side] for times in pairs) for side in ("bare", "ours")}
    median_ratio = statistics.median(times["bare"] / times["ours"] for times in pairs)
    print(
        f"{case}: bare {speed['bare']:,.0f} images/s, labelling {speed['ours']:,.0f}, ratio {median_ratio:.3f}",
        flush=True,
    )
    return median_ratio


def main() -> None:
    """Print one line for each case; end with an error if a ratio is below the limit."""
    with tempfile.TemporaryDirectory() as top:
        cases = [case for case in CASES if case.device == "cpu" or torch.cuda.is_available()]
        ratios = [measure_ratio(case, Path(top)) for case in cases]
    met = "met" if min(ratios) >= AIM else "missed"
    print(f"labelling against a bare loop: at least {min(ratios):.3f} of its images a second (aim: {AIM}, {met})")
    if min(ratios) < LEAST:
        sys.exit(f"labelling: {min(ratios):.3f} of the bare loop's images a second, at least {LEAST} is required")


if __name__ == "__main__":
    main()
