"""A pool of 10 million images against one of 10 thousand: memory and time from the label store to the first batch.

For each pool a fresh process does what a trainer does when a student begins: it splits the data, opens the store of
the teacher's labels, selects (confidence 0.3, balance), sets up the streams and prepares batches. The images are
simulated: each is a few bytes that are made when it is asked for; all else is the real thing. Prints, for each pool,
the seconds of each part and the process's memory; then how fast the store was written, and what is made for people.

Ends with an error where memory (at its peak, and after 200 batches) is more than 300 MB above that of the small pool,
or the first batch comes later than after 10 seconds.

    make bench
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import numpy as np

from lengths import length
from tutelage.data import LabelStore, Source, StageData, read_labels, shard_files, write_summary, write_table
from tutelage.data.source import IndexNames

POOLS = (10_000, length(10_000_000, 1_000_000))
CLASSES, LABELLED, STEPS = 10, 1_000, 200
MOST_GROWTH, MOST_SECONDS = length(300e6, 60e6), length(10.0, 3.0)
OVERRIDES = [
    *("data=fashion_mnist", "data.num_workers=0", "data.labels_per_class=100", "data.validation=none"),
    *("model=perceptron", "augmentation=basic", "strategy=noisy_student", "strategy.confidence=0.3"),
    *("strategy.control=false", "schedule.epochs=null", f"schedule.steps={STEPS}"),
]
COLUMNS = ("data", "store", "selection", "first batch", "in all", "batches/s", "RSS", "peak")


class Simulated:
    """Images (28, 28, 1) uint8 that take no room: each is its number, spread over the pixels."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        """Return the number of images."""
        return self._count

    def __getitem__(self, index: int) -> np.ndarray:
        """Return an image."""
        return np.full((28, 28, 1), index % 251, dtype=np.uint8)

    def picture(self, index: int) -> np.ndarray:
        """Return an image."""
        return self[index]


def source_of(pool: int) -> Source:
    """Return a dataset of some labelled images, as many to test, and a pool."""
    labels = np.full(2 * LABELLED + pool, -1, dtype=np.int16)
    labels[: 2 * LABELLED] = np.arange(2 * LABELLED) % CLASSES
    return Source(
        images=Simulated(len(labels)),
        labels=labels,
        classes=tuple(str(c) for c in range(CLASSES)),
        train=np.arange(LABELLED),
        test=np.arange(LABELLED, 2 * LABELLED),
        val=np.empty(0, dtype=np.int64),
        unlabelled=np.arange(2 * LABELLED, len(labels), dtype=np.int32),
        names=IndexNames(len(labels)),
    )


def write_store(folder: Path, count: int) -> float:
    """Write the labels of ``count`` images, some classes more frequent than others, and return the seconds."""
    store, generator, seconds = LabelStore(folder, count, CLASSES, {}), np.random.default_rng(0), 0.0
    frequent = np.linspace(0, 1, CLASSES, dtype=np.float32)
    for shard in store.missing:
        first, last = store.bounds(shard)
        probabilities = np.exp(2 * generator.standard_normal((last - first, CLASSES), dtype=np.float32) + frequent)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        started = time.perf_counter()
        with store.claim(shard):
            store.write(shard, probabilities)
        seconds += time.perf_counter() - started
    return seconds


def memory(what: str) -> float:
    """Return this process's memory: ``VmRSS`` now, ``VmHWM`` at its peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024.0 * int(lines[what].split()[0])


