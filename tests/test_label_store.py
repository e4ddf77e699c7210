"""The label store: its content, concurrent writers, and the memory of a reader."""

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


def draw_probabilities(count: int = COUNT, classes: int = CLASSES, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), count).astype(np.float32)


def fill_store(folder: Path, probabilities: np.ndarray, metadata: dict = METADATA) -> LabelStore:
    store = LabelStore(folder, *probabilities.shape, metadata)
    for shard in store.missing:
        with store.claim(shard) as mine:
            assert mine
            store.write(shard, probabilities[slice(*store.bounds(shard))])
    return store


def read_shards(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "labels").glob("*.npy"))}


def read_all(labels: Labels) -> np.ndarray:
    return np.concatenate([part for _, part in labels.chunks()])


def test_stored_labels_are_read_back(tmp_path):
    probabilities = draw_probabilities()
    fill_store(tmp_path, probabilities)
    labels = read_labels(tmp_path)
    assert read_all(labels) == pytest.approx(probabilities, abs=5e-4)
    assert read_all(labels).sum(axis=1) == pytest.approx(np.ones(COUNT), abs=1e-6)
    assert (labels.predictions == probabilities.argmax(axis=1)).all()
    assert labels.confidence == pytest.approx(probabilities.max(axis=1), abs=5e-4)
    indices = np.array([1_199, 0, 511, 512, 0])
    assert (labels[indices] == read_all(labels)[indices]).all()


def test_above_128_classes_the_largest_probabilities_are_stored_and_the_others_are_equal(tmp_path):
    probabilities = draw_probabilities(600, 300)
    fill_store(tmp_path, probabilities)
    stored = np.load(shard_files(tmp_path, 600)[0], allow_pickle=False)
    assert stored.itemsize == 33 * 2 + 32 * 2
    unpacked = read_all(read_labels(tmp_path))
    top = np.argsort(-probabilities, axis=1)[:, :32]
    expected = np.take_along_axis(probabilities, top, axis=1)
    assert np.take_along_axis(unpacked, top, axis=1) == pytest.approx(expected, abs=1e-3)
    rest = unpacked.copy()
    np.put_along_axis(rest, top, np.nan, axis=1)
    assert np.nansum(rest, axis=1) == pytest.approx(1 - expected.sum(axis=1), abs=2e-3)
    assert np.nanmax(rest, axis=1) == pytest.approx(np.nanmin(rest, axis=1))
    assert (read_labels(tmp_path).predictions == probabilities.argmax(axis=1)).all()


def test_a_probability_of_one_can_be_stored(tmp_path):
    fill_store(tmp_path, np.eye(4, dtype=np.float32))
    assert read_all(read_labels(tmp_path)) == pytest.approx(np.eye(4), abs=1e-30)


