"""Compare a pool of 10 million images with one of 10 thousand: memory and time from the label store to the first batch.

For each pool, a fresh process does what a trainer does when a student's stage starts: it searches the pool for copies
of the labelled images, splits the data, opens the store of the teacher's labels, selects (confidence 0.3, balance),
sets up the streams and prepares batches. The images and the hashes of their contents are simulated, made when they are
read; everything else is the real code. Prints, for each pool, the seconds of each part and the process's memory; then
how fast the store was written, and the seconds of the summary and the table for people.

The script ends with an error if memory after 200 batches is more than 300 MB above that of the small pool, or if the
first batch takes longer than 10 seconds.

    make bench
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import numpy as np

from lengths import length
from tutelage.data import LabelStore, Source, StageData, read_labels, shard_files, write_summary, write_table
from tutelage.data.duplicates import find_duplicates
from tutelage.data.source import IndexNames

POOLS = (10_000, length(10_000_000, 1_000_000))
CLASSES, LABELLED, STEPS = 10, 1_000, 200
EACH = 10_000  # images of a shard
MOST_GROWTH, MOST_SECONDS = length(300e6, 60e6), length(10.0, 3.0)
OVERRIDES = [
    *("data=fashion_mnist", "data.num_workers=0", "data.labels_per_class=100", "data.validation=none"),
    *("model=perceptron", "augmentation=basic", "strategy=noisy_student", "strategy.confidence=0.3"),
    *("strategy.control=false", "schedule.epochs=null", f"schedule.steps={STEPS}"),
]
COLUMNS = ("data", "store", "selection", "first batch", "in all", "batches/s", "RSS", "peak")


class SimulatedImages:
    """Images (28, 28, 1) uint8 that take no memory: each pixel of an image is its index modulo 251."""

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


def make_source(pool: int) -> Source:
    """Return a dataset of ``LABELLED`` labelled images, as many test images, and a pool that was searched for them."""
    labels = np.full(2 * LABELLED + pool, -1, dtype=np.int16)
    labels[: 2 * LABELLED] = np.arange(2 * LABELLED) % CLASSES
    return Source(
        images=SimulatedImages(len(labels)),
        labels=labels,
        classes=tuple(str(c) for c in range(CLASSES)),
        train=np.arange(LABELLED),
        test=np.arange(LABELLED, 2 * LABELLED),
        val=np.empty(0, dtype=np.int64),
        unlabelled=np.arange(2 * LABELLED, len(labels), dtype=np.int32),
        names=IndexNames(len(labels)),
        duplicates=find_duplicates(*make_content_ids(pool)),
    )


def make_content_ids(pool: int) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """Return the content ids of the images outside the pool, all different, and those of its shards."""
    rng = np.random.default_rng(0)
    shards = (rng.integers(0, 1 << 63, EACH).astype(np.uint64) for _ in range(pool // EACH))
    return np.arange(2 * LABELLED, dtype=np.uint64), shards


def write_store(folder: Path, count: int) -> float:
    """Write the pseudo-labels of ``count`` images, some classes more frequent than others, and return the seconds."""
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


def read_memory(field: str) -> float:
    """Return the bytes of memory that this process has now (``VmRSS``) or had at its peak (``VmHWM``)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024.0 * int(lines[field].split()[0])