def trainer(folder: Path, pool: int) -> dict[str, float]:
    """Do what a trainer does until its first batch, and some steps more; return seconds and bytes."""
    from tutelage.config.compose import compose
    from tutelage.data import ImageDataModule
    from tutelage.randomness import Key
    from tutelage.strategies import PseudoLabelStage, TrainStage, stages

    class Pool(ImageDataModule):
        def read(self) -> Source:
            return source_of(pool)

    config = compose(OVERRIDES)
    told, begun = {}, time.perf_counter()

    def tick(what: str) -> None:
        nonlocal begun
        told[what] = time.perf_counter() - begun
        begun = time.perf_counter()

    data = Pool(config.data)
    plan = stages(config, data.source, data.splits)
    tick("data")
    store = LabelStore(folder, len(data.splits.pool), CLASSES, {})  # every shard's checksum, as where a run goes on
    assert store.complete
    tick("store")
    label = next(stage for stage in plan if isinstance(stage, PseudoLabelStage))
    chosen = label.select(read_labels(folder))
    tick("selection")
    student = next(stage for stage in plan if isinstance(stage, TrainStage) and stage.name == "student-1")
    streams = student.streams({label.name: chosen})
    training = StageData(streams, config.augmentation.transforms, partial(Key, 0, "student-1"), STEPS)
    batches = data.train_batches(training, range(STEPS))
    next(batches)
    tick("first batch")
    told["in all"] = sum(told.values())
    for _ in batches:
        pass
    tick("steps")
    told["batches/s"] = (STEPS - 1) / told.pop("steps")
    return {**told, "RSS": memory("VmRSS"), "peak": memory("VmHWM")}


def table(folder: Path, pool: int) -> dict[str, float]:
    """Write what a round leaves for people, and return seconds and the peak of memory."""
    from tutelage.data import Rules, select

    source, labels = source_of(pool), read_labels(folder)
    chosen, started = select(labels, Rules(confidence=0.3)), time.perf_counter()
    write_summary(folder, source, source.unlabelled, labels, chosen, None)
    counted = time.perf_counter() - started
    write_table(folder, source, source.unlabelled, labels, chosen)
    return {"round": counted, "table": time.perf_counter() - started - counted, "peak": memory("VmHWM")}


def alone(what: str, folder: Path, pool: int) -> dict[str, float]:
    """Return what ``trainer`` or ``table`` returns, from a fresh process."""
    command = [sys.executable, __file__, what, str(folder), str(pool)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def shown(column: str, value: float) -> str:
    """Return a cell of the table."""
    if column in {"RSS", "peak"}:
        return f"{value / 1e6:,.0f} MB"
    return f"{value:.1f}" if column == "batches/s" else f"{value:.2f} s"


def main() -> None:
    """Print the table, and end with an error where an aim is missed."""
    if len(sys.argv) > 1:
        what, folder, pool = sys.argv[1:]
        print(json.dumps({"trainer": trainer, "table": table}[what](Path(folder), int(pool))))
        return
    found = {}
    print(f"{'pool':>12}" + "".join(f"{column:>13}" for column in COLUMNS))
    with tempfile.TemporaryDirectory() as top:
        for pool in POOLS:
            folder = Path(top) / str(pool)
            seconds = write_store(folder, pool)
            size = sum(file.stat().st_size for file in shard_files(folder, pool))
            found[pool] = alone("trainer", folder, pool)
            print(f"{pool:>12,}" + "".join(f"{shown(column, found[pool][column]):>13}" for column in COLUMNS))
        small, large = (found[pool] for pool in POOLS)
        print(f"store: {size / pool:.1f} bytes an image, written at {pool / seconds:,.0f} images/s")
        told = alone("table", folder, pool)
        files = f"round.json {told['round']:.1f} s, pseudo_labels.parquet {told['table']:.1f} s"
        print(f"for people, {pool:,} images: {files}, peak {told['peak'] / 1e6:,.0f} MB")
    growth = {what: large[what] - small[what] for what in ("RSS", "peak")}
    print(f"memory: {growth['RSS'] / 1e6:+,.0f} MB, peak {growth['peak'] / 1e6:+,.0f} MB (aim: below 300)")
    print(f"first batch after {large['in all']:.1f} s (aim: 10)")
    if growth["RSS"] > MOST_GROWTH or large["in all"] > MOST_SECONDS:
        sys.exit("pool: too much memory, or the first batch is too late")


if __name__ == "__main__":
    main()