@given(st.integers(1, 1 << 26))
def test_shards_are_whole_batches_and_a_small_pool_has_several(count):
    size, files = shard_size(count), shard_files(Path("x"), count)
    assert size % EVALUATION_BATCH == 0
    assert size <= SHARD
    assert (len(files) - 1) * size < count <= len(files) * size
    assert len(files) >= min(16, -(-count // EVALUATION_BATCH))


def test_a_shard_is_claimed_by_one_process_at_a_time(tmp_path):
    store, second_store = (LabelStore(tmp_path, COUNT, CLASSES, METADATA) for _ in range(2))

    def claim_in_other_process() -> int:
        with second_store.claim(0) as mine, second_store.claim(1) as free:
            return 10 * mine + free

    with store.claim(0) as mine:
        assert mine
        assert call_in_fork(claim_in_other_process) == 1
    assert call_in_fork(claim_in_other_process) == 11
    with store.claim(0):
        store.write(0, draw_probabilities()[:512])
    assert call_in_fork(claim_in_other_process) == 1  # it is done


def test_the_claim_of_a_killed_process_is_released(tmp_path):
    store = LabelStore(tmp_path, COUNT, CLASSES, METADATA)

    def die() -> int:
        with store.claim(1):
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert call_in_fork(die) == -signal.SIGKILL
    with store.claim(1) as mine:
        assert mine


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_only_a_damaged_shard_is_labelled_again(tmp_path, damage):
    probabilities = draw_probabilities()
    fill_store(tmp_path, probabilities)
    expected = read_shards(tmp_path)
    file = shard_files(tmp_path, COUNT)[1]
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes({"cut": content[:-10], "changed": content, "empty": b""}[damage])
    store = LabelStore(tmp_path, COUNT, CLASSES, METADATA)
    assert store.missing == [1]
    fill_store(tmp_path, probabilities)
    assert read_shards(tmp_path) == expected


@pytest.mark.parametrize("changes", [{"weights": "of another"}, {"data": "another"}, {"views": "mirrored"}])
def test_labels_of_another_teacher_or_other_data_are_made_again(tmp_path, changes):
    fill_store(tmp_path, draw_probabilities())
    assert LabelStore(tmp_path, COUNT, CLASSES, METADATA).complete
    store = LabelStore(tmp_path, COUNT, CLASSES, METADATA | changes)
    assert store.missing == [0, 1, 2]
    assert not read_shards(tmp_path)


def test_a_process_that_still_labels_for_an_old_teacher_is_ignored(tmp_path):
    late = LabelStore(tmp_path, COUNT, CLASSES, METADATA)
    with late.claim(0) as mine:
        assert mine
        store = LabelStore(tmp_path, COUNT, CLASSES, METADATA | {"weights": "trained again"})
        late.write(0, draw_probabilities()[:512])
        assert store.missing == [0, 1, 2]
    with late.claim(1) as mine:
        assert not mine
    assert not late.is_current


def test_a_shard_of_the_wrong_length_or_with_nan_is_refused(tmp_path):
    store = LabelStore(tmp_path, COUNT, CLASSES, METADATA)
    with pytest.raises(ValueError, match="shard 2 has 176 images, not 512"):
        store.write(2, draw_probabilities()[:512])
    with pytest.raises(ValueError, match="not finite"):
        store.write(0, np.full((512, CLASSES), np.nan, np.float32))
    assert store.missing == [0, 1, 2]


def test_a_file_that_is_removed_while_it_is_written_is_written_again(tmp_path, monkeypatch):
    from tutelage import storage

    store, flushed = LabelStore(tmp_path, COUNT, CLASSES, METADATA), []

    def clearing(descriptor: int) -> None:
        if not flushed:
            storage.remove_partials(tmp_path)
        flushed.append(descriptor)

    monkeypatch.setattr(storage.os, "fsync", clearing)
    store.write(0, draw_probabilities()[:512])
    assert 0 not in LabelStore(tmp_path, COUNT, CLASSES, METADATA).missing


def test_a_full_disk_is_an_error_of_one_line(tmp_path, monkeypatch):
    from tutelage.data.pseudo_labels import store as label_store

    def full(*_):
        raise OSError(28, "No space left on device")

    store = LabelStore(tmp_path, COUNT, CLASSES, METADATA)
    monkeypatch.setattr(label_store, "write_checked", full)
    with pytest.raises(UserError, match=r"00000.npy: cannot be written \(No space left on device\); free some room"):
        store.write(0, draw_probabilities()[:512])


def test_missing_labels_are_an_error_of_one_line(tmp_path):
    with pytest.raises(UserError, match="no labels here; the run's command makes them again"):
        read_labels(tmp_path)


def _label_shards(folder: Path, slow: float) -> None:
    store = LabelStore(folder, COUNT * 10, CLASSES, METADATA)
    probabilities = draw_probabilities(COUNT * 10)
    while not store.complete:
        for shard in store.missing:
            with store.claim(shard) as mine:
                if mine:
                    time.sleep(slow)
                    store.write(shard, probabilities[slice(*store.bounds(shard))])
        time.sleep(slow)


def test_many_processes_of_which_some_are_killed_write_the_same_store_as_one(tmp_path):
    fill_store(tmp_path / "alone", draw_probabilities(COUNT * 10))
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_label_shards, args=(tmp_path / "together", slow)) for slow in (60, 60, 0.01, 0.01)
    ]
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
    assert read_shards(tmp_path / "together") == read_shards(tmp_path / "alone")


