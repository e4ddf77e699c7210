"""Label pictures by `tutelage predict`, against a bare loop of the same reader, network and batch; and its memory.

`predict` does what the command does once its network is loaded: it reads files by workers, computes probabilities,
ranks them, makes rows, writes parts with checksums, puts them together, and shows progress. The bare loop takes the
same batches from the same loader and computes logits and their largest, nothing more. The two take turns in one
process, after a warm-up of each; the figure is the median of the pairs' ratios of pictures a second.

Memory is the most that was resident in the command's process, or in one of its workers, for 1,000 and for 1,000,000
names of 60 bytes in one folder and one of 250, all links to the same few files, by a perceptron.

    make bench
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import chain
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import numpy as np
import torch
from PIL import Image

from lengths import length
from overhead import synchronized_time
from tutelage.config.compose import compose
from tutelage.data import DataRuntime
from tutelage.data.datasets.download import ignore_progress
from tutelage.data.modules import count_workers, make_loader
from tutelage.inference.classifier import Classifier, load_networks
from tutelage.inference.inputs import Inputs, find_inputs
from tutelage.inference.predict import Labeller, PictureBatches, predict_to_file
from tutelage.inference.rows import Columns
from tutelage.models import ImageSpec, make_classifier, save_classifier
from tutelage.terminal.display import create_display

PAIRS, LEAST = length(5, 2), length(0.9, 0.3)  # below the last ratio the script fails; short, it measures the disk
FILES, CLASSES = 64, 10
FEW, MANY, MOST_GROWTH = 1_000, length(1_000_000, 3_000), 100e6  # paths; bytes
CASES = (  # network, pixels, channels, pictures
    ("lenet5", 28, 1, length(20_480, 2_048)),
    ("resnet", 32, 3, length(1_024, 512)),
)


def write_files(folder: Path, size: int, channels: int) -> list[str]:
    """Write PNGs of smooth noise and return their paths."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(FILES):
        small = rng.integers(0, 256, (size // 4, size // 4, channels), dtype=np.uint8)
        pixels = small.repeat(4, axis=0).repeat(4, axis=1)
        Image.fromarray(pixels.squeeze()).save(folder / f"{number}.png")
    return sorted(map(str, folder.iterdir()))


def write_network(model: str, size: int, channels: int, file: Path) -> None:
    """Write a network with random weights as a run leaves it."""
    torch.manual_seed(0)
    middle = (0.5,) * channels
    spec = ImageSpec(channels, size, tuple(map(str, range(CLASSES))), middle, middle)
    arguments = compose([f"model={model}"]).model.arguments()
    save_classifier(make_classifier(arguments, spec), arguments, file)


def time_bare_loop(classifier: Classifier, inputs: Inputs, runtime: DataRuntime) -> float:
    """Compute the logits of all pictures and their largest; return the seconds."""
    data, network = classifier.data, classifier.members[0].network
    started = synchronized_time(classifier.device)
    batches = PictureBatches(inputs, (data.image_size, data.image_size, data.channels), classifier.batch_size)
    workers = min(count_workers(data, inputs.images, runtime), len(batches))
    with torch.inference_mode():
        for batch in make_loader(batches, workers, runtime):
            network(batch.images.to(classifier.device, non_blocking=True)).argmax(dim=1).cpu()
    return synchronized_time(classifier.device) - started


def time_predict(classifier: Classifier, inputs: Inputs, runtime: DataRuntime, out: Path) -> float:
    """Label all pictures into a file and return the seconds."""
    started = synchronized_time(classifier.device)
    observer = create_display(wanted=True)
    predict_to_file(Labeller(classifier, inputs, Columns(), runtime), out, observer)
    observer.end()
    return synchronized_time(classifier.device) - started


def measure_ratio(model: str, size: int, channels: int, count: int, top: Path) -> float:
    """Print the pictures a second of both, and return the median of the pairs' ratios."""
    files = write_files(top / model, size, channels)
    write_network(model, size, channels, top / f"{model}.ckpt")
    classifier = load_networks([top / f"{model}.ckpt"])
    (top / f"{model}.txt").write_text("\n".join(files[number % FILES] for number in range(count)))
    inputs = find_inputs([str(top / f"{model}.txt")], classifier.data, ignore_progress)
    runtime, pairs = DataRuntime(device=classifier.device), []
    for number in range(-1, PAIRS):
        sides = {
            "bare": partial(time_bare_loop, classifier, inputs, runtime),
            "ours": partial(time_predict, classifier, inputs, runtime, top / f"{model}-{number}.csv"),
        }
        order = sides if number % 2 else dict(reversed(sides.items()))
        times = {side: measure() for side, measure in order.items()}
        if number >= 0:
            pairs.append(times)
    speed = {side: count / statistics.median(times[side] for times in pairs) for side in ("bare", "ours")}
    ratios = [times["bare"] / times["ours"] for times in pairs]
    print(
        f"{model}, {classifier.device}, {count:,} PNGs of {size} x {size} x {channels}, batch {classifier.batch_size}: "
        f"bare loop {speed['bare']:,.0f} a second, predict {speed['ours']:,.0f}, median ratio "
        f"{statistics.median(ratios):.3f} (single pairs {min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )
    return statistics.median(ratios)


def measure_memory(network: Path, count: int, top: Path) -> int:
    """Label a folder of links by the command in a process of its own; return the most bytes that were resident."""
    files, links = write_files(top / f"files-{count}", 28, 1), top / f"links-{count}"
    links.mkdir()
    names = (f"2026-11-28_camera-03_northgate_{number:020d}_crop.png" for number in range(count - 1))
    for number, name in enumerate(chain(names, [f"{'long-' * 49}.png"])):
        (links / name).symlink_to(files[number % FILES])
    started = time.monotonic()
    command = ["predict", str(network), str(links), "--out", str(top / f"{count}.csv")]
    process = subprocess.Popen([sys.executable, "-m", "tutelage.cli", *command], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode, peak = os.waitstatus_to_exitcode(status), 1024 * usage.ru_maxrss
    if process.returncode:
        sys.exit(f"predict: exit code {process.returncode} for {count:,} paths")
    print(f"{count:,} paths: at most {peak / 1e6:.0f} MB, {time.monotonic() - started:.0f} s", flush=True)
    return peak


def main() -> None:
    """Print one line for each measurement; end with an error if a limit is passed."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        ratio = min(measure_ratio(*case, top) for case in CASES)
        write_network("perceptron", 28, 1, top / "perceptron.ckpt")
        few, many = (measure_memory(top / "perceptron.ckpt", count, top) for count in (FEW, MANY))
    print(f"predict against a bare loop: at least {ratio:.3f} of its pictures a second (limit: {LEAST})")
    print(
        f"memory from {FEW:,} to {MANY:,} paths grows by {(many - few) / 1e6:.0f} MB (limit: {MOST_GROWTH / 1e6:.0f})"
    )
    if ratio < LEAST or many - few > MOST_GROWTH:
        sys.exit(f"predict: too slow or too much memory (limits: {LEAST}, {MOST_GROWTH / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()
