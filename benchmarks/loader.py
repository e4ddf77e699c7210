"""The way from stored images to batches: how many a second, by where they are stored, and a worker's memory.

Prints images a second on one core, of 500-pixel JPEGs in files, in a tar and in Parquet and of their pack, cropped to
224 pixels by `augmentation=basic` (the median of rounds in which all take turns), of the files as evaluation sees them,
and of those that are tried when a shard is first seen; and by how much a worker's own memory (what it shares with no
other process) differs between a dataset and one ten times as large, once it has shown every image of either.

Ends with an error where the pack is not 3 times as fast, or a worker's memory grows with the dataset.
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
from tutelage.data import StageData, Stream
from tutelage.data.datasets.image_files import FileImages
from tutelage.data.files.packing import pack_images
from tutelage.data.loading.batches import EvalDataset, TrainDataset
from tutelage.data.loading.workers import ignore_signals
from tutelage.data.shards.images import ShardImages
from tutelage.data.shards.index import index_shards
from tutelage.data.shards.pools import find_shards
from tutelage.data.source import Images, WholeImages
from tutelage.randomness import Key

FILES, ROUNDS, STEPS, BATCH = 128, length(7, 2), length(2, 1), 64
HEIGHT, WIDTH, QUALITY = 375, 500, 90
AIM = 3.0  # times the files, what a pack gives
LEAST_RATIO = length(AIM, 2.0)
SMALL, TIMES, SIDE = 4_000, 10, 16  # images of the smaller dataset, how much larger the other is, pixels
MOST_GROWTH = 4e6  # bytes
EVALUATED, TRIED = "JPEG files, for evaluation", "tried in a new shard"


def photograph(seed: int, height: int, width: int) -> np.ndarray:
    """Return an image (H, W, 3) uint8 whose detail falls off with its size, as a photograph's does, with some grain."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128, dtype=np.float32)
    for cells in (2, 4, 8, 16, 32, 64):
        layer = rng.normal(size=(cells, cells, 3)).astype(np.float32)
        image += cv2.resize(layer, (width, height), interpolation=cv2.INTER_CUBIC) * (70 / cells**0.5)
    return np.clip(image + rng.normal(size=image.shape) * 5, 0, 255).astype(np.uint8)


def files_in(folder: Path, count: int, height: int, width: int) -> list[str]:
    """Write JPEGs and return their paths."""
    paths = [str(folder / f"{number}.jpg") for number in range(count)]
    for number, path in enumerate(paths):
        cv2.imwrite(path, photograph(number, height, width), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return paths


def batches(images: Images, config: Config, steps: int, batch: int = BATCH) -> TrainDataset:
    """Return the training batches of all images."""
    stream = Stream("labelled", np.arange(len(images)), np.zeros(len(images), dtype=np.int64), batch)
    training = StageData([stream], config.augmentation.transforms, partial(Key, 0, "supervised"), steps)
    size = config.data.image_size
    return TrainDataset(images, training, (size, size, config.data.channels))


def shards(top: Path, paths: list[str], config: Config) -> tuple[dict[str, Images], float]:
    """Return the files in a tar and in Parquet, and how many a second are tried when these are first seen."""
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


def rates(top: Path) -> dict[str, float]:
    """Return images a second by where they are stored."""
    config = compose(["data=imagenet", f"data.root={top}", "data.num_workers=1"])
    paths = files_in(top, FILES, HEIGHT, WIDTH)
    files = FileImages(paths, config.data)
    squares = WholeImages(pack_images(files, [str(number) for number in range(FILES)], config.data))
    sharded, tried = shards(top, paths, config)
    stored: dict[str, Images] = {"JPEG files": files, **sharded, "their pack": squares}
    sides = {kind: batches(images, config, ROUNDS * STEPS) for kind, images in stored.items()}
    plain = EvalDataset(files, np.zeros(FILES, dtype=np.int64), np.arange(FILES))
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
    return {kind: 1 / statistics.median(own[1:]) for kind, own in seconds.items()} | {TRIED: tried}


def growth(make: Callable[[int], Images], config: Config) -> float:
    """Return by how many bytes a worker's own memory is larger for the larger dataset, after as many images of either.

    A worker has shown each image of the larger one.
    """
    small, large = (own_memory(make(count), config) for count in (SMALL, TIMES * SMALL))
    return large - small


def own_memory(images: Images, config: Config) -> float:
    """Return the bytes that a worker which has shown images shares with no other process, and that are no file's."""
    steps = TIMES * SMALL // BATCH
    dataset, before = batches(images, config, steps), set(multiprocessing.active_children())
    loader = DataLoader(
        dataset, batch_size=None, num_workers=1, worker_init_fn=ignore_signals, persistent_workers=True
    )  # persistent: it is still there when all is shown
    assert sum(1 for _ in loader) == steps
    (worker,) = set(multiprocessing.active_children()) - before
    rollup = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in rollup if line.startswith("Private_Dirty"))


def main() -> None:
    """Measure both."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        os.environ["XDG_CACHE_HOME"] = f"{top}/cache"
        count_cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(count_cores)})
        found = rates(top)
        os.sched_setaffinity(0, count_cores)
        ratio = found["their pack"] / found["JPEG files"]
        for kind, rate in found.items():
            print(f"images a second, {kind:<28}{rate:>8,.0f}")
        print(f"the pack gives {ratio:.1f} times as many as the files (aim: {AIM:.0f})")

        config = compose(["data=imagenet", f"data.root={top}", f"data.image_size={SIDE}"])
        paths = files_in(top, 20, SIDE, SIDE)

        def arrays(count: int) -> Images:
            return WholeImages(np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8))

        def files(count: int) -> Images:
            deep = f"{top}/{'./' * 150}"  # as long as paths can become: what is kept of each shows
            return FileImages([f"{deep}{number % len(paths)}.jpg" for number in range(count)], config.data)

        def pack(count: int) -> Images:
            return WholeImages(pack_images(arrays(count), [str(number) for number in range(count)], config.data))

        grown = {make.__name__: growth(make, config) for make in (arrays, files, pack)}
        for kind, by in grown.items():
            more = f"for {(TIMES - 1) * SMALL:,} images more (aim: 0)"
            print(f"a worker's own memory, {kind:<11}{by / 1e6:+.1f} MB {more}")
    if ratio < LEAST_RATIO or max(grown.values()) > MOST_GROWTH:
        sys.exit("loader: too slow, or a worker's memory grows with the dataset")


if __name__ == "__main__":
    main()
