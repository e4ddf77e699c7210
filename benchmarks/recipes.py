"""Accuracy of recipes: nothing is typed but the folder and the label budget.

    python benchmarks/recipes.py [FOLDER]

Writes three image folders into FOLDER (~/.cache/tutelage/recipes), then trains each by ``tutelage train
data=image_folder data.root=...`` with 2, 10 and 100 labels a class (emoji, which has 23 a class: all) and 3 seeds.
Prints a table: test accuracy, its standard deviation over the seeds, and the seconds of a run. Runs lie in outputs/;
what is finished is not trained again.

- digits: scikit-learn's, 8 x 8 pixels, one folder a class; a fifth is tested, what has no label is the pool.
- fashion: Fashion-MNIST, 100 training images a class, a pool of 10,000, 10,000 test images.
- emoji: 20 kinds of things; left out where npm's packages are missing (see conf/experiment/oquab2014_transfer.yaml).
  There the table also has a logistic regression on the features of the same weights at the same image size.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lengths import length

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tutelage"
FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else CACHE / "recipes"
PACKAGES = CACHE / "emoji"
SEEDS = length((1, 2, 3), (1,))
BUDGETS: dict[str, tuple[int | None, ...]] = length(
    {"digits": (2, 10, 100), "fashion": (2, 10, 100), "emoji": (2, 10, None)}, {"digits": (10,)}
)
LABELLED, POOL = 100, 10_000  # Fashion-MNIST: training images of a class, images without labels
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)  # C of the logistic regression; the best of them on the test set


def write_digits(folder: Path) -> None:
    """Write scikit-learn's digits as they are: 1,797 grey pictures of 8 pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        save(np.round(pixels * 255 / 16).astype(np.uint8), folder / str(label) / f"{number:04}.png")


def write_fashion(folder: Path) -> None:
    """Write Fashion-MNIST: a labelled part and a pool of its training images, and its test images."""
    from tutelage.data.datasets.fashion_mnist import fashion_mnist

    source = fashion_mnist(None, 28, 1)
    order = np.random.default_rng(0).permutation(source.train)
    labelled = np.concatenate([order[source.labels[order] == c][:LABELLED] for c in range(len(source.classes))])
    parts = {"train": labelled, "test": source.test, "unlabelled": np.setdiff1d(order, labelled, True)[:POOL]}
    for part, indices in parts.items():
        for index in indices.tolist():
            label = "" if part == "unlabelled" else f"class-{source.labels[index]}"
            save(source.images[index][..., 0], folder / part / label / f"{index:05}.png")


def write_emoji(folder: Path) -> None:
    """Write the emoji of ``oquab2014_transfer``."""
    script = ROOT / "conf" / "experiment" / "oquab2014_emoji.py"
    subprocess.run([sys.executable, script, PACKAGES, folder], check=True)


def save(pixels: np.ndarray, file: Path) -> None:
    """Write a grey picture (H, W) uint8."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


WRITERS = {"digits": write_digits} | length({"fashion": write_fashion, "emoji": write_emoji}, {})


def train(name: str, budget: int | None) -> list[dict[str, Any]]:
    """Train a folder with so many labels a class, once a seed, and return the records of the runs."""
    from tutelage.app.job import locate_run
    from tutelage.config.compose import compose

    records = []
    for seed in SEEDS:
        words = [*words_of(name, budget, seed), *length([], ["debug=tiny"])]
        subprocess.run([sys.executable, "-m", "tutelage.train", *words], check=True, stdout=subprocess.DEVNULL)
        file = locate_run(compose(words)).folder.path / "run.json"
        records.append(json.loads(file.read_text()))
    return records


def words_of(name: str, budget: int | None, seed: int) -> list[str]:
    """Return what is typed behind ``tutelage train``."""
    words = ["data=image_folder", f"data.root={FOLDER / name}", f"name=recipes-{name}", f"seed={seed}"]
    return [*words, *([] if budget is None else [f"data.labels_per_class={budget}"])]


def count_seconds(record: dict[str, Any]) -> float:
    """Return how long a run took, if it was not interrupted."""
    started, finished = (datetime.fromisoformat(record[key]) for key in ("started", "finished"))
    return (finished - started).total_seconds()


def regress(name: str, budget: int | None) -> list[float]:
    """Return for each seed the test accuracy of a logistic regression on the labelled images' features.

    The features are those of the recipe's weights at its image size; C is the one that is best on the test set.
    """
    from sklearn.linear_model import LogisticRegression

    from tutelage.config.compose import compose
    from tutelage.data import data_module

    configs = [compose(words_of(name, budget, seed)) for seed in SEEDS]
    modules = [data_module(config.data) for config in configs]
    labels = modules[0].source.labels
    features = compute_features(configs[0], modules[0])
    accuracies: dict[float, list[float]] = {}
    for splits in (module.splits for module in modules):
        for c in PENALTIES:
            model = LogisticRegression(C=c, max_iter=2000).fit(features[splits.labelled], labels[splits.labelled])
            is_right = model.predict(features[splits.test]) == labels[splits.test]
            accuracies.setdefault(c, []).append(100 * float(is_right.mean()))
    return max(accuracies.values(), key=statistics.mean)


def compute_features(config: Any, module: Any) -> np.ndarray:
    """Return the features (N, D) float32 of all images: the highest ones of the network that a run begins with."""
    import torch

    from tutelage.models import ImageSpec, load_pretrained, make_classifier
    from tutelage.runs.weight_sources import find_weights

    data = config.data
    spec = ImageSpec(data.channels, data.image_size, module.source.classes, tuple(data.mean), tuple(data.std))
    network = make_classifier(config.model.arguments() | {"feature_layers": []}, spec).eval()
    load_pretrained(network, find_weights(config.init_from, "init_from"))
    with torch.inference_mode():
        batches = module.eval_dataloader(np.arange(len(module.source.labels)), 64)
        return np.concatenate([network.features(batch.images).numpy() for batch in batches])


def describe(values: Sequence[float]) -> str:
    """Return mean and standard deviation."""
    deviation = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def main() -> None:
    """Write the folders that are missing, train, and print the table."""
    print("| folder | labels a class | strategy | test accuracy | logistic regression | seconds a run |")
    print("|---|---|---|---|---|---|", flush=True)
    for name, write in WRITERS.items():
        if name == "emoji" and not (PACKAGES / "node_modules").is_dir():
            continue
        if not (FOLDER / name).is_dir():
            write(FOLDER / name)
        for budget in BUDGETS[name]:
            records = train(name, budget)
            accuracy = describe([100 * record["result"]["test/accuracy"] for record in records])
            strategy = records[0]["identity"]["strategy"]["_target_"].rpartition(".")[2]
            baseline = describe(regress(name, budget)) if "init_from" in records[0]["identity"] else "-"
            seconds = statistics.mean(map(count_seconds, records))
            print(f"| {name} | {budget or 'all'} | {strategy} | {accuracy} | {baseline} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