def measure_trainer(folder: Path, pool: int) -> dict[str, float]:
    """Do what a trainer does until its first batch, and then the other steps; return seconds and bytes."""
    from tutelage.config.compose import compose
    from tutelage.data import ImageDataModule
    from tutelage.randomness import Key
    from tutelage.strategies import PseudoLabelStage, StageContext, TrainStage

    class Pool(ImageDataModule):
        def read(self) -> Source:
            return make_source(pool)

    config = compose(OVERRIDES)
    measured, started = {}, time.perf_counter()

    def tick(part: str) -> None:
        nonlocal started
        measured[part] = time.perf_counter() - started
        started = time.perf_counter()

    data = Pool(config.data)
    planned_stages = config.strategy.stages(StageContext(config, data.source, data.splits))
    tick("data")
    store = LabelStore(folder, len(data.splits.pool), CLASSES, {})  # verifies every shard's checksum, as on resume
    assert store.complete
    tick("store")
    label_stage = next(stage for stage in planned_stages if isinstance(stage, PseudoLabelStage))
    selection = label_stage.select(read_labels(folder))
    tick("selection")
    student_stage = next(
        stage for stage in planned_stages if isinstance(stage, TrainStage) and stage.name == "student-1"
    )
    streams = student_stage.streams({label_stage.name: selection})
    training = StageData(streams, config.augmentation.transforms, partial(Key, 0, "student-1"), STEPS)
    batches = data.train_batches(training, range(STEPS))
    next(batches)
    tick("first batch")
    measured["in all"] = sum(measured.values())
    for _ in batches:
        pass
    tick("steps")
    measured["batches/s"] = (STEPS - 1) / measured.pop("steps")
    return {**measured, "RSS": read_memory("VmRSS"), "peak": read_memory("VmHWM")}


def measure_tables(folder: Path, pool: int) -> dict[str, float]:
    """Write the summary and the table of a round, and return seconds and the peak of memory."""
    from tutelage.data import Rules, select

    source, labels = make_source(pool), read_labels(folder)
    selection, started = select(labels, Rules(confidence=0.3)), time.perf_counter()
    write_summary(folder, source, source.unlabelled, labels, selection, None)
    summary_seconds = time.perf_counter() - started
    write_table(folder, source, source.unlabelled, labels, selection)
    return {
        "round": summary_seconds,
        "table": time.perf_counter() - started - summary_seconds,
        "peak": read_memory("VmHWM"),
    }


def measure_in_process(part: str, folder: Path, pool: int) -> dict[str, float]:
    """Run ``measure_trainer`` or ``measure_tables`` in a fresh process and return its result."""
    command = [sys.executable, __file__, part, str(folder), str(pool)]
    measured: dict[str, float] = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    )
    return measured


def format_cell(column: str, value: float) -> str:
    """Return a value as text for its column of the table."""
    if column in {"RSS", "peak"}:
        return f"{value / 1e6:,.0f} MB"
    return f"{value:.1f}" if column == "batches/s" else f"{value:.2f} s"


def main() -> None:
    """Print the table; end with an error if a limit is passed."""
    if len(sys.argv) > 1:
        part, folder, pool = sys.argv[1:]
        print(json.dumps({"trainer": measure_trainer, "table": measure_tables}[part](Path(folder), int(pool))))
        return
    measured = {}
    print(f"{'pool':>12}" + "".join(f"{column:>13}" for column in COLUMNS))
    with tempfile.TemporaryDirectory() as top:
        for pool in POOLS:
            folder = Path(top) / str(pool)
            seconds = write_store(folder, pool)
            size = sum(file.stat().st_size for file in shard_files(folder, pool))
            measured[pool] = measure_in_process("trainer", folder, pool)
            print(f"{pool:>12,}" + "".join(f"{format_cell(column, measured[pool][column]):>13}" for column in COLUMNS))
        small, large = (measured[pool] for pool in POOLS)
        print(f"store: {size / POOLS[-1]:.1f} bytes an image, written at {POOLS[-1] / seconds:,.0f} images/s")
        written = measure_in_process("table", folder, pool)
        files = f"round.json {written['round']:.1f} s, pseudo_labels.parquet {written['table']:.1f} s"
        print(f"summary and table of {pool:,} images: {files}, peak {written['peak'] / 1e6:,.0f} MB")
    growth = {part: large[part] - small[part] for part in ("RSS", "peak")}
    print(f"memory: {growth['RSS'] / 1e6:+,.0f} MB, peak {growth['peak'] / 1e6:+,.0f} MB (aim: below 300)")
    print(f"first batch after {large['in all']:.1f} s (aim: 10)")
    if growth["RSS"] > MOST_GROWTH or large["in all"] > MOST_SECONDS:
        sys.exit("pool: too much memory, or the first batch is too late")


if __name__ == "__main__":
    main()
