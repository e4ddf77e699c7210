"""The label store: what it keeps, who may write, and what a reader holds in memory."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.forks import call_in_fork
from helpers.sources import make_source
from tutelage.data import ROUND, TABLE, Labels, LabelStore, Rules, read_labels, select, write_summary, write_table
from tutelage.data.loading.batches import EVALUATION_BATCH
from tutelage.data.pseudo_labels.labels import SHARD, shard_files, shard_size
from tutelage.errors import UserError

COUNT, CLASSES = 1_200, 10
METADATA = {"weights": "of a teacher", "data": "a pool"}


def drawn(count: int = COUNT, classes: int = CLASSES, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), count).astype(np.float32)


def filled(folder: Path, probabilities: np.ndarray, metadata: dict = METADATA) -> LabelStore:
    store = LabelStore(folder, *probabilities.shape, metadata)
    for shard in store.missing:
        with store.claim(shard) as mine:
            assert mine
            store.write(shard, probabilities[slice(*store.bounds(shard))])
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "labels").glob("*.npy"))}


def everything(labels: Labels) -> np.ndarray:
    return np.concatenate([part for _, part in labels.chunks()])


def test_labels_come_back_as_they_were_given(tmp_path):
    probabilities = drawn()
    filled(tmp_path, probabilities)
    labels = read_labels(tmp_path)
    assert everything(labels) == pytest.approx(probabilities, abs=5e-4)
    assert everything(labels).sum(axis=1) == pytest.approx(np.ones(COUNT), abs=1e-6)
    assert (labels.predictions == probabilities.argmax(axis=1)).all()
    assert labels.confidence == pytest.approx(probabilities.max(axis=1), abs=5e-4)
    some = np.array([1_199, 0, 511, 512, 0])
    assert (labels[some] == everything(labels)[some]).all()


def test_above_128_classes_the_largest_stay_and_the_others_share_the_rest(tmp_path):
    probabilities = drawn(600, 300)
    filled(tmp_path, probabilities)
    stored = np.load(shard_files(tmp_path, 600)[0], allow_pickle=False)
    assert stored.itemsize == 33 * 2 + 32 * 2
    found = everything(read_labels(tmp_path))
    top = np.argsort(-probabilities, axis=1)[:, :32]
    expected = np.take_along_axis(probabilities, top, axis=1)
    assert np.take_along_axis(found, top, axis=1) == pytest.approx(expected, abs=1e-3)
    rest = found.copy()
    np.put_along_axis(rest, top, np.nan, axis=1)
    assert np.nansum(rest, axis=1) == pytest.approx(1 - expected.sum(axis=1), abs=2e-3)
    assert np.nanmax(rest, axis=1) == pytest.approx(np.nanmin(rest, axis=1))
    assert (read_labels(tmp_path).predictions == probabilities.argmax(axis=1)).all()


def test_a_certain_answer_can_be_stored(tmp_path):
    filled(tmp_path, np.eye(4, dtype=np.float32))
    assert everything(read_labels(tmp_path)) == pytest.approx(np.eye(4), abs=1e-30)


@given(st.integers(1, 1 << 26))
def test_shards_are_whole_batches_and_a_small_pool_has_several(count):
    size, files = shard_size(count), shard_files(Path("x"), count)
    assert size % EVALUATION_BATCH == 0
    assert size <= SHARD
    assert (len(files) - 1) * size < count <= len(files) * size
    assert len(files) >= min(16, -(-count // EVALUATION_BATCH))


def test_a_shard_is_one_processes_at_a_time(tmp_path):
    store, other = (LabelStore(tmp_path, COUNT, CLASSES, METADATA) for _ in range(2))

    def elsewhere() -> int:
        with other.claim(0) as mine, other.claim(1) as free:
            return 10 * mine + free

    with store.claim(0) as mine:
        assert mine
        assert call_in_fork(elsewhere) == 1
    assert call_in_fork(elsewhere) == 11
    with store.claim(0):
        store.write(0, drawn()[:512])
    assert call_in_fork(elsewhere) == 1  # it is done


def test_what_a_killed_process_had_claimed_is_free_again(tmp_path):
    store = LabelStore(tmp_path, COUNT, CLASSES, METADATA)

    def die() -> int:
        with store.claim(1):
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert call_in_fork(die) == -signal.SIGKILL
    with store.claim(1) as mine:
        assert mine


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_shard_alone_is_labelled_again(tmp_path, damage):
    probabilities = drawn()
    filled(tmp_path, probabilities)
    before = contents(tmp_path)
    file = shard_files(tmp_path, COUNT)[1]
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes({"cut": content[:-10], "changed": content, "empty": b""}[damage])
    store = LabelStore(tmp_path, COUNT, CLASSES, METADATA)
    assert store.missing == [1]
    filled(tmp_path, probabilities)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("other", [{"weights": "of another"}, {"data": "another"}, {"views": "mirrored"}])
def test_what_belongs_to_another_teacher_or_other_data_is_labelled_again(tmp_path, other):
    filled(tmp_path, drawn())
    assert LabelStore(tmp_path, COUNT, CLASSES, METADATA).complete
    store = LabelStore(tmp_path, COUNT, CLASSES, METADATA | other)
    assert store.missing == [0, 1, 2]
    assert not contents(tmp_path)


def test_who_still_labels_for_the_teacher_before_is_not_believed(tmp_path):
    late = LabelStore(tmp_path, COUNT, CLASSES, METADATA)
    with late.claim(0) as mine:
        assert mine
        store = LabelStore(tmp_path, COUNT, CLASSES, METADATA | {"weights": "trained again"})
        late.write(0, drawn()[:512])
        assert store.missing == [0, 1, 2]
    with late.claim(1) as mine:
        assert not mine
    assert not late.is_current


def test_a_shard_of_the_wrong_length_and_a_number_that_is_none_are_refused(tmp_path):
    store = LabelStore(tmp_path, COUNT, CLASSES, METADATA)
    with pytest.raises(ValueError, match="shard 2 has 176 images, not 512"):
        store.write(2, drawn()[:512])
    with pytest.raises(ValueError, match="not finite"):
        store.write(0, np.full((512, CLASSES), np.nan, np.float32))
    assert store.missing == [0, 1, 2]


def test_a_file_that_is_cleared_away_while_it_is_written_is_written_again(tmp_path, monkeypatch):
    from tutelage import storage

    store, flushed = LabelStore(tmp_path, COUNT, CLASSES, METADATA), []

    def clearing(descriptor: int) -> None:
        if not flushed:
            storage.remove_partials(tmp_path)
        flushed.append(descriptor)

    monkeypatch.setattr(storage.os, "fsync", clearing)
    store.write(0, drawn()[:512])
    assert 0 not in LabelStore(tmp_path, COUNT, CLASSES, METADATA).missing


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    from tutelage.data.pseudo_labels import store as label_store

    def full(*_):
        raise OSError(28, "No space left on device")

    store = LabelStore(tmp_path, COUNT, CLASSES, METADATA)
    monkeypatch.setattr(label_store, "write_checked", full)
    with pytest.raises(UserError, match=r"00000.npy: cannot be written \(No space left on device\); free some room"):
        store.write(0, drawn()[:512])


def test_no_labels_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no labels here; the run's command makes them again"):
        read_labels(tmp_path)


def _work(folder: Path, slow: float) -> None:
    store = LabelStore(folder, COUNT * 10, CLASSES, METADATA)
    probabilities = drawn(COUNT * 10)
    while not store.complete:
        for shard in store.missing:
            with store.claim(shard) as mine:
                if mine:
                    time.sleep(slow)
                    store.write(shard, probabilities[slice(*store.bounds(shard))])
        time.sleep(slow)


def test_many_processes_of_which_some_are_killed_leave_what_one_leaves(tmp_path):
    filled(tmp_path / "alone", drawn(COUNT * 10))
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(tmp_path / "together", slow)) for slow in (60, 60, 0.01, 0.01)]
    for worker in workers[:2]:
        worker.start()
    while len([*(tmp_path / "together").glob("labels/.locks/*")]) < 2:  # each is at a shard
        time.sleep(0.01)
    for worker in workers[2:]:
        worker.start()
    while not [*(tmp_path / "together").glob("labels/*.npy")]:  # the others have begun
        time.sleep(0.01)
    for worker in workers[:2]:
        worker.kill()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, -signal.SIGKILL, 0, 0]
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


def test_reading_at_random_holds_a_small_part_of_the_store(tmp_path, monkeypatch):
    from tutelage.data.pseudo_labels import labels as labels_module

    count = 400_000
    filled(tmp_path, drawn(SHARD // 16, 64).repeat(count // (SHARD // 16) + 1, axis=0)[:count])
    size = sum(file.stat().st_size for file in shard_files(tmp_path, count))

    def mapped() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Rss"))

    monkeypatch.setattr(labels_module, "MAX_TOUCHED_ROWS", 64)
    labels, generator = read_labels(tmp_path), np.random.default_rng(0)
    labels[generator.integers(0, count, 64)]
    before = mapped()
    for turn in range(200):
        labels[generator.integers(0, count, 64)]
        assert turn % 20 or mapped() - before < size / 3


def test_few_shards_are_mapped_at_once_and_answers_stay_the_same(tmp_path, monkeypatch):
    from tutelage.data.pseudo_labels import labels as labels_module

    filled(tmp_path, drawn(COUNT * 10))
    expected, labels = everything(read_labels(tmp_path)), read_labels(tmp_path)
    monkeypatch.setattr(labels_module, "MAX_MAPPED_SHARDS", 3)
    files = len(list(Path("/proc/self/fd").iterdir()))
    some = np.random.default_rng(0).integers(0, COUNT * 10, 400)
    assert (labels[some] == expected[some]).all()
    assert len(list(Path("/proc/self/fd").iterdir())) <= files + 3


@pytest.fixture
def told(tmp_path):
    source = make_source(np.repeat(np.arange(4), 300), test=8, unlabelled=0)
    pool = np.arange(100, 1_100)
    labels = Labels.from_array(drawn(len(pool), 4))
    return source, pool, labels, select(labels, Rules(confidence=0.6))


def test_the_table_says_of_each_image_what_it_was_given(tmp_path, told, monkeypatch):
    from tutelage.data.pseudo_labels import summary as rounds

    source, pool, labels, chosen = told
    monkeypatch.setattr(rounds, "GROUP", 300)
    monkeypatch.setattr(labels, "chunks", lambda: ((i, drawn(1000, 4)[i : i + 100]) for i in range(0, 1000, 100)))
    write_table(tmp_path, source, pool, labels, chosen)
    assert pq.ParquetFile(tmp_path / TABLE).num_row_groups == 4
    rows = pq.read_table(tmp_path / TABLE).to_pylist()
    assert [row["index"] for row in rows] == pool.tolist()
    times = np.bincount(chosen.entries, minlength=1000)
    for entry, (row, given_) in enumerate(zip(rows, drawn(1000, 4), strict=True)):
        *_, second, most = sorted(given_.tolist())
        assert row["name"] == source.names[int(pool[entry])]
        assert row["label"] == source.classes[int(given_.argmax())]
        assert row["confidence"] == pytest.approx(most)
        assert row["margin"] == pytest.approx(most - second, abs=1e-6)
        assert row["copies"] == times[entry]
        assert row["kept"] == (times[entry] > 0)
        assert row["truth"] == source.classes[int(source.labels[pool[entry]])]


def test_a_round_counts_what_the_table_holds(tmp_path, told, monkeypatch):
    from tutelage.data.pseudo_labels import selection

    monkeypatch.setattr(selection, "CHUNK_SIZE", 90)
    source, pool, labels, chosen = told
    before = Labels.from_array(np.roll(drawn(1000, 4), 1, axis=0))
    result = write_summary(tmp_path, source, pool, labels, chosen, before)
    found = json.loads((tmp_path / ROUND).read_text())
    predictions, truth, confidence = labels.predictions, source.labels[pool], labels.confidence
    times = np.bincount(chosen.entries, minlength=1000)
    assert found["classes"] == list(source.classes)
    assert found["images"] == result["pool/images"] == 1000
    assert found["answered_per_class"] == [int((predictions == c).sum()) for c in range(4)]
    assert found["kept_per_class"] == [int(((predictions == c) & (times > 0)).sum()) for c in range(4)]
    assert found["shown_per_class"] == [int(times[predictions == c].sum()) for c in range(4)]
    assert found["edges"] == pytest.approx(np.linspace(0, 1, 21))
    assert found["histogram"] == np.histogram(confidence, found["edges"])[0].tolist()
    assert found["known"] == found["histogram"]
    assert found["right"] == np.histogram(confidence[predictions == truth], found["edges"])[0].tolist()
    changed = before.predictions != predictions
    assert found["changed"] == changed.sum()
    assert result["pool/changed"] == changed.mean()
    kept = times > 0
    assert result["pool/kept"] == kept.sum()
    assert result["pool/shown"] == len(chosen.entries)
    assert result["pool/right"] == pytest.approx((predictions == truth)[kept].mean(), abs=1e-6)
    surest = np.flatnonzero(changed)[np.argsort(-confidence[changed], kind="stable")[:24]]
    assert [example["index"] for example in found["changed_examples"]] == pool[surest].tolist()
    assert [example["before"] for example in found["changed_examples"]] == before.predictions[surest].tolist()
    assert [example["after"] for example in found["changed_examples"]] == predictions[surest].tolist()
    wrong = np.flatnonzero(predictions != truth)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")[:24]]
    assert [error["index"] for error in found["confident_errors"]] == pool[wrong].tolist()
    assert [error["truth"] for error in found["confident_errors"]] == truth[wrong].tolist()


def test_where_truth_is_unknown_nothing_is_said_of_it(tmp_path, told):
    source, pool, labels, chosen = told
    source.labels[pool] = -1
    result = write_summary(tmp_path, source, pool, labels, chosen, None)
    found = json.loads((tmp_path / ROUND).read_text())
    assert "pool/right" not in result
    assert "pool/changed" not in result
    assert found["changed"] is None
    assert not any(found["known"]) and not found["confident_errors"] and not found["changed_examples"]
    write_table(tmp_path, source, pool, labels, chosen)
    assert set(pq.read_table(tmp_path / TABLE)["truth"].to_pylist()) == {None}
