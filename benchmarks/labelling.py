"""What labelling a pool costs: images a second against a bare inference loop of the same network, batch and precision.

Ours does all that `tutelage train` does between a trained teacher and the next student: it claims shards, reads the
pool's images by their indices, answers, takes probabilities, packs them to float16, writes shards that carry checksums,
and shows progress. Theirs slices a tensor of the images, which lies in memory, and lets the network answer, nothing
more. Both sides take turns, after a warm-up of each; the figure is the median of the pairs' ratios.

On the CPU in float32; where there is a GPU also there, in bfloat16, on images of 224 pixels and 1,000 classes.
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
from overhead import seconds_of
from tutelage.config.compose import compose
from tutelage.data import ImageDataModule, LabelStore, Source
from tutelage.data.pseudo_labels.labels import EVALUATION_BATCH
from tutelage.data.source import IndexNames
from tutelage.models import ImageClassifier, ImageSpec, make_classifier
from tutelage.runs.label import fill_store
from tutelage.runs.observer import PartCost
from tutelage.terminal.display import create_display

PAIRS, AIM = length(5, 2), 0.90
LEAST = length(0.75, 0.5)  # below that it ends with an error: on some machines the ratio of a small network is noise


@dataclass(frozen=True)
class Case:
    """A network, where it answers, and to what."""

    model: str
    device: str
    precision: str
    size: int
    channels: int
    classes: int
    images: int

    def __str__(self) -> str:
        """Return it in words."""
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
    """Images in memory, all of them the pool."""

    def __init__(self, case: Case) -> None:
        """Make them."""
        data = compose(["data=digits", "data.labels=1.0", "data.validation=none"]).data
        super().__init__(data.model_copy(update={"image_size": case.size, "channels": case.channels}))
        self.case, self.device = case, torch.device(case.device)

    def read(self) -> Source:
        """Return random images without labels, beside a labelled one a class that is never shown."""
        count, classes = self.case.images, self.case.classes
        some = np.random.default_rng(0).integers(0, 256, (1024, self.case.size, self.case.size, self.case.channels))
        images = np.resize(some.astype(np.uint8), (count + classes, *some.shape[1:]))
        labels = np.concatenate([np.full(count, -1), np.arange(classes)])
        train, names = np.arange(count, count + classes), tuple(map(str, range(classes)))
        none = np.empty(0, dtype=np.int64)
        return Source(images, labels, names, train, train, none, np.arange(count), IndexNames(count + classes))


def network_of(case: Case) -> ImageClassifier:
    """Return a network with random weights."""
    spec = ImageSpec(case.channels, case.size, tuple(map(str, range(case.classes))), *[(0.5,) * case.channels] * 2)
    torch.manual_seed(0)
    return make_classifier(compose([f"model={case.model}"]).model.arguments(), spec).eval().to(case.device)


def bare(case: Case, network: ImageClassifier, images: torch.Tensor) -> float:
    """Answer to all images and return the seconds."""
    started, precision = seconds_of(torch.device(case.device)), getattr(torch, case.precision)
    with torch.inference_mode(), torch.autocast(case.device, precision, enabled=case.precision != "float32"):
        for first in range(0, len(images), EVALUATION_BATCH):
            network(images[first : first + EVALUATION_BATCH].to(case.device, non_blocking=True))
    return seconds_of(torch.device(case.device)) - started


def ours(case: Case, network: ImageClassifier, data: Pool, folder: Path) -> float:
    """Label all images and return the seconds."""
    observer = create_display(wanted=True)
    observer.begin([PartCost("labels-1", 1.0)])
    observer.part(1)
    started = seconds_of(torch.device(case.device))
    store = LabelStore(folder, case.images, case.classes, {"views": "one", "precision": case.precision})
    with closing(fill_store(store, network, data, torch.device(case.device))) as batches:
        for answered in batches:
            observer.progress(answered / case.images, {"images": f"{answered}/{case.images}"})
    seconds = seconds_of(torch.device(case.device)) - started
    assert store.complete
    observer.end()
    return seconds


def ratio(case: Case, top: Path) -> float:
    """Print how fast both sides are, and return the median ratio of images a second."""
    data, network, pairs = Pool(case), network_of(case), []
    images = torch.from_numpy(data.source.images[data.splits.pool]).permute(0, 3, 1, 2)
    if case.device == "cuda":
        images = images.pin_memory()
    for number in range(-1, PAIRS):
        folder = top / f"{case.model}-{case.device}-{number}"
        sides = {"bare": lambda: bare(case, network, images), "ours": lambda to=folder: ours(case, network, data, to)}
        order = sides if number % 2 else dict(reversed(sides.items()))
        times = {side: measure() for side, measure in order.items()}
        if number >= 0:
            pairs.append(times)
    speed = {side: case.images / statistics.median(times[side] for times in pairs) for side in ("bare", "ours")}
    found = statistics.median(times["bare"] / times["ours"] for times in pairs)
    print(f"{case}: bare {speed['bare']:,.0f} images/s, labelling {speed['ours']:,.0f}, ratio {found:.3f}", flush=True)
    return found


def main() -> None:
    """Print a line a case."""
    with tempfile.TemporaryDirectory() as top:
        cases = [case for case in CASES if case.device == "cpu" or torch.cuda.is_available()]
        ratios = [ratio(case, Path(top)) for case in cases]
    met = "met" if min(ratios) >= AIM else "missed"
    print(f"labelling against a bare loop: at least {min(ratios):.3f} of its images a second (aim: {AIM}, {met})")
    if min(ratios) < LEAST:
        sys.exit("labelling: too slow")


if __name__ == "__main__":
    main()
