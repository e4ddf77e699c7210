"""The teacher cache: logits computed once, for exactly the student's images, whole or absent, shared by runs."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from helpers.overrides import DISTILLATION, QUIET
from helpers.runs import outcome, run
from tutelage.config.compose import compose
from tutelage.data import (
    LOGITS_FILE,
    CachedLogits,
    CachedLogitsWriter,
    StageData,
    Stream,
    StreamSampler,
    count_views,
    data_module,
    map_rows,
    pack_rows,
    row_dtype,
    unpack_rows,
)
from tutelage.data.cached_logits import ALL_CLASSES, PARTIAL, TOP
from tutelage.data.loading.batches import TrainDataset
from tutelage.errors import UserError
from tutelage.models import load_classifier
from tutelage.randomness import Key
from tutelage.runs import run_path, teacher_cache, teachers
from tutelage.runs.observer import Observer


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@given(st.integers(2, 400), st.floats(0.1, 20), st.integers(0, 99), st.sampled_from([1.0, 4.0]))
def test_cached_logits_give_the_same_probabilities(classes, spread, seed, temperature):
    logits = np.random.default_rng(seed).normal(5, spread, (6, classes)).astype(np.float32)
    rows = pack_rows(logits, row_dtype(classes, exact=False))
    unpacked = unpack_rows(rows, classes)
    assert unpacked.shape == logits.shape and unpacked.dtype == np.float32
    exact, cached = softmax(logits / temperature), softmax(unpacked / temperature)
    if classes <= ALL_CLASSES:
        assert np.abs(exact - cached).max() < 5e-3
    else:
        largest = np.argsort(-logits, axis=1)[:, :TOP]
        exact, cached = softmax(logits), softmax(unpacked)
        assert np.abs(np.take_along_axis(exact - cached, largest, axis=1)).max() < 5e-3
        assert cached.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_with_many_classes_the_smallest_probabilities_are_replaced_by_their_mean():
    logits = np.random.default_rng(0).normal(0, 2, (3, 1000)).astype(np.float32)
    kind = row_dtype(1000, exact=False)
    assert kind.itemsize == 33 * 2 + 32 * 2
    unpacked = unpack_rows(pack_rows(logits, kind), 1000)
    exact, cached = softmax(logits), softmax(unpacked)
    rest = np.argsort(-logits, axis=1)[:, TOP:]
    by_mass = np.take_along_axis(exact, rest, axis=1).sum(axis=1)
    assert np.take_along_axis(cached, rest, axis=1).sum(axis=1) == pytest.approx(by_mass, rel=5e-3)
    assert np.take_along_axis(cached, rest, axis=1).std(axis=1).max() < 1e-9


def test_all_logits_of_several_heads_are_cached_and_features_are_cached_exactly():
    assert row_dtype(1000, exact=False, whole=True)["values"].shape == (1000,)
    features = np.random.default_rng(0).normal(size=(4, 300)).astype(np.float32) * 1e6
    assert (unpack_rows(pack_rows(features, row_dtype(300, exact=True)), 300) == features).all()


def test_logits_beyond_the_range_of_float16_are_cached_within_it():
    logits = np.array([[1e5, 1e5 - 3, -1e9], [-1e8, -1e8 - 8, -1e8]], dtype=np.float32)
    unpacked = unpack_rows(pack_rows(logits, row_dtype(3, exact=False)), 3)
    assert np.isfinite(unpacked).all()
    assert unpacked[0, :2].tolist() == [0, -3] and unpacked[1].tolist() == [0, -8, 0]
    with pytest.raises(ValueError, match="finite"):
        pack_rows(np.array([[np.nan, 0]], dtype=np.float32), row_dtype(2, exact=False))


@given(st.integers(1, 40), st.integers(1, 16), st.integers(1, 30), st.integers(1, 6), st.booleans())
def test_views_repeat_and_each_has_its_own_row(count, batch, steps, views, even):
    labels = np.arange(count) % 3
    stream = Stream("labelled", np.arange(100, 100 + count), labels, batch, even=even)
    view_count = count_views(stream, steps, views)
    cached, sampler = CachedLogits(Path("nowhere"), 1, view_count), StreamSampler(stream, Key(0, "student", "labelled"))
    rows = {}
    for step in range(steps):
        indices = sampler.at(step)
        repeated = cached.repeat_views(indices)
        assert (repeated.entries == indices.entries).all() and not repeated.copies.any()
        assert ((repeated.passes >= 0) & (repeated.passes < view_count)).all()
        for slot, entry in zip(repeated.passes.tolist(), repeated.entries.tolist(), strict=True):
            assert rows.setdefault(slot * count + entry, (slot, entry)) == (slot, entry)
    assert view_count <= views
    if not even and steps * batch >= views * count:
        assert {slot for slot, _ in rows.values()} == set(range(views))


def test_a_stream_that_is_not_shuffled_draws_its_entries_in_order(monkeypatch):
    monkeypatch.setattr("tutelage.data.loading.streams.CHUNK", 8)
    stream = Stream("labelled", np.arange(20) * 3, np.zeros(20, np.int64), 7, shuffled=False)
    sampler = StreamSampler(stream, Key(0, "a", "labelled"))
    draws = [sampler.at(step) for step in range(6)]
    assert np.concatenate([draw.entries for draw in draws]).tolist() == [position % 20 for position in range(42)]
    assert np.concatenate([draw.passes for draw in draws]).tolist() == [position // 20 for position in range(42)]


def test_a_file_of_logits_is_whole_or_absent_and_is_continued_after_a_kill(tmp_path):
    kind, rows = (
        row_dtype(3, exact=True),
        pack_rows(np.arange(30, dtype=np.float32).reshape(10, 3), row_dtype(3, exact=True)),
    )
    writer = CachedLogitsWriter(tmp_path / "a", kind, 10)
    writer.add(rows[:4])
    writer.save()
    writer.add(rows[4:8])  # never saved
    assert not writer.file.exists()
    resumed = CachedLogitsWriter(tmp_path / "a", kind, 10)
    assert (resumed.batches, resumed.fraction) == (1, 0.4)
    resumed.add(rows[4:8])
    resumed.add(rows[[8, 9, 0, 1]])  # more rows than the file has
    resumed.finish()
    assert (np.load(resumed.file)["values"] == rows["values"]).all()
    assert not (tmp_path / "a" / PARTIAL).exists()
    assert map_rows(resumed.file, kind, 10) is not None and map_rows(resumed.file, kind, 11) is None
    other_shape = CachedLogitsWriter(
        tmp_path / "a", row_dtype(2, exact=True), 10
    )  # a partial file of another shape is not gone on with
    assert other_shape.batches == 0


def test_a_full_disk_is_an_error_before_anything_is_computed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UserError, match=r"no room for 1.2 GB of a teacher's logits \(No space left on device\)"):
        CachedLogitsWriter(tmp_path, row_dtype(3, exact=True), 100_000_000)
    assert not list(tmp_path.glob("*"))


def read_logits_files(outputs: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(outputs.glob(f".cached_logits/*/{LOGITS_FILE}"))}


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory):
    outputs = tmp_path_factory.mktemp("cold")
    assert run(outputs, *DISTILLATION) == 0
    return outputs


def test_cached_logits_are_the_teachers_for_the_images_that_the_student_sees(cold):
    """Each step's batch has the logits of stage 1's network for exactly its images."""
    config = compose([*QUIET, *DISTILLATION, f"paths.outputs={cold}"])
    data, (folder,) = data_module(config.data), cold.glob("*/*/run.json")
    teacher = load_classifier(folder.parent / "stages/1-teacher/checkpoints/final.ckpt").eval()
    labelled = data.splits.labelled
    stream = Stream("labelled", labelled, data.source.labels[labelled], 16)
    (file,) = cold.glob(f".cached_logits/*/{LOGITS_FILE}")
    cached = CachedLogits(file, 10, 2)
    assert len(cached.rows) == 2 * len(labelled)
    training = StageData(
        [stream], config.augmentation.transforms, lambda s: Key(0, "student", s), 9, cached={"labelled": cached}
    )
    batches = TrainDataset(data.images, training, (28, 28, 1))
    images = {}
    for step in range(9):
        batch = batches[step]["labelled"]
        with torch.inference_mode():
            expected = teacher(batch.images)
        torch.testing.assert_close(batch.cached, expected - expected.amax(1, keepdim=True), atol=5e-3, rtol=2e-3)
        indices = cached.repeat_views(StreamSampler(stream, Key(0, "student", "labelled")).at(step))
        for slot, entry, image in zip(indices.passes.tolist(), indices.entries.tolist(), batch.images, strict=True):
            assert torch.equal(images.setdefault((slot, entry), image), image)  # a repeated view has the same bytes
    assert len({image.numpy().tobytes() for image in images.values()}) == len(images)  # and different views differ


def use_small_batches() -> None:
    """Make the batches so small that a process can be killed between them."""
    from tutelage.runs import teacher_cache

    teacher_cache.SAVE_SECONDS, teacher_cache.BATCH_SIZE = 0.0, 16


def forbid_computing() -> None:
    """Make a run fail if it computes logits."""
    from tutelage.runs import teacher_cache

    teacher_cache._Cache.fill = None


def send_while_computing(number: int, batches: int):
    """Return a trap that sends this process a signal after it has computed ``batches`` batches of logits."""

    def trap() -> None:
        from tutelage.data import cached_logits

        use_small_batches()
        add, calls = cached_logits.CachedLogitsWriter.add, []

        def add_and_send(self, rows):
            add(self, rows)
            calls.append(len(rows))
            if len(calls) == batches:
                os.kill(os.getpid(), number)

        cached_logits.CachedLogitsWriter.add = add_and_send

    return trap


@pytest.mark.parametrize("mode", ["views", "passes"])
def test_cold_warm_and_killed_runs_end_with_the_same_weights(mode, tmp_path):
    overrides = (*DISTILLATION, f"strategy.teacher_logits={mode}")
    assert run(tmp_path / "a", *overrides, before=use_small_batches) == 0
    expected, expected_files = outcome(tmp_path / "a"), read_logits_files(tmp_path / "a")
    shutil.rmtree(tmp_path / "a/runs")  # the logits stay: now it is warm
    assert run(tmp_path / "a", *overrides, before=forbid_computing) == 0
    assert outcome(tmp_path / "a") == expected
    for number, saved_batches in (
        (signal.SIGKILL, 3),
        (signal.SIGTERM, 7),
    ):  # 2 views of 60 images are 8 batches; 9 steps are 9
        code = run(tmp_path / "b", *overrides, before=send_while_computing(number, 4))
        assert code == (-number if number == signal.SIGKILL else 128 + number)
        (progress,) = (tmp_path / "b").glob(".cached_logits/*/progress.json")
        assert json.loads(progress.read_text())["batches"] == saved_batches
        assert not read_logits_files(tmp_path / "b")
    assert run(tmp_path / "b", *overrides, before=use_small_batches) == 0
    assert read_logits_files(tmp_path / "b") == expected_files
    assert outcome(tmp_path / "b") == expected


def test_a_student_killed_among_its_steps_ends_with_the_same_weights(cold, tmp_path):
    from tutelage.testing import kill_after

    for step in (3, 7):
        assert run(tmp_path, *DISTILLATION, before=kill_after("student", step)) == -signal.SIGKILL
    assert run(tmp_path, *DISTILLATION) == 0
    assert outcome(tmp_path) == outcome(cold)


def test_cached_logits_do_not_depend_on_the_number_of_workers(cold, tmp_path):
    assert run(tmp_path, *DISTILLATION, "data.num_workers=2") == 0
    assert outcome(tmp_path) == outcome(cold)
    assert read_logits_files(tmp_path) == read_logits_files(cold)


@pytest.mark.slow
def test_runs_with_another_loss_share_the_cache(cold, tmp_path):
    shutil.copytree(cold / ".cached_logits", tmp_path / ".cached_logits")
    assert run(tmp_path, *DISTILLATION, "strategy.alpha=0.5", "strategy.temperature=2", before=forbid_computing) == 0
    for override in ("augmentation=flip", "strategy.cached_views=3", "strategy.teacher_logits=passes", "seed=1"):
        count = len(read_logits_files(tmp_path))
        assert run(tmp_path, *DISTILLATION, override) == 0
        assert len(read_logits_files(tmp_path)) == count + 1, override


def test_logits_of_images_without_augmentation_need_one_view(tmp_path):
    assert run(tmp_path, *DISTILLATION, "augmentation=none") == 0
    (file,) = tmp_path.glob(f".cached_logits/*/{LOGITS_FILE}")
    assert len(np.load(file)) == 60


def test_cached_logits_of_images_without_augmentation_are_used_for_every_seed(tmp_path):
    assert run(tmp_path, *DISTILLATION, "augmentation=none", "strategy.control=false") == 0
    (teacher,) = tmp_path.glob("runs/*/stages/1-teacher/checkpoints/final.ckpt")
    overrides = (*DISTILLATION, "augmentation=none", "strategy.control=false", f"strategy.teachers=[{teacher}]")
    assert run(tmp_path, *overrides, before=forbid_computing) == 0
    assert run(tmp_path, *overrides, "seed=1", "data.split_seed=0", before=forbid_computing) == 0


@pytest.mark.slow
def test_keys_that_change_nothing_do_not_make_another_run():
    def path(*overrides: str) -> Path:
        return run_path(compose(["strategy=distillation", *overrides]), "")

    assert path() != path("strategy.cached_views=3")
    for base, *neutral in (
        ("augmentation=none", "strategy.cached_views=3", "strategy.teacher_logits=passes"),
        ("strategy.teacher_logits=live", "strategy.cached_views=3"),
        ("strategy.teacher_logits=passes", "strategy.cached_views=3"),
        ("augmentation=cutmix", "strategy.cached_views=3", "strategy.teacher_logits=passes"),
        ("strategy.target_type=hard", "strategy.temperature=3"),
    ):
        for override in neutral:
            assert path(base) == path(base, override), (base, override)
            if base != "strategy.target_type=hard":
                assert path(base, "strategy.temperature=3") != path(base)


def test_damaged_logits_are_computed_again_with_a_message(cold, tmp_path, capfd):
    shutil.copytree(cold / ".cached_logits", tmp_path / ".cached_logits")
    (file,) = tmp_path.glob(f".cached_logits/*/{LOGITS_FILE}")
    np.load(file, mmap_mode="r+")["values"][:] = np.float16(0)
    assert run(tmp_path, *DISTILLATION) == 0
    assert "holds other logits than those of stage student's teacher: computed again" in capfd.readouterr().err
    assert read_logits_files(tmp_path) == read_logits_files(cold)
    assert outcome(tmp_path) == outcome(cold)


def test_a_second_process_waits_for_the_first_and_says_so(cold, tmp_path, capfd):
    shutil.copytree(cold / ".cached_logits", tmp_path / ".cached_logits")
    (folder,) = (path for path in (tmp_path / ".cached_logits").iterdir() if path.is_dir())
    lock = FileLock(folder.with_suffix(".lock"), thread_local=False)
    lock.acquire()
    waiting, waits = os.pipe()

    def announce_waiting() -> None:
        forbid_computing()
        teacher_cache.POLL_SECONDS = 0.05
        say = Observer.say

        def say_and_announce(self, line):
            say(self, line)
            if "waiting for it" in line:
                os.write(waits, b"!")

        Observer.say = say_and_announce

    def release() -> None:
        os.read(waiting, 1)
        lock.release()

    first = threading.Thread(target=release, daemon=True)
    first.start()
    assert run(tmp_path, *DISTILLATION, before=announce_waiting) == 0
    first.join()
    assert capfd.readouterr().err.count("another process computes the same logits; waiting for it") == 1
    assert outcome(tmp_path) == outcome(cold)


def test_the_teachers_logits_are_computed_for_the_mixed_images(tmp_path, capfd):
    """They are cached for every step, not for views, and the student's loss equals that with a live teacher."""
    mixing = (*DISTILLATION, "augmentation=cutmix_mixup", "strategy.alpha=0")
    assert run(tmp_path / "kept", *mixing) == 0
    assert "the teacher's logits are cached for every step, not for views that repeat" in capfd.readouterr().err
    assert run(tmp_path / "live", *mixing, "strategy.teacher_logits=live") == 0
    cached, live = (outcome(tmp_path / name)["tables"]["stages/2-student/metrics.csv"] for name in ("kept", "live"))
    assert not (tmp_path / "live/.cached_logits").exists()
    for cached_row, live_row in zip(cached, live, strict=True):
        for name in ("train/loss", "train/kl"):
            assert float(cached_row[name]) == pytest.approx(float(live_row[name]), rel=0.02)


