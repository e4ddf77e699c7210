"""Measure the loader: images a second from each form of storage to a batch, and the memory of a worker.

Prints images a second on one core: for 500-pixel JPEGs in files, in a tar, in Parquet and in their pack, cropped to 224
pixels by `augmentation=basic` (the median of rounds in which all take turns); for the files as evaluation reads them;
and for the images checked when a shard is first read. Then prints by how many bytes a worker's own memory (pages that
no other process shares) is larger for a dataset ten times as large, after the same number of images from either.

The script ends with an error if the pack is not 3 times as fast as the files, or if a worker's memory grows with the
dataset.
"""

import multiprocessing
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader

from lengths import length
from tutelage.config import Config
from tutelage.config.compose import compose
from tutelage.data import EVALUATION_BATCH, StageData, Stream
from tutelage.data.datasets.download import ignore_progress
from tutelage.data.datasets.image_files import FileImages
from tutelage.data.files.packing import pack_images
from tutelage.data.loading.batches import EvalDataset, TrainDataset
from tutelage.data.loading.shared_memory import SharedTexts
from tutelage.data.loading.workers import ignore_signals
from tutelage.data.shards.images import ShardImages
from tutelage.data.shards.index import index_shards
from tutelage.data.shards.pools import find_shards
from tutelage.data.source import Images, WholeImages
from tutelage.randomness import Key

FILES, ROUNDS, STEPS, BATCH = 128, length(7, 2), length(2, 1), 64
HEIGHT, WIDTH, QUALITY = 375, 500, 90
AIM = 3.0  # the pack's speed, in times that of the files
LEAST_RATIO = length(AIM, 2.0)
SMALL, TIMES, SIDE = 4_000, 10, 16  # images of the smaller dataset, how much larger the other is, pixels
MOST_GROWTH = 4e6  # bytes
EVALUATED, TRIED = "JPEG files, for evaluation", "checked in a new shard"


