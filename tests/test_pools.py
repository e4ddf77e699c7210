"""Pools of shards: tars and Parquet files, local and through a command; what is read, how often, in which order."""

import hashlib
import io
import multiprocessing
import os
import pickle
import shutil
import tarfile
import time
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.configs import rgb_config
from helpers.images import write_images
from tutelage.data import (
    UNKNOWN,
    StageData,
    Stream,
    StreamSampler,
    absolute_pool,
    fingerprint,
)
from tutelage.data.datasets.image_files import LISTINGS, image_files
from tutelage.data.files import contents
from tutelage.data.files.decoding import Check
from tutelage.data.loading.batches import EvalDataset, TrainDataset
from tutelage.data.shards import cache as shard_cache
from tutelage.data.shards import images as shard_images
from tutelage.data.shards import index as shard_index
from tutelage.data.shards import pools
from tutelage.data.shards.pools import find_shards
from tutelage.data.splits import split
from tutelage.errors import UserError
from tutelage.randomness import Key

SHARDS, EACH, LABELLED = 5, 6, 12


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tutelage"


def encode_image(colour: int, side: int = 16, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (colour, 0, 255 - colour)).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def red_value(shard: int, number: int) -> int:
    return shard * 40 + number


def write_tars(folder: Path, count: int = SHARDS, each: int = EACH) -> Path:
    """Write tars of images that their red values identify, each with a caption and a mask."""
    for shard in range(count):
        files: dict[str, bytes] = {}
        for number in range(each):
            files[f"{number:03}.png"] = encode_image(red_value(shard, number))
            files[f"{number:03}.txt"] = b"a caption"
            files[f"{number:03}.mask.png"] = encode_image(255)
        write_tar(folder / f"{shard:03}.tar", files)
    return folder