@pytest.mark.parametrize(
    ("logits", "in_lower", "precise"),
    [
        ([20.0, 19.0, 0.0], [20.5, 18.5, 0.1], False),  # within a tenth of each logit, and other probabilities
        ([20.0, 19.0, 0.0], [20.01, 19.0, 0.1], True),
        ([0.01, 0.0, -9.0], [0.0, 0.01, -9.0], True),  # a near-tie
        ([0.2, 0.0, *[0.1] * 98], [0.0, 0.2, *[0.1] * 98], False),  # close probabilities, another prediction
        ([1.0, 0.0, 0.0], [float("nan")] * 3, False),
    ],
)
def test_a_lower_precision_is_used_if_it_gives_the_same_probabilities_and_predictions(logits, in_lower, precise):
    class Predictions:
        autocast_dtype = None

        def __call__(self, images):
            return torch.tensor([logits if self.autocast_dtype is None else in_lower])

    data = SimpleNamespace(
        splits=SimpleNamespace(labelled=np.arange(3)),
        eval_dataloader=lambda indices, batch_size: [SimpleNamespace(images=torch.zeros(1, 1, 2, 2))],
    )
    context = SimpleNamespace(data=data, device=torch.device("cpu"))
    assert teachers._is_precise(context, Predictions(), torch.float16) is precise


def test_logits_that_are_not_finite_are_an_error_of_one_line(outputs, capfd):
    def broken() -> None:
        from tutelage.models import Teacher

        compute_logits = Teacher.__call__
        Teacher.__call__ = lambda self, images: compute_logits(self, images) / 0

    assert run(outputs, *DISTILLATION, before=broken) == 70
    assert "stage student: the teacher's logits are not finite" in capfd.readouterr().err
