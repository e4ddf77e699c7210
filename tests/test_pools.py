"""Pools of shards: tars and Parquet files, here and through a command; what is read, how often, in which order."""

import hashlib
import io
import multiprocessing
import os
import pickle
import tarfile
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


def png(colour: int, side: int = 16) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (colour, 0, 255 - colour)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def colour_of(shard: int, number: int) -> int:
    return shard * 40 + number


def tars(folder: Path, count: int = SHARDS, each: int = EACH) -> Path:
    """Write shards whose images' colours say which they are; beside each image there are its text and its mask."""
    for shard in range(count):
        files: dict[str, bytes] = {}
        for number in range(each):
            files[f"{number:03}.png"] = png(colour_of(shard, number))
            files[f"{number:03}.txt"] = b"a caption"
            files[f"{number:03}.mask.png"] = png(255)
        write_tar(folder / f"{shard:03}.tar", files)
    return folder


def parquet(path: Path, images: list[bytes | None], as_struct: bool, rows: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [{"bytes": image, "path": None} for image in images] if as_struct else images
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if as_struct else pa.binary()
    table = pa.table({"image": pa.array(values, kind), "caption": ["a caption"] * len(images)})
    pq.write_table(table, path, row_group_size=rows)
    return path


def config_of(top: Path, unlabelled, **changes):
    """Return the config of a folder of ``LABELLED`` labelled images and a pool."""
    if not (top / "data").exists():
        for label in ("cat", "dog"):
            write_images(top / "data" / "train" / label, LABELLED // 2)
            write_images(top / "data" / "test" / label, 1)
    target = "tutelage.data.ImageFolder"
    return rgb_config(_target_=target, root=str(top / "data"), unlabelled=str(unlabelled), **changes)


def source_with(top: Path, unlabelled, **changes):
    config = config_of(top, unlabelled, **changes)
    return image_files(LISTINGS["ImageFolder"](config), config)


def colours(source, indices=None) -> list[int]:
    return [int(source.images[int(i)][0, 0, 0]) for i in (source.unlabelled if indices is None else indices)]


ALL_COLOURS = [colour_of(shard, number) for shard in range(SHARDS) for number in range(EACH)]


def piped(folder: Path, log: Path, monkeypatch) -> str:
    """Return a pool that comes through commands, one for each shard; ``log`` has a line for each that ran."""
    monkeypatch.setenv("TUTELAGE_ALLOW", "pipe")
    command = folder.parent / "give"
    command.write_text(f"echo $1.tar >> {log}; cat {folder}/$1.tar\n")
    return f"pipe:sh {command} {{000..{SHARDS - 1:03}}}"


def test_the_images_of_tars_are_the_pool_in_their_order(tmp_path):
    source = source_with(tmp_path, tars(tmp_path / "pool"))
    assert colours(source) == ALL_COLOURS
    files = len(source.labels) - SHARDS * EACH
    assert source.unlabelled.tolist() == list(range(files, len(source.labels)))
    assert source.blocks.tolist() == [files + EACH * shard for shard in range(SHARDS)]
    assert (source.labels[source.unlabelled] == UNKNOWN).all()
    assert (source.labels[source.train] >= 0).all()
    assert source.names[files + EACH + 2] == "001.tar#2"
    assert len(source.names) == len(source.images) == len(source.labels)
    parts = split(source, config_of(tmp_path, "x"))
    assert parts.pool.tolist() == source.unlabelled.tolist()
    assert parts.blocks is source.blocks


@pytest.mark.parametrize("given", ["", "/*.tar", "/{000..004}.tar", "/{000,001,002,003,004}.tar"])
def test_shards_are_named_by_a_folder_a_pattern_or_braces(tmp_path, given):
    source = source_with(tmp_path, f"{tars(tmp_path / 'pool')}{given}")
    assert colours(source) == ALL_COLOURS


def test_shards_stand_beside_the_unlabelled_images_of_a_folder(tmp_path):
    config_of(tmp_path, "x")
    write_images(tmp_path / "data" / "unlabelled", 3)
    source = source_with(tmp_path, tars(tmp_path / "pool", 1) / "000.tar")
    assert len(source.unlabelled) == 3 + EACH
    assert colours(source)[3:] == ALL_COLOURS[:EACH]
    assert [source.names[i] for i in source.unlabelled.tolist()][2:4] == ["unlabelled/2.png", "000.tar#0"]


@pytest.mark.parametrize("as_struct", [False, True])
@pytest.mark.parametrize("part", [1, 1 << 20])  # bytes: each row group is a shard, or the file is one
def test_parquet_gives_the_same_images_as_tars(tmp_path, monkeypatch, as_struct, part):
    monkeypatch.setattr(pools, "PART_BYTES", part)
    images = [png(colour) for colour in ALL_COLOURS]
    parquet(tmp_path / "pool" / "a.parquet", images[:20], as_struct)
    parquet(tmp_path / "pool" / "b.parquet", images[20:], as_struct)
    source = source_with(tmp_path, tmp_path / "pool")
    assert colours(source) == ALL_COLOURS
    assert colours(source, source.unlabelled[::-1]) == ALL_COLOURS[::-1]
    assert len(source.blocks) == (8 if part == 1 else 2)
    assert source.names[int(source.unlabelled[21])] == "b.parquet#1"


def test_a_pack_of_the_files_goes_with_a_pool_of_shards(tmp_path):
    source = source_with(tmp_path, tars(tmp_path / "pool"), pack=True)
    assert colours(source) == ALL_COLOURS
    everything = Stream("all", np.arange(len(source.labels)), source.labels, len(source.labels), blocks=source.blocks)
    crop = {"_target_": "albumentations.RandomCrop", "height": 8, "width": 8}
    batches = TrainDataset(source.images, StageData([everything], [crop], partial(Key, 0, "all"), 1), (8, 8, 3))
    shown = batches[0]["all"]
    assert shown.images.shape == (len(source.labels), 3, 8, 8)
    assert set(ALL_COLOURS) <= set(shown.images[:, 0, 0, 0].tolist())
    assert shown.targets.dtype == torch.int64


def test_where_a_pool_lies_is_found_again_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert absolute_pool("pool/{000..002}.tar") == f"{tmp_path}/pool/{{000..002}}.tar"
    for elsewhere in ("https://host/{000..002}.tar", "pipe:cat 000.tar", "/pool/*.tar"):
        assert absolute_pool(elsewhere) == elsewhere


def test_a_parquet_list_of_paths_is_no_shard(tmp_path):
    config = config_of(tmp_path, "x")
    write_images(tmp_path / "more", 3)
    pq.write_table(pa.table({"path": ["more/0.png", "more/2.png"]}), tmp_path / "list.parquet")
    assert find_shards(str(tmp_path / "list.parquet")) is None
    assert len(source_with(tmp_path, tmp_path / "list.parquet").unlabelled) == 2
    assert find_shards(str(tmp_path / "more")) is None
    assert config.on_bad_image == "stop"


def test_commands_run_only_where_they_are_allowed(tmp_path, monkeypatch):
    log = tmp_path / "log"
    pool = piped(tars(tmp_path / "pool"), log, monkeypatch)
    monkeypatch.delenv("TUTELAGE_ALLOW")
    with pytest.raises(UserError, match="a command is run only where you allow it.*--allow pipe"):
        source_with(tmp_path, pool)
    assert not log.exists()
    monkeypatch.setenv("TUTELAGE_ALLOW", "pipe")
    assert colours(source_with(tmp_path, pool)) == ALL_COLOURS


def test_a_streamed_pool_needs_room_for_a_few_shards_only(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(shard_cache, "MAX_CACHED", 2)
    log = tmp_path / "log"
    source = source_with(tmp_path, piped(tars(tmp_path / "pool"), log, monkeypatch))
    assert colours(source) == ALL_COLOURS
    assert len([file for file in (cache / "shards").iterdir() if file.suffix != ".lock"]) == 2


def test_evaluation_reads_each_shard_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_cache, "MAX_CACHED", 1)
    monkeypatch.setattr(shard_index, "MAX_THREADS", 1)
    log = tmp_path / "log"
    source = source_with(tmp_path, piped(tars(tmp_path / "pool"), log, monkeypatch))
    for file in (tmp_path / "cache" / "tutelage" / "shards").iterdir():
        file.unlink()
    log.unlink()
    monkeypatch.setattr("tutelage.data.loading.batches.EVALUATION_BATCH", 4)
    batches = EvalDataset(source.images, source.labels, source.unlabelled)
    found = [int(value) for number in range(len(batches)) for value in batches[number].images[:, 0, 0, 0]]
    assert found == ALL_COLOURS
    assert log.read_text().split() == [f"{shard:03}.tar" for shard in range(SHARDS)]


def _reads(images, number):
    return int(images[number][0, 0, 0])


def test_processes_share_what_is_fetched(tmp_path, monkeypatch):
    log = tmp_path / "log"
    source = source_with(tmp_path, piped(tars(tmp_path / "pool"), log, monkeypatch))
    for file in (tmp_path / "cache" / "tutelage" / "shards").iterdir():
        file.unlink()
    log.unlink()
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.map(partial(_reads, source.images), source.unlabelled.tolist(), chunksize=1)
    assert found == ALL_COLOURS
    assert sorted(log.read_text().split()) == [f"{shard:03}.tar" for shard in range(SHARDS)]


def test_a_fetch_that_fails_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("TUTELAGE_ALLOW", "pipe")
    whole = tars(tmp_path / "pool", 1) / "000.tar"
    with pytest.raises(UserError, match=r"pipe:head.*cannot be fetched.*start again") as error:
        source_with(tmp_path, f"pipe:head -c 2000 {whole}; exit 3")
    assert "\n" not in str(error.value)
    assert not [file for file in (cache / "shards").iterdir() if file.suffix != ".lock"]
    with pytest.raises(UserError, match=r"pipe:head.*cannot be read as a tar.*fetch it again"):
        source_with(tmp_path, f"pipe:head -c 2000 {whole}")


def test_what_a_killed_fetch_left_is_removed_in_time_and_one_under_way_is_not(tmp_path, monkeypatch, cache):
    (cache / "shards").mkdir(parents=True)
    old, new = (cache / "shards" / f".partial-{name}" for name in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"half a shard")
    os.utime(old, (0, 0))
    source_with(tmp_path, piped(tars(tmp_path / "pool"), tmp_path / "log", monkeypatch))
    assert not old.exists()
    assert new.exists()


def test_shards_that_cannot_be_had_are_one_line(tmp_path):
    tars(tmp_path / "pool", 2)
    for name, told in (
        ("pool/{000..003}.tar", r"no such file: .*002.tar, .*003.tar"),
        ("pool/9*.tar", "no such file"),
        ("pool/9.tar", "no such file"),
        ("data/train/cat/*.png", r"shards are .tar or .parquet files, not .*0.png"),
    ):
        with pytest.raises(UserError, match=told) as error:
            source_with(tmp_path, tmp_path / name)
        assert "\n" not in str(error.value)
    (tmp_path / "no.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match=r"no.tar: cannot be read as a tar"):
        source_with(tmp_path, tmp_path / "no.tar")
    write_tar(tmp_path / "empty.tar", {"a.txt": b"text"})
    with pytest.raises(UserError, match="no image in its 1 shards"):
        source_with(tmp_path, tmp_path / "empty.tar")
    table = pa.table({"a": pa.array([b""], pa.binary()), "b": pa.array([b""], pa.binary())})
    pq.write_table(table, tmp_path / "two.parquet")
    with pytest.raises(UserError, match="several columns hold bytes"):
        source_with(tmp_path, tmp_path / "two.parquet")


def test_images_that_cannot_be_read_are_named_by_shard_and_place(tmp_path, capsys):
    files = {"a.png": png(1), "b.png": png(2)[:40], "c.jpg": b"", "d.png": png(4)}
    write_tar(tmp_path / "tars" / "x.tar", files)
    parquet(tmp_path / "rows" / "y.parquet", [*files.values(), None], as_struct=True, rows=2)
    for folder, bad in (("tars", ["x.tar#1", "x.tar#2"]), ("rows", ["y.parquet#1", "y.parquet#2", "y.parquet#4"])):
        with pytest.raises(UserError, match=f"{len(bad)} images of .* cannot be read") as error:
            source_with(tmp_path, tmp_path / folder)
        assert "\n" not in str(error.value)
        told = capsys.readouterr().err
        assert all(f"{name}: " in told for name in bad)
        source = source_with(tmp_path, tmp_path / folder, on_bad_image="skip")
        assert colours(source) == [1, 4]
        assert list(source.left_out) == bad
        assert source.names[int(source.unlabelled[-1])].endswith("#3")


def test_a_shard_is_read_and_tried_once_and_never_again(tmp_path, monkeypatch):
    tried = Counter()
    real = shard_index.check_image
    monkeypatch.setattr(shard_index, "check_image", lambda *args: tried.update(n=1) or real(*args))
    tars(tmp_path / "pool", 2)
    source_with(tmp_path, tmp_path / "pool")
    assert tried["n"] == 2 * EACH
    source_with(tmp_path, tmp_path / "pool")
    assert tried["n"] == 2 * EACH
    tars(tmp_path / "other", 3)
    (tmp_path / "other" / "002.tar").rename(tmp_path / "pool" / "002.tar")
    assert len(source_with(tmp_path, tmp_path / "pool").unlabelled) == 3 * EACH
    assert tried["n"] == 3 * EACH
    write_tar(tmp_path / "pool" / "000.tar", {"a.png": png(7)})
    assert len(source_with(tmp_path, tmp_path / "pool").unlabelled) == 2 * EACH + 1
    assert tried["n"] == 3 * EACH + 1


def test_an_index_that_was_stopped_goes_on_with_the_other_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_index, "MAX_THREADS", 1)
    config = config_of(tmp_path, tars(tmp_path / "pool"))
    found = find_shards(config.unlabelled)

    class StoppedError(Exception):
        pass

    def stop(what: str, share: float) -> None:
        if share > 0.3:
            raise StoppedError

    with pytest.raises(StoppedError):
        shard_index.index_shards(found, config, "here", stop)
    shares = []
    shard_index.index_shards(found, config, "here", lambda what, share: shares.append((what, share)))
    assert 1 <= len(shares) <= SHARDS - 2
    assert shares[-1][1] == 1.0


def test_processes_that_index_one_pool_share_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_index, "MAX_THREADS", 1)
    config = config_of(tmp_path, tars(tmp_path / "pool"))
    found, tried, real = find_shards(config.unlabelled), Counter(), shard_index.check_image
    other: list[int] = []

    def check_image(*args) -> str:
        tried.update(images=1)
        if not other:  # a second process begins while the first is in its first shard, and ends before it
            other.append(1)
            shard_index.index_shards(found, config, "here")
        return real(*args)

    monkeypatch.setattr(shard_index, "check_image", check_image)
    assert shard_index.index_shards(found, config, "here").counts.tolist() == [EACH] * SHARDS
    assert tried["images"] == EACH * (SHARDS + 1)  # the shard under way was tried by both


def test_the_fingerprint_says_what_the_pool_is_and_not_where(tmp_path):
    def of(place, **changes):
        return fingerprint(config_of(tmp_path, place, **changes))

    one = of(tars(tmp_path / "pool"))
    (tmp_path / "pool").rename(tmp_path / "moved")
    assert of(tmp_path / "moved") == one
    assert of(tmp_path / "moved" / "00[0-3].tar") != one
    (tmp_path / "moved" / "000.tar").rename(tmp_path / "moved" / "009.tar")
    assert of(tmp_path / "moved") != one


def stream_of(indices, blocks, batch_size=4, **more) -> Stream:
    indices = np.asarray(indices)
    return Stream("pool", indices, np.full(len(indices), UNKNOWN, dtype=np.int8), batch_size, blocks=blocks, **more)


@settings(max_examples=150)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(0, 7),
    st.integers(1, 13),
    st.integers(0, 99),
    st.booleans(),
)
def test_a_pass_shows_each_entry_once_and_goes_shard_by_shard(sizes, before, batch_size, seed, sorted_):
    """``before`` images lie in no shard; entries repeat; what a step shows follows from the step alone."""
    rng = np.random.default_rng(seed)
    blocks = before + np.cumsum([0, *sizes[:-1]])
    indices = rng.integers(before, before + sum(sizes), size=2 * sum(sizes)).astype(np.int32)  # with duplicates
    indices = np.sort(indices) if sorted_ else indices
    if before:
        indices = np.concatenate([np.arange(before, dtype=np.int32), indices])
    stream, key = stream_of(indices, blocks, batch_size), Key(seed, "student")
    draws, count = StreamSampler(stream, key), len(indices)
    steps = -(-2 * count // batch_size)
    shown = [draws.at(step) for step in range(steps)]
    entries = np.concatenate([one.entries for one in shown])[: 2 * count].reshape(2, count)
    assert entries.dtype == np.int64
    for one_pass in entries:
        assert sorted(one_pass.tolist()) == list(range(count))
        seen = [int(np.searchsorted(blocks, index, side="right")) for index in indices[one_pass] if index >= before]
        runs = [seen[0], *(b for a, b in pairwise(seen) if a != b)]
        assert len(runs) == len(set(runs))
    step = int(rng.integers(steps))
    again = StreamSampler(pickle.loads(pickle.dumps(stream)), key).at(step)
    assert (again.entries == shown[step].entries).all()
    assert (again.passes == shown[step].passes).all()


def test_passes_differ_in_the_order_of_shards_and_of_images_within_them():
    blocks = np.arange(0, 400, 40)
    draws = StreamSampler(stream_of(np.arange(400), blocks, 400), Key(0, "student"))
    first, second = draws.at(0).entries, draws.at(1).entries
    assert (first // 40)[::40].tolist() != (second // 40)[::40].tolist()
    same = int(first[0]) // 40
    assert first[first // 40 == same].tolist() != second[second // 40 == same].tolist()
    assert (
        StreamSampler(stream_of(np.arange(400), blocks, 400), Key(1, "student")).at(0).entries.tolist()
        != first.tolist()
    )


def test_images_outside_the_shards_are_dealt_out_among_them():
    """Of 4,000 images in no shard no stretch of a tenth of a pass has more than twice its share."""
    indices = np.arange(8_000)
    draws = StreamSampler(stream_of(indices, 4_000 + np.arange(0, 4_000, 200), 8_000), Key(0, "student"))
    outside = draws.at(0).entries.reshape(10, 800) < 4_000
    assert 200 < outside.sum(axis=1).min() <= outside.sum(axis=1).max() < 600


@pytest.mark.parametrize("count", [37, 200])
def test_without_shards_the_order_is_what_it_always_was(monkeypatch, count):
    """Orders of runs before there were shards; the numbers were taken from that version."""
    monkeypatch.setattr("tutelage.data.loading.streams.CHUNK", 64)
    draws = StreamSampler(
        Stream("pool", np.arange(count), np.zeros(count, dtype=np.int64), 16), Key(3, "student", "pool")
    )
    shown = np.concatenate([draws.at(step).entries for step in range(30)]).astype("<i8")
    assert hashlib.sha256(shown.tobytes()).hexdigest()[:16] == {37: "82e4d67e2b5e312e", 200: "38c0a794febbea5f"}[count]


class LazyTargets:
    """Probabilities that are made when they are asked for."""

    ndim = 2

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        return np.stack([places / self._count, 1 - places / self._count], axis=1).astype(np.float32)


def test_targets_may_be_made_when_they_are_asked_for():
    stream = Stream("pool", np.arange(20), LazyTargets(20), 4)
    again = pickle.loads(pickle.dumps(stream))
    assert again.targets_of(np.array([5, 10])).tolist() == [[0.25, 0.75], [0.5, 0.5]]
    assert isinstance(again.targets, LazyTargets)
    assert (again.indices == stream.indices).all()


def batches_of(source, steps: int) -> TrainDataset:
    """Return the pool's batches of 4, through all that training goes through, without augmentation."""
    stream = stream_of(source.unlabelled, source.blocks)
    return TrainDataset(source.images, StageData([stream], [], partial(Key, 0, "student"), steps), (16, 16, 3))


def test_a_resumed_run_reads_the_shards_under_way_and_decodes_nothing_of_what_came_before(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_cache, "MAX_CACHED", 2)
    log = tmp_path / "log"
    pool = piped(tars(tmp_path / "pool"), log, monkeypatch)
    source = source_with(tmp_path, pool)
    steps = 2 * SHARDS * EACH // 4
    whole = [batch["pool"].images for batch in map(batches_of(source, steps).__getitem__, range(steps))]
    decoded, real = [], shard_images.open_picture
    monkeypatch.setattr(shard_images, "open_picture", lambda *args: decoded.append(args[1]) or real(*args))
    for step in range(steps):
        for file in (tmp_path / "cache" / "tutelage" / "shards").iterdir():
            file.unlink()
        log.write_text("")
        decoded.clear()
        source = source_with(tmp_path, pool)  # as a new process would
        assert not decoded
        assert not log.read_text()
        assert (batches_of(source, steps)[step]["pool"].images == whole[step]).all()
        assert len(decoded) == 4
        under_way = {name.partition("#")[0] for name in decoded}
        assert [f"give {name.partition('.')[0]}" for name in sorted(log.read_text().split())] == sorted(under_way)
        assert len(under_way) <= 2


def test_ten_million_images_cost_a_few_bytes_each(tmp_path, monkeypatch):
    """What the source, the splits and a student's stream hold of a pool of a million is, tenfold, at most 200 MB."""
    count, each = 1_000_000, 10_000
    (tmp_path / "index.bin").write_bytes(b"")
    shard = pools.Shard("000.tar", str(tmp_path / "000.tar"), 1, 1)
    number = count // each
    pool = shard_index.Pool((shard,) * number, np.full(number, each), (str(tmp_path / "index.bin"),) * number, ())
    monkeypatch.setattr("tutelage.data.datasets.image_files._index_pool", lambda config, tell: pool)
    monkeypatch.setattr("tutelage.data.datasets.image_files.find_shards", lambda given: ())
    source = source_with(tmp_path, "anything")
    assert len(source.unlabelled) == count
    parts = split(source, config_of(tmp_path, "x", labels_per_class=2))
    entries = np.arange(len(parts.pool), dtype=np.int32)
    stream = stream_of(parts.pool[entries], parts.blocks)
    held = [source.labels, source.unlabelled, parts.pool, entries, stream.indices, stream.copies, stream.targets]
    held += [stream.ordered]
    assert 10 * sum(array.nbytes for array in held) < 201e6
    assert len(pickle.dumps(source.names)) < 100_000
    assert StreamSampler(stream, Key(0, "student")).at(5).entries.shape == (4,)
