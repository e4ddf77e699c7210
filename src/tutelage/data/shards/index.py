"""The index of a pool of shards: where each image is; made once and stored, for training with every image checked."""

import hashlib
import json
import os
import random
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.datasets.download import OnProgress, ignore_progress
from tutelage.data.files.contents import DIGEST_BYTES, ID_BYTES
from tutelage.data.files.decoding import check_image
from tutelage.data.files.listing import IMAGE_SUFFIXES
from tutelage.data.files.names import printable
from tutelage.data.files.scan import raise_for_unreadable
from tutelage.data.loading.shared_memory import count_cores
from tutelage.data.shards.cache import open_shard, read_parquet_images, shard_key
from tutelage.data.shards.pools import Shard
from tutelage.errors import UserError
from tutelage.storage import cache_folder, digest, remove_old_partials, write_json, write_whole

CACHE_NAME = "shard-indices"  # below our cache folder
INDEX_VERSION = 2  # to be raised when the files of an index change
INDEX_SUFFIX, CONTENTS_SUFFIX, BAD_SUFFIX = ".bin", ".contents", ".bad.json"
# of an image: where it begins in the file, its bytes, its position among the shard's images
ROW = np.dtype([("offset", "<u8"), ("size", "<u4"), ("position", "<u4")])
# before the content ids (n,) of a shard's images: the SHA-256 over their positions and contents, and the largest value
# of images with 16 bits a sample
HEAD = np.dtype([("digest", f"V{DIGEST_BYTES}"), ("peak", "<u8")])
MAX_THREADS = 16  # shards that are fetched and checked at the same time, as many as the cache keeps


@dataclass(frozen=True)
class Pool:
    """Shards with their images that can be decoded.

    Attributes:
        shards: the shards that have such images, in the order in which they were given.
        counts: (S,) int64, the number of images of each.
        indices: for each, the file with its rows (n,) of ``ROW``.
        heads: (S,) of ``HEAD``; (0,) where the images were not checked (see ``list_shards``).
        left_out: names of the images that cannot be decoded.
    """

    shards: tuple[Shard, ...]
    counts: np.ndarray
    indices: tuple[str, ...]
    heads: np.ndarray
    left_out: tuple[str, ...]

    def fingerprint(self) -> str:
        """Return a digest of the shards' names and their images; it does not depend on their locations."""
        digests = self.heads["digest"].tolist()
        return digest([[shard.name, content.hex()] for shard, content in zip(self.shards, digests, strict=True)])

    def read_rows(self, shard: int) -> np.ndarray:
        """Return the offsets, sizes and positions of the images of a shard, (n,) of ``ROW``."""
        return np.fromfile(self.indices[shard], ROW)

    def read_content_ids(self, shard: int) -> np.ndarray:
        """Return the content ids (n,) uint64 of the images of a shard (see ``content_ids``)."""
        path = self.indices[shard].removesuffix(INDEX_SUFFIX) + CONTENTS_SUFFIX
        return np.fromfile(path, "<u8", offset=HEAD.itemsize)


def image_name(shard: Shard, position: int) -> str:
    """Return an image's name: its shard and its position in it, from 0 (in a Parquet file, its row)."""
    return f"{shard.name}#{position}"