def draw_photograph(seed: int, height: int, width: int) -> np.ndarray:
    """Draw an image (H, W, 3) uint8 with less contrast at finer scales, as photographs have, and some grain."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128, dtype=np.float32)
    for cells in (2, 4, 8, 16, 32, 64):
        layer = rng.normal(size=(cells, cells, 3)).astype(np.float32)
        image += cv2.resize(layer, (width, height), interpolation=cv2.INTER_CUBIC) * (70 / cells**0.5)
    return np.clip(image + rng.normal(size=image.shape) * 5, 0, 255).astype(np.uint8)


def write_jpegs(folder: Path, count: int, height: int, width: int) -> list[str]:
    """Write JPEGs and return their paths."""
    paths = [str(folder / f"{number}.jpg") for number in range(count)]
    for number, path in enumerate(paths):
        cv2.imwrite(path, draw_photograph(number, height, width), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return paths


def pack_all(images: Images, config: Config) -> WholeImages:
    """Return the pack of all images."""
    numbers = np.arange(len(images))
    contents = [number.to_bytes(4) for number in range(len(images))]
    return WholeImages(pack_images(images, contents, config.data, numbers, ignore_progress))


def make_train_dataset(images: Images, config: Config, steps: int, batch: int = BATCH) -> TrainDataset:
    """Return the training batches of all images."""
    stream = Stream("labelled", np.arange(len(images)), np.zeros(len(images), dtype=np.int64), batch)
    training = StageData([stream], config.augmentation.transforms, partial(Key, 0, "supervised"), steps)
    size = config.data.image_size
    return TrainDataset(images, training, (size, size, config.data.channels))


def write_shards(top: Path, paths: list[str], config: Config) -> tuple[dict[str, Images], float]:
    """Write the files to a tar and to Parquet; return both, and images a second when the shards are first read."""
    with tarfile.open(top / "files.tar", "w") as tar:
        for path in paths:
            tar.add(path, arcname=Path(path).name)
    pq.write_table(pa.table({"image": [Path(path).read_bytes() for path in paths]}), top / "files.parquet")
    started = time.perf_counter()
    pools = [
        index_shards(find_shards(str(top / f"files.{kind}")) or (), config.data, kind) for kind in ("tar", "parquet")
    ]
    tried = 2 * len(paths) / (time.perf_counter() - started)
    return {kind: ShardImages(pool, config.data) for kind, pool in zip(("tar", "Parquet"), pools, strict=True)}, tried


def measure_rates(top: Path) -> dict[str, float]:
    """Return images a second for each form of storage."""
    config = compose(["data=imagenet", f"data.root={top}", "data.num_workers=1"])
    paths = write_jpegs(top, FILES, HEIGHT, WIDTH)
    files = FileImages(paths, config.data)
    squares = pack_all(files, config)
    sharded, tried_rate = write_shards(top, paths, config)
    stored: dict[str, Images] = {"JPEG files": files, **sharded, "their pack": squares}
    sides = {kind: make_train_dataset(images, config, ROUNDS * STEPS) for kind, images in stored.items()}
    plain = EvalDataset(files, np.zeros(FILES, dtype=np.int64), np.arange(FILES), EVALUATION_BATCH)
    seconds: dict[str, list[float]] = {kind: [] for kind in (*sides, EVALUATED)}
    for turn in range(1 + ROUNDS):
        for kind, side in sides.items():
            started = time.perf_counter()
            for step in range(STEPS):
                side[(turn * STEPS + step) % len(side)]
            seconds[kind].append((time.perf_counter() - started) / (STEPS * BATCH))
        started = time.perf_counter()
        plain[0]
        seconds[EVALUATED].append((time.perf_counter() - started) / FILES)
    return {kind: 1 / statistics.median(times[1:]) for kind, times in seconds.items()} | {TRIED: tried_rate}


def measure_growth(make: Callable[[int], Images], config: Config) -> float:
    """Return by how many bytes a worker's own memory is larger for the larger dataset.

    Both workers load the same number of images: every image of the larger dataset once.
    """
    small, large = (measure_own_memory(make(count), config) for count in (SMALL, TIMES * SMALL))
    return large - small


def measure_own_memory(images: Images, config: Config) -> float:
    """Load batches by a worker and return the bytes of its memory that no other process shares and no file backs."""
    steps = TIMES * SMALL // BATCH
    dataset, processes_before = make_train_dataset(images, config, steps), set(multiprocessing.active_children())
    loader = DataLoader(
        dataset, batch_size=None, num_workers=1, worker_init_fn=ignore_signals, persistent_workers=True
    )  # persistent: the worker is still alive after the last batch
    assert sum(1 for _ in loader) == steps
    (worker,) = set(multiprocessing.active_children()) - processes_before
    rollup = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in rollup if line.startswith("Private_Dirty"))


def main() -> None:
    """Print the images a second and the growth of memory; end with an error if a limit is missed."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        os.environ["XDG_CACHE_HOME"] = f"{top}/cache"
        count_cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(count_cores)})
        rates_by_kind = measure_rates(top)
        os.sched_setaffinity(0, count_cores)
        ratio = rates_by_kind["their pack"] / rates_by_kind["JPEG files"]
        for kind, rate in rates_by_kind.items():
            print(f"images a second, {kind:<28}{rate:>8,.0f}")
        print(f"the pack is {ratio:.1f} times as fast as the files (aim: {AIM:.0f})")

        config = compose(["data=imagenet", f"data.root={top}", f"data.image_size={SIDE}"])
        paths = write_jpegs(top, 20, SIDE, SIDE)

        def arrays(count: int) -> Images:
            return WholeImages(np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8))

        def files(count: int) -> Images:
            long_folder = f"{top}/{'./' * 150}"  # paths of great length, so that memory for each path would show
            texts = SharedTexts(f"{long_folder}{number % len(paths)}.jpg" for number in range(count))
            return FileImages(texts, config.data)

        def pack(count: int) -> Images:
            return pack_all(arrays(count), config)

        growth_by_kind = {make.__name__: measure_growth(make, config) for make in (arrays, files, pack)}
        for kind, bytes_more in growth_by_kind.items():
            images_more = f"for {(TIMES - 1) * SMALL:,} more images (aim: 0)"
            print(f"a worker's own memory, {kind:<11}{bytes_more / 1e6:+.1f} MB {images_more}")
    if ratio < LEAST_RATIO or max(growth_by_kind.values()) > MOST_GROWTH:
        sys.exit("loader: too slow, or a worker's memory grows with the dataset")


if __name__ == "__main__":
    main()