def test_reading_at_random_keeps_a_small_part_of_the_store_in_memory(tmp_path, monkeypatch):
    from tutelage.data.pseudo_labels import labels as labels_module

    count = 400_000
    fill_store(tmp_path, draw_probabilities(SHARD // 16, 64).repeat(count // (SHARD // 16) + 1, axis=0)[:count])
    size = sum(file.stat().st_size for file in shard_files(tmp_path, count))

    def measure_resident_memory() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Rss"))

    monkeypatch.setattr(labels_module, "MAX_TOUCHED_ROWS", 64)
    labels, generator = read_labels(tmp_path), np.random.default_rng(0)
    labels[generator.integers(0, count, 64)]
    bytes_before = measure_resident_memory()
    for turn in range(200):
        labels[generator.integers(0, count, 64)]
        assert turn % 20 or measure_resident_memory() - bytes_before < size / 3


def test_few_shards_are_mapped_at_once_and_the_probabilities_are_the_same(tmp_path, monkeypatch):
    from tutelage.data.pseudo_labels import labels as labels_module

    fill_store(tmp_path, draw_probabilities(COUNT * 10))
    expected, labels = read_all(read_labels(tmp_path)), read_labels(tmp_path)
    monkeypatch.setattr(labels_module, "MAX_MAPPED_SHARDS", 3)
    files = len(list(Path("/proc/self/fd").iterdir()))
    indices = np.random.default_rng(0).integers(0, COUNT * 10, 400)
    assert (labels[indices] == expected[indices]).all()
    assert len(list(Path("/proc/self/fd").iterdir())) <= files + 3


@pytest.fixture
def round_data(tmp_path):
    source = make_source(np.repeat(np.arange(4), 300), test=8, unlabelled=0)
    pool = np.arange(100, 1_100)
    labels = Labels.from_array(draw_probabilities(len(pool), 4))
    return source, pool, labels, select(labels, Rules(confidence=0.6))


def test_the_table_has_the_label_and_the_copies_of_each_image(tmp_path, round_data, monkeypatch):
    from tutelage.data.pseudo_labels import summary as rounds

    source, pool, labels, selection = round_data
    monkeypatch.setattr(rounds, "GROUP", 300)
    monkeypatch.setattr(
        labels, "chunks", lambda: ((i, draw_probabilities(1000, 4)[i : i + 100]) for i in range(0, 1000, 100))
    )
    write_table(tmp_path, source, pool, labels, selection)
    assert pq.ParquetFile(tmp_path / TABLE).num_row_groups == 4
    rows = pq.read_table(tmp_path / TABLE).to_pylist()
    assert [row["index"] for row in rows] == pool.tolist()
    copies = np.bincount(selection.entries, minlength=1000)
    for entry, (row, row_probabilities) in enumerate(zip(rows, draw_probabilities(1000, 4), strict=True)):
        *_, second, largest = sorted(row_probabilities.tolist())
        assert row["name"] == source.names[int(pool[entry])]
        assert row["label"] == source.classes[int(row_probabilities.argmax())]
        assert row["confidence"] == pytest.approx(largest)
        assert row["margin"] == pytest.approx(largest - second, abs=1e-6)
        assert row["copies"] == copies[entry]
        assert row["kept"] == (copies[entry] > 0)
        assert row["truth"] == source.classes[int(source.labels[pool[entry]])]


def test_the_summary_counts_what_the_table_holds(tmp_path, round_data, monkeypatch):
    from tutelage.data.pseudo_labels import selection

    monkeypatch.setattr(selection, "CHUNK_SIZE", 90)
    source, pool, labels, selected = round_data
    previous = Labels.from_array(np.roll(draw_probabilities(1000, 4), 1, axis=0))
    result = write_summary(tmp_path, source, pool, labels, selected, previous)
    summary = json.loads((tmp_path / ROUND).read_text())
    predictions, truth, confidence = labels.predictions, source.labels[pool], labels.confidence
    copies = np.bincount(selected.entries, minlength=1000)
    assert summary["classes"] == list(source.classes)
    assert summary["images"] == result["pool/images"] == 1000
    assert summary["answered_per_class"] == [int((predictions == c).sum()) for c in range(4)]
    assert summary["kept_per_class"] == [int(((predictions == c) & (copies > 0)).sum()) for c in range(4)]
    assert summary["shown_per_class"] == [int(copies[predictions == c].sum()) for c in range(4)]
    assert summary["edges"] == pytest.approx(np.linspace(0, 1, 21))
    assert summary["histogram"] == np.histogram(confidence, summary["edges"])[0].tolist()
    assert summary["known"] == summary["histogram"]
    assert summary["right"] == np.histogram(confidence[predictions == truth], summary["edges"])[0].tolist()
    changed = previous.predictions != predictions
    assert summary["changed"] == changed.sum()
    assert result["pool/changed"] == changed.mean()
    is_kept = copies > 0
    assert result["pool/kept"] == is_kept.sum()
    assert result["pool/shown"] == len(selected.entries)
    assert result["pool/right"] == pytest.approx((predictions == truth)[is_kept].mean(), abs=1e-6)
    examples = np.flatnonzero(changed)[np.argsort(-confidence[changed], kind="stable")[:24]]
    assert [example["index"] for example in summary["changed_examples"]] == pool[examples].tolist()
    assert [example["before"] for example in summary["changed_examples"]] == previous.predictions[examples].tolist()
    assert [example["after"] for example in summary["changed_examples"]] == predictions[examples].tolist()
    wrong = np.flatnonzero(predictions != truth)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")[:24]]
    assert [error["index"] for error in summary["confident_errors"]] == pool[wrong].tolist()
    assert [error["truth"] for error in summary["confident_errors"]] == truth[wrong].tolist()


def test_without_true_labels_the_summary_has_no_accuracy(tmp_path, round_data):
    source, pool, labels, selection = round_data
    source.labels[pool] = -1
    result = write_summary(tmp_path, source, pool, labels, selection, None)
    summary = json.loads((tmp_path / ROUND).read_text())
    assert "pool/right" not in result
    assert "pool/changed" not in result
    assert summary["changed"] is None
    assert not any(summary["known"]) and not summary["confident_errors"] and not summary["changed_examples"]
    write_table(tmp_path, source, pool, labels, selection)
    assert set(pq.read_table(tmp_path / TABLE)["truth"].to_pylist()) == {None}