def index_shards(
    shards: Sequence[Shard], config: DataConfig, setting: str, on_progress: OnProgress = ignore_progress
) -> Pool:
    """Return the pool of the images in shards; shards that are new are read once, every image is hashed and checked.

    The index of a shard is written as soon as the shard has been read, so that a run that is stopped goes on with the
    others. Several processes with one cache folder share the work, each in an order of its own.

    Args:
        shards: the shards.
        config: the dataset's config: ``max_pixels`` and ``on_bad_image``.
        setting: what the user typed to name the pool, for messages.
        on_progress: receives the progress; may raise to stop.

    Raises:
        UserError: a shard cannot be read, there is no image, or one cannot be decoded and ``on_bad_image`` is stop.
    """
    folder = cache_folder(CACHE_NAME)
    shards = _validate_remote(shards, folder, on_progress)
    keys = [shard_key(shard, INDEX_VERSION, config.max_pixels) for shard in shards]
    sizes = _file_sizes(folder)
    missing = [number for number, key in enumerate(keys) if not _is_whole(key, sizes)]
    if missing:
        remove_old_partials(folder)
    message = f"reading {len(missing):,} shards of the pool for the first time"
    tasks = [(shards[number], folder / keys[number]) for number in random.sample(missing, len(missing))]
    for done, _ in enumerate(_index_in_threads(tasks, config.max_pixels), start=1):
        on_progress(message, done / len(missing))
    sizes = _file_sizes(folder) if missing else sizes
    counts = np.array([sizes[f"{key}{INDEX_SUFFIX}"] // ROW.itemsize for key in keys])
    bad = [
        (image_name(shard, position), reason)
        for shard, key in zip(shards, keys, strict=True)
        if f"{key}{BAD_SUFFIX}" in sizes
        for position, reason in json.loads((folder / f"{key}{BAD_SUFFIX}").read_text())
    ]
    if bad and config.on_bad_image == "stop":
        reasons = dict(enumerate(reason for _, reason in bad))
        raise_for_unreadable(reasons, [name for name, _ in bad], setting, int(counts.sum()))
    with_images = _find_filled(counts, setting)
    return Pool(
        shards=tuple(shards[number] for number in with_images),
        counts=counts[with_images],
        indices=tuple(f"{folder}{os.sep}{keys[number]}{INDEX_SUFFIX}" for number in with_images),
        heads=np.array([_read_head(f"{folder}{os.sep}{keys[number]}{CONTENTS_SUFFIX}") for number in with_images]),
        left_out=tuple(name for name, _ in bad),
    )


def list_shards(shards: Sequence[Shard], setting: str, on_progress: OnProgress = ignore_progress) -> Pool:
    """Return the pool of all images in shards, none of which is hashed or decoded; where they lie is remembered.

    Raises:
        UserError: a shard cannot be read, or there is no image.
    """
    folder = cache_folder(CACHE_NAME)
    shards = _validate_remote(shards, folder, on_progress)
    paths = [folder / f"{shard_key(shard, INDEX_VERSION)}{INDEX_SUFFIX}" for shard in shards]
    for number, (shard, path) in enumerate(zip(shards, paths, strict=True)):
        if not path.exists():
            on_progress(f"looking for the images in {len(shards):,} shards", number / len(shards))
            with open_shard(shard) as file:
                rows = _read_rows(shard, file).tobytes()
            with _write_errors(folder):
                write_whole(path, lambda out, rows=rows: out.write(rows))  # type: ignore[misc]
    counts = np.array([path.stat().st_size // ROW.itemsize for path in paths])
    filled = _find_filled(counts, setting)
    return Pool(
        shards=tuple(shards[number] for number in filled),
        counts=counts[filled],
        indices=tuple(str(paths[number]) for number in filled),
        heads=np.empty(0, HEAD),
        left_out=(),
    )


def _validate_remote(shards: Sequence[Shard], folder: Path, on_progress: OnProgress) -> Sequence[Shard]:
    """Return the shards, those on the network with what is known of their state."""
    if not any(shard.is_remote for shard in shards):
        return shards
    from tutelage.data.shards.validators import with_validators

    return with_validators(shards, folder, on_progress)


def _find_filled(counts: np.ndarray, setting: str) -> list[int]:
    """Return the numbers of the shards that have images, of the number of images in each (S,)."""
    if not counts.sum():
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(
            f"{setting}: no image in its {len(counts)} shards (an image in a tar is NAME.EXT with {suffixes})"
        )
    return np.flatnonzero(counts).tolist()


def _is_whole(key: str, sizes: Mapping[str, int]) -> bool:
    """Return whether the index of a shard has its rows, and a content id of each, in files of these sizes by name."""
    rows, contents = (sizes.get(f"{key}{suffix}") for suffix in (INDEX_SUFFIX, CONTENTS_SUFFIX))
    return rows is not None and contents == HEAD.itemsize + rows // ROW.itemsize * ID_BYTES


def _read_head(path: str) -> np.void:
    """Return the ``HEAD`` of a shard's content ids."""
    with open(path, "rb") as file:  # noqa: PTH123 - many times faster than Path
        head: np.void = np.frombuffer(file.read(HEAD.itemsize), HEAD)[0]
        return head


def _file_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file in a folder, by name; empty if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries}
    except FileNotFoundError:
        return {}


def _index_in_threads(tasks: Sequence[tuple[Shard, Path]], max_pixels: int) -> Iterator[None]:
    """Index shards in threads (decoders release the GIL), and yield each time one is done."""
    stop = threading.Event()
    executor = ThreadPoolExecutor(min(MAX_THREADS, count_cores()))
    try:
        for future in as_completed([executor.submit(_index_shard, *task, max_pixels, stop) for task in tasks]):
            yield future.result()
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


def _index_shard(shard: Shard, stem: Path, max_pixels: int, stop: threading.Event) -> None:
    """Hash and check every image of a shard; write the rows of the sound ones, after all else that is known."""
    rows_path, contents_path = stem.with_suffix(INDEX_SUFFIX), stem.with_suffix(CONTENTS_SUFFIX)
    sizes = {path.name: path.stat().st_size for path in (rows_path, contents_path) if path.exists()}
    if stop.is_set() or _is_whole(stem.name, sizes):
        return
    with open_shard(shard) as file:
        rows = _read_rows(shard, file)
        is_sound = np.ones(len(rows), dtype=bool)
        bad, whole, ids, peak = [], hashlib.sha256(), bytearray(), 0
        for number, (offset, size, position) in enumerate(rows.tolist()):
            if stop.is_set():
                return
            content = os.pread(file.fileno(), size, offset)
            check = check_image(content, max_pixels)
            if check.reason:
                is_sound[number] = False
                bad.append((position, check.reason))
                continue
            content_hash = hashlib.sha256(content).digest()
            whole.update(position.to_bytes(ID_BYTES, "little") + content_hash)
            ids += content_hash[:ID_BYTES]
            peak = max(peak, check.peak)
    with _write_errors(stem.parent):
        if bad:
            write_json(stem.with_suffix(BAD_SUFFIX), bad)
        head = np.array([(whole.digest(), peak)], HEAD).tobytes()
        write_whole(contents_path, lambda out: out.write(head + bytes(ids)))
        write_whole(rows_path, lambda out: out.write(rows[is_sound].tobytes()))


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    """Raise the errors of writing to the cache's folder as a UserError of one line."""
    try:
        yield
    except OSError as error:
        hint = "make room, or let XDG_CACHE_HOME name another folder"
        raise UserError(f"{printable(str(folder))}: cannot be written ({error.strerror}): {hint}") from None


def _read_rows(shard: Shard, file: IO[bytes]) -> np.ndarray:
    """Return the offsets, sizes and positions of the images in an open shard, (n,) of ``ROW``."""
    return _read_parquet_rows(shard) if shard.column else _read_tar_rows(shard, file)


def _read_tar_rows(shard: Shard, file: IO[bytes]) -> np.ndarray:
    """Return the offsets, sizes and positions of the images in a tar, (n,) of ``ROW``.

    As in WebDataset, the part of a name after its first dot says what a file is: ``7.jpg`` is an image, ``7.mask.png``
    is not the image.
    """
    rows: list[tuple[int, int, int]] = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                base, _, suffix = member.name.rpartition("/")[2].partition(".")
                if member.isreg() and base and f".{suffix.lower()}" in IMAGE_SUFFIXES:
                    rows.append((member.offset_data, member.size, len(rows)))
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{printable(shard.location)}: cannot be read as a tar ({reason}); fetch it again or leave it out"
        ) from None
    return np.array(rows, dtype=ROW)


def _read_parquet_rows(shard: Shard) -> np.ndarray:
    """Return the rows (n,) of ``ROW`` of the images in a Parquet file, as they are once written one after another."""
    import pyarrow.compute as pc

    sizes = np.concatenate([pc.binary_length(images).to_numpy() for _, images in read_parquet_images(shard)])
    rows = np.empty(len(sizes), dtype=ROW)
    rows["size"] = sizes
    rows["offset"] = np.cumsum(sizes, dtype=np.int64) - sizes
    rows["position"] = shard.first_row + np.arange(len(sizes))
    return rows
