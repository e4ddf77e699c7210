"""Measure how right the time left is: four runs whose parts cost very different times.

The runs train as `tutelage train` does, on two threads at most; in place of the display an observer hears of their
progress. At each progress it notes the time left that the display would show, and when the run has ended, how long it
still took. A figure is the largest ratio of the two, one way or the other, over all moments from a tenth of the run's
time on, until its last 5 % or 2 seconds, whichever are longer; a time counts until the next one is shown. The run's
time begins when its data is read and ends when its results are written. Until a time is shown, nothing is counted; so
the moment of the first one is printed too, and is to come within the first tenth.

The script ends with an error if a figure is above 2 or a first time comes late. Other programs on the machine that come
or go change the times themselves.

    make bench
"""

import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import tutelage.runs.runner  # noqa: F401 - loaded before any time is measured
from lengths import length
from tutelage.config import Config
from tutelage.config.compose import compose
from tutelage.data import data_module, fingerprint
from tutelage.models import make_classifier, save_classifier
from tutelage.runs import RunFolder, run_identity
from tutelage.runs.context import make_image_spec
from tutelage.runs.observer import Observer, Part
from tutelage.runs.runner import run_stages
from tutelage.runs.start import started_run
from tutelage.terminal.time_left import TimeLeft

LIMIT = length(2.0, 4.0)  # a short run is over before its speed is known
FIRST = 0.1  # of the run's time
LATEST = length(FIRST, 1.0)  # when a time left is shown first
LAST, LAST_SECONDS = 0.05, length(2.0, 0.5)
FASHION = Path("/usr/share/datasets/fashion-mnist")  # of Debian's dataset-fashion-mnist; without it, digits do
HAS_FASHION = length(FASHION.is_dir(), False)
DATA = ["data=fashion_mnist", f"data.root={FASHION}"] if HAS_FASHION else ["data=digits"]
COMMON = [*DATA, "logger=csv", "trainer=cpu", "trainer.threads=1", "schedule.epochs=null"]


def steps(count: int) -> str:
    """Return the override for a schedule of a number of steps, a tenth of it in the short form."""
    return f"schedule.steps={length(count, count // 10)}"


CASES = {
    "supervised": ["model=small_vgg", "augmentation=basic", "data.limit=4000", steps(150)],
    "noisy student": [
        *("strategy=noisy_student", "model=lenet5", "augmentation=affine_randaugment", "data.batch_size=32"),
        *("data.labels_per_class=10", f"data.limit={length(10100, 1500)}", "strategy.target_type=hard", steps(400)),
        "strategy.students=[{model:{width:2,dropout:0.3},length:1.0},{model:{width:3,dropout:0.3},length:1.0}]",
        "strategy.teacher_length=0.3",
    ],
    "distillation, cached logits": [
        *("strategy=distillation", "model=lenet5", "augmentation=flip", "data.image_size=32"),
        *(f"data.limit={length(3000, 1000)}", "strategy.cached_views=2", steps(800)),
    ],
    "frozen transfer, cached features": [
        *("strategy=transfer_frozen", "model=resnet", "augmentation=none", f"data.limit={length(3000, 1000)}"),
        steps(100),
    ],
}
GIVEN = {  # the key of a case that takes a file of weights, and the overrides of that network
    "distillation, cached logits": ("strategy.teachers", ["model=vgg", "model.depth=11", "data.image_size=32"]),
    "frozen transfer, cached features": ("init_from", ["model=resnet"]),
}


class Recorder(Observer):
    """Notes the time left that a display would show, with the time."""

    def __init__(self) -> None:
        self._time_left = TimeLeft()
        self.shown: list[tuple[float, float, str]] = []  # time, seconds left, name of the part
        self._parts: Sequence[Part] = ()
        self._number = 0

    def begin(self, parts: Sequence[Part]) -> None:
        """Plan the parts."""
        self._parts = parts
        self._time_left.begin(parts)

    def part(self, number: int) -> None:
        """Begin a part and note the time left."""
        self._number = number
        self._time_left.part(number)
        self._note()

    def progress(self, fraction: float, values: Mapping[str, Any], work: int = 0) -> None:
        """Measure the progress and note the time left."""
        self._time_left.progress(fraction, work)
        self._note()

    def say(self, line: str) -> None:
        """Print nothing."""

    def _note(self) -> None:
        if (seconds := self._time_left.estimate()) is not None:
            self.shown.append((time.monotonic(), seconds, self._parts[self._number - 1].name))


def save_random_weights(overrides: Sequence[str], file: Path) -> None:
    """Write a network with random weights: what it knows does not change how long it takes."""
    config = compose([*COMMON, *overrides, steps(10)])
    network = make_classifier(config.model.arguments(), make_image_spec(config.data, data_module(config.data).classes))
    save_classifier(network, config.model.arguments(), file)


def run_recorded(config: Config, folder: Path) -> tuple[Recorder, float, float]:
    """Run a config and return its recorder, and when it began and ended."""
    recorder, data_fingerprint = Recorder(), fingerprint(config.data, lambda message, fraction: None)
    began = time.monotonic()
    with started_run(config, RunFolder(folder), run_identity(config, data_fingerprint), "", recorder) as context:
        run_stages(context)
    return recorder, began, time.monotonic()


def worst_ratio(shown: Sequence[tuple[float, float, str]], began: float, ended: float) -> tuple[float, str]:
    """Return the largest ratio of the time left that is shown and the true one, and where it was."""
    first = began + FIRST * (ended - began)
    last = ended - max(LAST * (ended - began), LAST_SECONDS)
    worst, where = 1.0, "nowhere"
    following = [moment for moment, *_ in shown[1:]] + [ended]
    for (moment, seconds, part), until in zip(shown, following, strict=True):
        for now in (moment, until):  # the time is shown until the next one is
            if first <= now <= last:
                ratio = seconds / (ended - now)
                if max(ratio, 1 / ratio) > max(worst, 1 / worst):
                    worst, where = ratio, f"at {(now - began) / (ended - began):.0%}, in {part}"
    return worst, where


def main() -> None:
    """Print a line for each case; end with an error if a ratio is above the limit or the first time comes late."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    failures = []
    with tempfile.TemporaryDirectory() as top:
        for number, (case, overrides) in enumerate(CASES.items()):
            given = []
            if case in GIVEN:
                key, network = GIVEN[case]
                save_random_weights(network, Path(top) / f"{number}.ckpt")
                given = [f"{key}=[{top}/{number}.ckpt]" if key.endswith("s") else f"{key}={top}/{number}.ckpt"]
            config = compose([*COMMON, *overrides, *given, f"paths.outputs={top}"])
            recorder, began, ended = run_recorded(config, Path(top) / str(number))
            ratio, where = worst_ratio(recorder.shown, began, ended)
            first = (recorder.shown[0][0] - began) / (ended - began) if recorder.shown else 1.0
            print(
                f"{case}: {ended - began:.0f} s; a time left from {first:.0%} of them on; from {FIRST:.0%} on it is at "
                f"worst {ratio:.2f} times the true one ({where})",
                flush=True,
            )
            if max(ratio, 1 / ratio) > LIMIT or first > LATEST:
                failures.append(case)
    if failures:
        sys.exit(f"time left: wrong by a factor of more than {LIMIT}, or late: {', '.join(failures)}")


if __name__ == "__main__":
    main()