def write_parquet(path: Path, images: list[bytes | None], as_struct: bool, rows: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [{"bytes": image, "path": None} for image in images] if as_struct else images
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if as_struct else pa.binary()
    table = pa.table({"image": pa.array(values, kind), "caption": ["a caption"] * len(images)})
    pq.write_table(table, path, row_group_size=rows)
    return path


def make_config(top: Path, unlabelled, **changes):
    """Return the config of a folder of ``LABELLED`` labelled images and a pool."""
    if not (top / "data").exists():
        for label in ("cat", "dog"):
            write_images(top / "data" / "train" / label, LABELLED // 2)
            write_images(top / "data" / "test" / label, 1)
    target = "tutelage.data.ImageFolder"
    return rgb_config(_target_=target, root=str(top / "data"), unlabelled=str(unlabelled), **changes)


def make_source(top: Path, unlabelled, **changes):
    config = make_config(top, unlabelled, **changes)
    return image_files(LISTINGS["ImageFolder"](config), config)


def read_red_values(source, indices=None) -> list[int]:
    return [int(source.images[int(i)][0, 0, 0]) for i in (source.unlabelled if indices is None else indices)]


RED_VALUES = [red_value(shard, number) for shard in range(SHARDS) for number in range(EACH)]


def make_pipe_pool(folder: Path, log: Path, monkeypatch) -> str:
    """Return the name of a pool that is read by commands, one for each shard; each writes a line to ``log``."""
    monkeypatch.setenv("TUTELAGE_ALLOW", "pipe")
    command = folder.parent / "give"
    command.write_text(f"echo $1.tar >> {log}; cat {folder}/$1.tar\n")
    return f"pipe:sh {command} {{000..{SHARDS - 1:03}}}"


def test_the_images_of_tars_are_the_pool_in_the_tars_order(tmp_path):
    source = make_source(tmp_path, write_tars(tmp_path / "pool"))
    assert read_red_values(source) == RED_VALUES
    files = len(source.labels) - SHARDS * EACH
    assert source.unlabelled.tolist() == list(range(files, len(source.labels)))
    assert source.blocks.tolist() == [files + EACH * shard for shard in range(SHARDS)]
    assert (source.labels[source.unlabelled] == UNKNOWN).all()
    assert (source.labels[source.train] >= 0).all()
    assert source.names[files + EACH + 2] == "001.tar#2"
    assert len(source.names) == len(source.images) == len(source.labels)
    parts = split(source, make_config(tmp_path, "x"))
    assert parts.pool.tolist() == source.unlabelled.tolist()
    assert parts.blocks is source.blocks


@pytest.mark.parametrize("suffix", ["", "/*.tar", "/{000..004}.tar", "/{000,001,002,003,004}.tar"])
def test_shards_are_named_by_a_folder_a_pattern_or_braces(tmp_path, suffix):
    source = make_source(tmp_path, f"{write_tars(tmp_path / 'pool')}{suffix}")
    assert read_red_values(source) == RED_VALUES


def test_shards_are_added_to_the_unlabelled_images_of_a_folder(tmp_path):
    make_config(tmp_path, "x")
    write_images(tmp_path / "data" / "unlabelled", 3)
    source = make_source(tmp_path, write_tars(tmp_path / "pool", 1) / "000.tar")
    assert len(source.unlabelled) == 3 + EACH
    assert read_red_values(source)[3:] == RED_VALUES[:EACH]
    assert [source.names[i] for i in source.unlabelled.tolist()][2:4] == ["unlabelled/2.png", "000.tar#0"]


@pytest.mark.parametrize("as_struct", [False, True])
@pytest.mark.parametrize("part", [1, 1 << 20])  # bytes: each row group is a shard, or the file is one
def test_parquet_gives_the_same_images_as_tars(tmp_path, monkeypatch, as_struct, part):
    monkeypatch.setattr(pools, "PART_BYTES", part)
    images = [encode_image(colour) for colour in RED_VALUES]
    write_parquet(tmp_path / "pool" / "a.parquet", images[:20], as_struct)
    write_parquet(tmp_path / "pool" / "b.parquet", images[20:], as_struct)
    source = make_source(tmp_path, tmp_path / "pool")
    assert read_red_values(source) == RED_VALUES
    assert read_red_values(source, source.unlabelled[::-1]) == RED_VALUES[::-1]
    assert len(source.blocks) == (8 if part == 1 else 2)
    assert source.names[int(source.unlabelled[21])] == "b.parquet#1"


def test_a_pack_of_the_files_goes_with_a_pool_of_shards(tmp_path):
    source = make_source(tmp_path, write_tars(tmp_path / "pool"), pack=True)
    assert read_red_values(source) == RED_VALUES
    everything = Stream("all", np.arange(len(source.labels)), source.labels, len(source.labels), blocks=source.blocks)
    crop = {"_target_": "albumentations.RandomCrop", "height": 8, "width": 8}
    batches = TrainDataset(source.images, StageData([everything], [crop], partial(Key, 0, "all"), 1), (8, 8, 3))
    batch = batches[0]["all"]
    assert batch.images.shape == (len(source.labels), 3, 8, 8)
    assert set(RED_VALUES) <= set(batch.images[:, 0, 0, 0].tolist())
    assert batch.targets.dtype == torch.int64


def test_the_location_of_a_pool_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert absolute_pool("pool/{000..002}.tar") == f"{tmp_path}/pool/{{000..002}}.tar"
    for elsewhere in ("https://host/{000..002}.tar", "pipe:cat 000.tar", "/pool/*.tar"):
        assert absolute_pool(elsewhere) == elsewhere


def test_a_parquet_list_of_paths_is_not_a_shard(tmp_path):
    config = make_config(tmp_path, "x")
    write_images(tmp_path / "more", 3)
    pq.write_table(pa.table({"path": ["more/0.png", "more/2.png"]}), tmp_path / "list.parquet")
    assert find_shards(str(tmp_path / "list.parquet")) is None
    assert len(make_source(tmp_path, tmp_path / "list.parquet").unlabelled) == 2
    assert find_shards(str(tmp_path / "more")) is None
    assert config.on_bad_image == "stop"


def test_commands_run_only_where_they_are_allowed(tmp_path, monkeypatch):
    log = tmp_path / "log"
    pool = make_pipe_pool(write_tars(tmp_path / "pool"), log, monkeypatch)
    monkeypatch.delenv("TUTELAGE_ALLOW")
    with pytest.raises(UserError, match="a command is run only where you allow it.*--allow pipe"):
        make_source(tmp_path, pool)
    assert not log.exists()
    monkeypatch.setenv("TUTELAGE_ALLOW", "pipe")
    assert read_red_values(make_source(tmp_path, pool)) == RED_VALUES


def test_a_streamed_pool_needs_room_for_a_few_shards_only(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(shard_cache, "MAX_CACHED", 2)
    log = tmp_path / "log"
    source = make_source(tmp_path, make_pipe_pool(write_tars(tmp_path / "pool"), log, monkeypatch))
    assert read_red_values(source) == RED_VALUES
    assert len([file for file in (cache / "shards").iterdir() if file.suffix != ".lock"]) == 2


def test_evaluation_reads_each_shard_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_cache, "MAX_CACHED", 1)
    monkeypatch.setattr(shard_index, "MAX_THREADS", 1)
    log = tmp_path / "log"
    source = make_source(tmp_path, make_pipe_pool(write_tars(tmp_path / "pool"), log, monkeypatch))
    for file in (tmp_path / "cache" / "tutelage" / "shards").iterdir():
        file.unlink()
    log.unlink()
    batches = EvalDataset(source.images, source.labels, source.unlabelled, batch_size=4)
    red_values = [int(value) for number in range(len(batches)) for value in batches[number].images[:, 0, 0, 0]]
    assert red_values == RED_VALUES
    assert log.read_text().split() == [f"{shard:03}.tar" for shard in range(SHARDS)]


def _read_red_value(images, number):
    return int(images[number][0, 0, 0])


def test_processes_share_fetched_shards(tmp_path, monkeypatch):
    log = tmp_path / "log"
    source = make_source(tmp_path, make_pipe_pool(write_tars(tmp_path / "pool"), log, monkeypatch))
    for file in (tmp_path / "cache" / "tutelage" / "shards").iterdir():
        file.unlink()
    log.unlink()
    with multiprocessing.get_context("fork").Pool(3) as pool:
        red_values = pool.map(partial(_read_red_value, source.images), source.unlabelled.tolist(), chunksize=1)
    assert red_values == RED_VALUES
    assert sorted(log.read_text().split()) == [f"{shard:03}.tar" for shard in range(SHARDS)]


def test_a_failed_fetch_is_an_error_of_one_line_and_leaves_nothing(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("TUTELAGE_ALLOW", "pipe")
    whole = write_tars(tmp_path / "pool", 1) / "000.tar"
    with pytest.raises(UserError, match=r"pipe:head.*cannot be fetched.*start again") as error:
        make_source(tmp_path, f"pipe:head -c 2000 {whole}; exit 3")
    assert "\n" not in str(error.value)
    assert not [file for file in (cache / "shards").iterdir() if file.suffix != ".lock"]
    with pytest.raises(UserError, match=r"pipe:head.*cannot be read as a tar.*fetch it again"):
        make_source(tmp_path, f"pipe:head -c 2000 {whole}")


def test_old_files_of_killed_writes_are_removed_and_new_ones_are_not(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(contents, "SETTLED_NS", -1)
    folders = [cache / name for name in ("shards", "shard-indices", "contents")]
    for folder in folders:
        folder.mkdir(parents=True)
        for name in ("old", "new"):
            (folder / f".partial-{name}").write_bytes(b"half a file")
        os.utime(folder / ".partial-old", (0, 0))
    make_source(tmp_path, make_pipe_pool(write_tars(tmp_path / "pool"), tmp_path / "log", monkeypatch))
    assert [sorted(file.name for file in folder.glob(".partial-*")) for folder in folders] == [[".partial-new"]] * 3


def test_missing_or_invalid_shards_are_an_error_of_one_line(tmp_path):
    write_tars(tmp_path / "pool", 2)
    for name, message in (
        ("pool/{000..003}.tar", r"no such file: .*002.tar, .*003.tar"),
        ("pool/9*.tar", "no such file"),
        ("pool/9.tar", "no such file"),
        ("data/train/cat/*.png", r"shards are .tar or .parquet files, not .*0.png"),
    ):
        with pytest.raises(UserError, match=message) as error:
            make_source(tmp_path, tmp_path / name)
        assert "\n" not in str(error.value)
    (tmp_path / "no.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match=r"no.tar: cannot be read as a tar"):
        make_source(tmp_path, tmp_path / "no.tar")
    write_tar(tmp_path / "empty.tar", {"a.txt": b"text"})
    with pytest.raises(UserError, match="no image in its 1 shards"):
        make_source(tmp_path, tmp_path / "empty.tar")
    table = pa.table({"a": pa.array([b""], pa.binary()), "b": pa.array([b""], pa.binary())})
    pq.write_table(table, tmp_path / "two.parquet")
    with pytest.raises(UserError, match="several columns hold bytes"):
        make_source(tmp_path, tmp_path / "two.parquet")


def test_unreadable_images_are_named_by_shard_and_position(tmp_path, capsys):
    files = {"a.png": encode_image(1), "b.png": encode_image(2)[:40], "c.jpg": b"", "d.png": encode_image(4)}
    write_tar(tmp_path / "tars" / "x.tar", files)
    write_parquet(tmp_path / "rows" / "y.parquet", [*files.values(), None], as_struct=True, rows=2)
    for folder, bad in (("tars", ["x.tar#1", "x.tar#2"]), ("rows", ["y.parquet#1", "y.parquet#2", "y.parquet#4"])):
        with pytest.raises(UserError, match=f"{len(bad)} images of .* cannot be read") as error:
            make_source(tmp_path, tmp_path / folder)
        assert "\n" not in str(error.value)
        messages = capsys.readouterr().err
        assert all(f"{name}: " in messages for name in bad)
        source = make_source(tmp_path, tmp_path / folder, on_bad_image="skip")
        assert read_red_values(source) == [1, 4]
        assert list(source.left_out) == bad
        assert source.names[int(source.unlabelled[-1])].endswith("#3")


def test_a_shard_is_indexed_once(tmp_path, monkeypatch, cache):
    checks = Counter()
    check_image = shard_index.check_image
    monkeypatch.setattr(shard_index, "check_image", lambda *args: checks.update(n=1) or check_image(*args))
    write_tars(tmp_path / "pool", 2)
    make_source(tmp_path, tmp_path / "pool")
    assert checks["n"] == 2 * EACH
    make_source(tmp_path, tmp_path / "pool")
    assert checks["n"] == 2 * EACH
    write_tars(tmp_path / "other", 3)
    (tmp_path / "other" / "002.tar").rename(tmp_path / "pool" / "002.tar")
    assert len(make_source(tmp_path, tmp_path / "pool").unlabelled) == 3 * EACH
    assert checks["n"] == 3 * EACH
    write_tar(tmp_path / "pool" / "000.tar", {"a.png": encode_image(7)})
    assert len(make_source(tmp_path, tmp_path / "pool").unlabelled) == 2 * EACH + 1
    assert checks["n"] == 3 * EACH + 1
    expected = fingerprint(make_config(tmp_path, tmp_path / "pool"))
    whole, short, missing = sorted((cache / "shard-indices").glob("*.contents"), key=lambda file: file.stat().st_size)[
        :3
    ]
    os.truncate(short, short.stat().st_size - 8)
    missing.unlink()
    whole.write_bytes(b"")
    assert fingerprint(make_config(tmp_path, tmp_path / "pool")) == expected


def test_an_interrupted_index_goes_on_with_the_other_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_index, "MAX_THREADS", 1)
    check = shard_index.check_image
    monkeypatch.setattr(shard_index, "check_image", lambda *args: time.sleep(0.01) or check(*args))  # time to stop
    config = make_config(tmp_path, write_tars(tmp_path / "pool"))
    shards = find_shards(config.unlabelled)

    class StoppedError(Exception):
        pass

    def stop(part: str, fraction: float) -> None:
        if fraction > 0.3:
            raise StoppedError

    with pytest.raises(StoppedError):
        shard_index.index_shards(shards, config, "here", stop)
    progress = []
    shard_index.index_shards(shards, config, "here", lambda part, fraction: progress.append((part, fraction)))
    assert 1 <= len(progress) <= SHARDS - 2
    assert progress[-1][1] == 1.0


def test_processes_that_index_one_pool_share_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_index, "MAX_THREADS", 1)
    config = make_config(tmp_path, write_tars(tmp_path / "pool"))
    shards, checks, original = find_shards(config.unlabelled), Counter(), shard_index.check_image
    started: list[int] = []

    def check_image(*args) -> Check:
        checks.update(images=1)
        if not started:  # a second process starts and ends while the first is in its first shard
            started.append(1)
            shard_index.index_shards(shards, config, "here")
        return original(*args)

    monkeypatch.setattr(shard_index, "check_image", check_image)
    assert shard_index.index_shards(shards, config, "here").counts.tolist() == [EACH] * SHARDS
    assert checks["images"] == EACH * (SHARDS + 1)  # both checked the first shard


def test_the_fingerprint_depends_on_the_pools_content_and_not_on_its_location(tmp_path):
    def fingerprint_at(pool, **changes):
        return fingerprint(make_config(tmp_path, pool, **changes))

    first = fingerprint_at(write_tars(tmp_path / "pool"))
    (tmp_path / "pool").rename(tmp_path / "moved")
    assert fingerprint_at(tmp_path / "moved") == first
    assert fingerprint_at(tmp_path / "moved" / "00[0-3].tar") != first
    (tmp_path / "moved" / "000.tar").rename(tmp_path / "moved" / "009.tar")
    assert fingerprint_at(tmp_path / "moved") != first


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_shards_with_other_images_of_equal_size_and_time_make_another_run(tmp_path, kind, cache):
    def write(*colours: int) -> list[int]:
        files = {f"{n}.bmp": encode_image(colour, kind="BMP") for n, colour in enumerate(colours)}
        write_tar(tmp_path / "0.tar", files)
        write_parquet(tmp_path / "0.parquet", [*files.values()], as_struct=True)
        sizes = []
        for name in ("0.tar", "0.parquet"):
            os.utime(tmp_path / name, ns=(1, 1))
            sizes.append((tmp_path / name).stat().st_size)
        return sizes

    sizes, config = write(1, 2), make_config(tmp_path, tmp_path / f"0.{kind}")
    first, opened, unopened = fingerprint(config), *(make_source(tmp_path, tmp_path / f"0.{kind}") for _ in range(2))
    assert read_red_values(opened) == [1, 2]
    assert write(1, 3) == sizes
    if kind == "parquet":
        assert read_red_values(opened) == [1, 2]  # of the copy in the cache
        shutil.rmtree(cache / "shards")
    for source in (unopened,) if kind == "parquet" else (unopened, opened):
        with pytest.raises(UserError, match=rf"0.{kind}: has changed since the run began; start it again"):
            read_red_values(source)
    assert fingerprint(config) != first
    write(1, 2)
    assert fingerprint(config) == first


def make_stream(indices, blocks, batch_size=4, **options) -> Stream:
    indices = np.asarray(indices)
    return Stream("pool", indices, np.full(len(indices), UNKNOWN, dtype=np.int8), batch_size, blocks=blocks, **options)


@settings(max_examples=150)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(0, 7),
    st.integers(1, 13),
    st.integers(0, 99),
    st.booleans(),
)
def test_a_pass_shows_each_entry_once_and_goes_shard_by_shard(sizes, outside, batch_size, seed, sorted_):
    """``outside`` images lie in no shard; indices repeat; a step's entries follow from the step alone."""
    rng = np.random.default_rng(seed)
    blocks = outside + np.cumsum([0, *sizes[:-1]])
    indices = rng.integers(outside, outside + sum(sizes), size=2 * sum(sizes)).astype(np.int32)  # with duplicates
    indices = np.sort(indices) if sorted_ else indices
    if outside:
        indices = np.concatenate([np.arange(outside, dtype=np.int32), indices])
    stream, key = make_stream(indices, blocks, batch_size), Key(seed, "student")
    sampler, count = StreamSampler(stream, key), len(indices)
    steps = -(-2 * count // batch_size)
    draws = [sampler.at(step) for step in range(steps)]
    entries = np.concatenate([draw.entries for draw in draws])[: 2 * count].reshape(2, count)
    assert entries.dtype == np.int64
    for pass_entries in entries:
        assert sorted(pass_entries.tolist()) == list(range(count))
        shards = [
            int(np.searchsorted(blocks, index, side="right")) for index in indices[pass_entries] if index >= outside
        ]
        runs = [shards[0], *(b for a, b in pairwise(shards) if a != b)]
        assert len(runs) == len(set(runs))
    step = int(rng.integers(steps))
    again = StreamSampler(pickle.loads(pickle.dumps(stream)), key).at(step)
    assert (again.entries == draws[step].entries).all()
    assert (again.passes == draws[step].passes).all()


def test_passes_differ_in_the_order_of_shards_and_of_images_within_them():
    blocks = np.arange(0, 400, 40)
    sampler = StreamSampler(make_stream(np.arange(400), blocks, 400), Key(0, "student"))
    first, second = sampler.at(0).entries, sampler.at(1).entries
    assert (first // 40)[::40].tolist() != (second // 40)[::40].tolist()
    shard = int(first[0]) // 40
    assert first[first // 40 == shard].tolist() != second[second // 40 == shard].tolist()
    assert (
        StreamSampler(make_stream(np.arange(400), blocks, 400), Key(1, "student")).at(0).entries.tolist()
        != first.tolist()
    )


def test_images_outside_the_shards_are_spread_evenly_over_a_pass():
    """Of 4,000 images in no shard, no tenth of a pass has less than half or more than one and a half of the mean."""
    indices = np.arange(8_000)
    sampler = StreamSampler(make_stream(indices, 4_000 + np.arange(0, 4_000, 200), 8_000), Key(0, "student"))
    outside = sampler.at(0).entries.reshape(10, 800) < 4_000
    assert 200 < outside.sum(axis=1).min() <= outside.sum(axis=1).max() < 600


@pytest.mark.parametrize("count", [37, 200])
def test_the_order_of_a_pool_without_shards_has_not_changed(monkeypatch, count):
    """The hashes were computed by the version before shards were added."""
    monkeypatch.setattr("tutelage.data.loading.streams.CHUNK", 64)
    sampler = StreamSampler(
        Stream("pool", np.arange(count), np.zeros(count, dtype=np.int64), 16), Key(3, "student", "pool")
    )
    entries = np.concatenate([sampler.at(step).entries for step in range(30)]).astype("<i8")
    assert (
        hashlib.sha256(entries.tobytes()).hexdigest()[:16] == {37: "82e4d67e2b5e312e", 200: "38c0a794febbea5f"}[count]
    )


class LazyTargets:
    """Targets (N, 2) that are computed when they are read."""

    ndim = 2

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        return np.stack([positions / self._count, 1 - positions / self._count], axis=1).astype(np.float32)


def test_targets_may_be_computed_when_they_are_read():
    stream = Stream("pool", np.arange(20), LazyTargets(20), 4)
    again = pickle.loads(pickle.dumps(stream))
    assert again.targets_of(np.array([5, 10])).tolist() == [[0.25, 0.75], [0.5, 0.5]]
    assert isinstance(again.targets, LazyTargets)
    assert (again.indices == stream.indices).all()


def make_batches(source, steps: int) -> TrainDataset:
    """Return the pool's training batches of 4 images, without augmentation."""
    stream = make_stream(source.unlabelled, source.blocks)
    return TrainDataset(source.images, StageData([stream], [], partial(Key, 0, "student"), steps), (16, 16, 3))


def test_a_resumed_run_reads_only_the_shards_and_images_of_its_next_step(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_cache, "MAX_CACHED", 2)
    log = tmp_path / "log"
    pool = make_pipe_pool(write_tars(tmp_path / "pool"), log, monkeypatch)
    source = make_source(tmp_path, pool)
    steps = 2 * SHARDS * EACH // 4
    whole = [batch["pool"].images for batch in map(make_batches(source, steps).__getitem__, range(steps))]
    decoded, open_picture = [], shard_images.open_picture
    monkeypatch.setattr(shard_images, "open_picture", lambda *args: decoded.append(args[1]) or open_picture(*args))
    for step in range(steps):
        for file in (tmp_path / "cache" / "tutelage" / "shards").iterdir():
            file.unlink()
        log.write_text("")
        decoded.clear()
        source = make_source(tmp_path, pool)  # as a new process would
        assert not decoded
        assert not log.read_text()
        assert (make_batches(source, steps)[step]["pool"].images == whole[step]).all()
        assert len(decoded) == 4
        under_way = {name.partition("#")[0] for name in decoded}
        assert [f"give {name.partition('.')[0]}" for name in sorted(log.read_text().split())] == sorted(under_way)
        assert len(under_way) <= 2


def test_ten_million_images_cost_a_few_bytes_each(tmp_path, monkeypatch):
    """Ten times what the source, the splits and a stream hold for a million images is at most 200 MB."""
    count, each = 1_000_000, 10_000
    (tmp_path / "index.bin").write_bytes(b"")
    (tmp_path / "index.contents").write_bytes(bytes(shard_index.HEAD.itemsize) + np.arange(1, each + 1).tobytes())
    shard = pools.Shard("000.tar", str(tmp_path / "000.tar"))
    number = count // each
    heads, indices = np.zeros(number, shard_index.HEAD), (str(tmp_path / "index.bin"),) * number
    pool = shard_index.Pool((shard,) * number, np.full(number, each), indices, heads, ())
    monkeypatch.setattr("tutelage.data.datasets.image_files._index_pool", lambda config, on_progress: pool)
    monkeypatch.setattr("tutelage.data.datasets.image_files.find_shards", lambda location: ())
    source = make_source(tmp_path, "anything")
    assert len(source.unlabelled) == count
    parts = split(source, make_config(tmp_path, "x", labels_per_class=2))
    entries = np.arange(len(parts.pool), dtype=np.int32)
    stream = make_stream(parts.pool[entries], parts.blocks)
    held = [source.labels, source.unlabelled, parts.pool, entries, stream.indices, stream.copies, stream.targets]
    held += [stream.ordered]
    assert 10 * sum(array.nbytes for array in held) < 201e6
    assert len(pickle.dumps(source.names)) < 100_000
    assert StreamSampler(stream, Key(0, "student")).at(5).entries.shape == (4,)
