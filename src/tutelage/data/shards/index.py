"""Where each image of a pool of shards lies: found once, with every image tried, and kept."""

import json
import os
import random
import tarfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.datasets.download import OnProgress, cache_folder, silent
from tutelage.data.files.decoding import complaint
from tutelage.data.files.listing import IMAGE_SUFFIXES
from tutelage.data.files.scan import stop_at
from tutelage.data.loading.shared_memory import cores
from tutelage.data.shards.cache import key_of, opened, parquet_images
from tutelage.data.shards.pools import Shard
from tutelage.errors import UserError
from tutelage.storage import digest, write_json, write_whole

INDICES = "shard-indices"  # below our cache folder
INDEX, BAD = ".bin", ".bad.json"
ROW = np.dtype([("offset", "<u8"), ("size", "<u4"), ("place", "<u4")])  # of an image; its place among the shard's
AT_ONCE = 16  # shards that are fetched and tried at the same time, as many as the cache keeps


@dataclass(frozen=True)
class Pool:
    """Shards with their images that can be read.

    Attributes:
        shards: the shards that have any, in the order in which they were given.
        counts: (S,) int64, how many images each has.
        indices: for each, the file with its rows (n,) of ``ROW``.
        left_out: names of the images that give no pixels.
    """

    shards: tuple[Shard, ...]
    counts: np.ndarray
    indices: tuple[str, ...]
    left_out: tuple[str, ...]

    def fingerprint(self) -> str:
        """Return a digest of the shards' names, sizes and counts of images: what they *are*, wherever they lie."""
        counts = self.counts.tolist()
        return digest([[shard.name, shard.size, count] for shard, count in zip(self.shards, counts, strict=True)])

    def rows(self, number: int) -> np.ndarray:
        """Return where the images of a shard lie, (n,) of ``ROW``."""
        return np.fromfile(self.indices[number], ROW)


def name_in(shard: Shard, place: int) -> str:
    """Return what an image is called: its shard and its place in it, from 0 (of a Parquet file, its row)."""
    return f"{shard.name}#{place}"


def indexed(shards: Sequence[Shard], config: DataConfig, where: str, tell: OnProgress = silent) -> Pool:
    """Return where the images of shards lie; shards that were not seen before are read once, and every image tried.

    What is found in a shard is written when it has been read, so that who is stopped goes on with the others. Several
    processes with one cache folder share the work, each in an order of its own.

    Args:
        shards: the shards.
        config: the dataset's config: ``max_pixels`` and ``on_bad_image``.
        where: what the user typed.
        tell: is told of the progress; may raise to stop.

    Raises:
        UserError: a shard cannot be read, there is no image, or one gives no pixels and ``on_bad_image`` is stop.
    """
    folder = cache_folder(INDICES)
    names = [key_of(shard, config.max_pixels) for shard in shards]
    known = _sizes(folder)
    missing = [number for number, name in enumerate(names) if f"{name}{INDEX}" not in known]
    told = f"reading {len(missing):,} shards of the pool for the first time"
    tasks = [(shards[number], folder / names[number]) for number in random.sample(missing, len(missing))]
    for done, _ in enumerate(_each(tasks, config.max_pixels), start=1):
        tell(told, done / len(missing))
    known = _sizes(folder) if missing else known
    counts = np.array([known[f"{name}{INDEX}"] // ROW.itemsize for name in names])
    bad = [
        (name_in(shard, place), reason)
        for shard, name in zip(shards, names, strict=True)
        if f"{name}{BAD}" in known
        for place, reason in json.loads((folder / f"{name}{BAD}").read_text())
    ]
    if bad and config.on_bad_image == "stop":
        stop_at(dict(enumerate(reason for _, reason in bad)), [name for name, _ in bad], where, int(counts.sum()))
    if not counts.sum():
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{where}: no image in its {len(shards)} shards (in tars NAME.EXT with {kinds} is looked for)")
    some = np.flatnonzero(counts).tolist()
    return Pool(
        shards=tuple(shards[number] for number in some),
        counts=counts[some],
        indices=tuple(f"{folder}{os.sep}{names[number]}{INDEX}" for number in some),
        left_out=tuple(name for name, _ in bad),
    )


def _sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file of a folder, which need not be there."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries}
    except FileNotFoundError:
        return {}


def _each(tasks: Sequence[tuple[Shard, Path]], max_pixels: int) -> Iterator[None]:
    """Index shards and yield as they are done; threads do, since decoders run without Python's lock."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(min(AT_ONCE, cores()))
    try:
        for future in as_completed([pool.submit(_index, *task, max_pixels, stop) for task in tasks]):
            yield future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _index(shard: Shard, stem: Path, max_pixels: int, stop: threading.Event) -> None:
    """Try every image of a shard, and write where the sound ones lie and, before that, what is wrong with others."""
    file = stem.with_suffix(INDEX)
    if stop.is_set() or file.exists():
        return
    with opened(shard) as content:
        rows = _parquet_rows(shard) if shard.column else _tar_rows(shard, content)
        sound = np.ones(len(rows), dtype=bool)
        bad = []
        for number, (offset, size, place) in enumerate(rows.tolist()):
            if stop.is_set():
                return
            reason = complaint(BytesIO(os.pread(content.fileno(), size, offset)), max_pixels)
            if reason:
                sound[number] = False
                bad.append((place, reason))
    try:
        if bad:
            write_json(stem.with_suffix(BAD), bad)
        write_whole(file, lambda out: out.write(rows[sound].tobytes()))
    except OSError as error:
        way_out = "make room, or let XDG_CACHE_HOME name another folder"
        raise UserError(f"{file.parent}: cannot be written ({error.strerror}): {way_out}") from None


def _tar_rows(shard: Shard, content: IO[bytes]) -> np.ndarray:
    """Return where the images of a tar lie, (n,) of ``ROW``.

    As webdataset has it, what stands behind the first dot of a name says what a file is: ``7.jpg`` is an image,
    ``7.mask.png`` is not the image.
    """
    found: list[tuple[int, int, int]] = []
    try:
        with tarfile.open(fileobj=content, mode="r:") as tar:
            for member in tar:
                base, _, kind = member.name.rpartition("/")[2].partition(".")
                if member.isreg() and base and f".{kind.lower()}" in IMAGE_SUFFIXES:
                    found.append((member.offset_data, member.size, len(found)))
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{shard.place}: cannot be read as a tar ({reason}); fetch it again or leave it out") from None
    return np.array(found, dtype=ROW)


def _parquet_rows(shard: Shard) -> np.ndarray:
    """Return where the images of a Parquet file lie once their bytes stand one behind the other, (n,) of ``ROW``."""
    import pyarrow.compute as pc

    sizes = np.concatenate([pc.binary_length(images).to_numpy() for _, images in parquet_images(shard)])
    rows = np.empty(len(sizes), dtype=ROW)
    rows["size"] = sizes
    rows["offset"] = np.cumsum(sizes, dtype=np.int64) - sizes
    rows["place"] = shard.row + np.arange(len(sizes))
    return rows
