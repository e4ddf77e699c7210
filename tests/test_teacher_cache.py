"""The teacher cache: logits computed once, those of the very images, whole or absent, shared."""

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
def test_kept_logits_give_the_same_probabilities(classes, spread, seed, temperature):
    logits = np.random.default_rng(seed).normal(5, spread, (6, classes)).astype(np.float32)
    rows = pack_rows(logits, row_dtype(classes, exact=False))
    back = unpack_rows(rows, classes)
    assert back.shape == logits.shape and back.dtype == np.float32
    whole, kept = softmax(logits / temperature), softmax(back / temperature)
    if classes <= ALL_CLASSES:
        assert np.abs(whole - kept).max() < 5e-3
    else:
        largest = np.argsort(-logits, axis=1)[:, :TOP]
        whole, kept = softmax(logits), softmax(back)
        assert np.abs(np.take_along_axis(whole - kept, largest, axis=1)).max() < 5e-3
        assert kept.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_of_many_classes_the_rest_shares_its_mass_evenly():
    logits = np.random.default_rng(0).normal(0, 2, (3, 1000)).astype(np.float32)
    kind = row_dtype(1000, exact=False)
    assert kind.itemsize == 33 * 2 + 32 * 2
    back = unpack_rows(pack_rows(logits, kind), 1000)
    whole, kept = softmax(logits), softmax(back)
    rest = np.argsort(-logits, axis=1)[:, TOP:]
    by_mass = np.take_along_axis(whole, rest, axis=1).sum(axis=1)
    assert np.take_along_axis(kept, rest, axis=1).sum(axis=1) == pytest.approx(by_mass, rel=5e-3)
    assert np.take_along_axis(kept, rest, axis=1).std(axis=1).max() < 1e-9


def test_where_heads_are_apart_all_logits_are_kept_and_features_as_they_are():
    assert row_dtype(1000, exact=False, whole=True)["values"].shape == (1000,)
    features = np.random.default_rng(0).normal(size=(4, 300)).astype(np.float32) * 1e6
    assert (unpack_rows(pack_rows(features, row_dtype(300, exact=True)), 300) == features).all()


def test_logits_beyond_float16_are_kept_within_its_range():
    logits = np.array([[1e5, 1e5 - 3, -1e9], [-1e8, -1e8 - 8, -1e8]], dtype=np.float32)
    back = unpack_rows(pack_rows(logits, row_dtype(3, exact=False)), 3)
    assert np.isfinite(back).all()
    assert back[0, :2].tolist() == [0, -3] and back[1].tolist() == [0, -8, 0]
    with pytest.raises(ValueError, match="finite"):
        pack_rows(np.array([[np.nan, 0]], dtype=np.float32), row_dtype(2, exact=False))


@given(st.integers(1, 40), st.integers(1, 16), st.integers(1, 30), st.integers(1, 6), st.booleans())
def test_views_repeat_and_each_has_its_own_row(count, batch, steps, views, even):
    labels = np.arange(count) % 3
    stream = Stream("labelled", np.arange(100, 100 + count), labels, batch, even=even)
    shown = count_views(stream, steps, views)
    kept, draws = CachedLogits(Path("nowhere"), 1, shown), StreamSampler(stream, Key(0, "student", "labelled"))
    rows = {}
    for step in range(steps):
        before = draws.at(step)
        after = kept.repeat_views(before)
        assert (after.entries == before.entries).all() and not after.copies.any()
        assert ((after.passes >= 0) & (after.passes < shown)).all()
        for slot, entry in zip(after.passes.tolist(), after.entries.tolist(), strict=True):
            assert rows.setdefault(slot * count + entry, (slot, entry)) == (slot, entry)
    assert shown <= views
    if not even and steps * batch >= views * count:
        assert {slot for slot, _ in rows.values()} == set(range(views))


def test_a_stream_that_is_not_shuffled_shows_its_entries_in_order(monkeypatch):
    monkeypatch.setattr("tutelage.data.loading.streams.CHUNK", 8)
    stream = Stream("labelled", np.arange(20) * 3, np.zeros(20, np.int64), 7, shuffled=False)
    draws = StreamSampler(stream, Key(0, "a", "labelled"))
    shown = [draws.at(step) for step in range(6)]
    assert np.concatenate([one.entries for one in shown]).tolist() == [place % 20 for place in range(42)]
    assert np.concatenate([one.passes for one in shown]).tolist() == [place // 20 for place in range(42)]


def test_a_file_of_logits_is_whole_or_absent_and_goes_on_where_it_was_left(tmp_path):
    kind, rows = (
        row_dtype(3, exact=True),
        pack_rows(np.arange(30, dtype=np.float32).reshape(10, 3), row_dtype(3, exact=True)),
    )
    keeping = CachedLogitsWriter(tmp_path / "a", kind, 10)
    keeping.add(rows[:4])
    keeping.save()
    keeping.add(rows[4:8])  # never saved
    assert not keeping.file.exists()
    again = CachedLogitsWriter(tmp_path / "a", kind, 10)
    assert (again.batches, again.fraction) == (1, 0.4)
    again.add(rows[4:8])
    again.add(rows[[8, 9, 0, 1]])  # more than there is room for
    again.finish()
    assert (np.load(again.file)["values"] == rows["values"]).all()
    assert not (tmp_path / "a" / PARTIAL).exists()
    assert map_rows(again.file, kind, 10) is not None and map_rows(again.file, kind, 11) is None
    other = CachedLogitsWriter(
        tmp_path / "a", row_dtype(2, exact=True), 10
    )  # a partial file of another shape is not gone on with
    assert other.batches == 0


def test_a_full_disk_is_told_before_anything_is_computed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UserError, match=r"no room for 1.2 GB of a teacher's logits \(No space left on device\)"):
        CachedLogitsWriter(tmp_path, row_dtype(3, exact=True), 100_000_000)
    assert not list(tmp_path.glob("*"))


def files(outputs: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(outputs.glob(f".cached_logits/*/{LOGITS_FILE}"))}


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory):
    outputs = tmp_path_factory.mktemp("cold")
    assert run(outputs, *DISTILLATION) == 0
    return outputs


def test_cached_logits_are_the_teachers_for_the_images_that_the_student_sees(cold):
    """The module is shown, at every step, the logits of the network of stage 1 for the very images beside them."""
    config = compose([*QUIET, *DISTILLATION, f"paths.outputs={cold}"])
    data, (folder,) = data_module(config.data), cold.glob("*/*/run.json")
    teacher = load_classifier(folder.parent / "stages/1-teacher/checkpoints/final.ckpt").eval()
    labelled = data.splits.labelled
    stream = Stream("labelled", labelled, data.source.labels[labelled], 16)
    (file,) = cold.glob(f".cached_logits/*/{LOGITS_FILE}")
    kept = CachedLogits(file, 10, 2)
    assert len(kept.rows) == 2 * len(labelled)
    training = StageData(
        [stream], config.augmentation.transforms, lambda s: Key(0, "student", s), 9, cached={"labelled": kept}
    )
    batches = TrainDataset(data.images, training, (28, 28, 1))
    images = {}
    for step in range(9):
        shown = batches[step]["labelled"]
        with torch.inference_mode():
            expected = teacher(shown.images)
        torch.testing.assert_close(shown.cached, expected - expected.amax(1, keepdim=True), atol=5e-3, rtol=2e-3)
        shows = kept.repeat_views(StreamSampler(stream, Key(0, "student", "labelled")).at(step))
        for slot, entry, image in zip(shows.passes.tolist(), shows.entries.tolist(), shown.images, strict=True):
            assert torch.equal(images.setdefault((slot, entry), image), image)  # the view repeats, to the byte
    assert len({image.numpy().tobytes() for image in images.values()}) == len(images)  # and others differ


def in_small_batches() -> None:
    """Compute in batches so small that a process can be killed between them."""
    from tutelage.runs import teacher_cache

    teacher_cache.SAVE_SECONDS, teacher_cache.BATCH_SIZE = 0.0, 16


def no_computing() -> None:
    """Fail where logits are computed."""
    from tutelage.runs import teacher_cache

    teacher_cache._Cache.fill = None


def send_while_computing(number: int, batches: int):
    """Return a trap that sends this process a signal once it has computed so many batches of logits."""

    def trap() -> None:
        from tutelage.data import cached_logits

        in_small_batches()
        add, calls = cached_logits.CachedLogitsWriter.add, []

        def then_send(self, rows):
            add(self, rows)
            calls.append(len(rows))
            if len(calls) == batches:
                os.kill(os.getpid(), number)

        cached_logits.CachedLogitsWriter.add = then_send

    return trap


@pytest.mark.parametrize("mode", ["views", "passes"])
def test_cold_warm_and_killed_runs_end_with_the_same_weights(mode, tmp_path):
    overrides = (*DISTILLATION, f"strategy.teacher_logits={mode}")
    assert run(tmp_path / "a", *overrides, before=in_small_batches) == 0
    expected, written = outcome(tmp_path / "a"), files(tmp_path / "a")
    shutil.rmtree(tmp_path / "a/runs")  # the logits stay: now it is warm
    assert run(tmp_path / "a", *overrides, before=no_computing) == 0
    assert outcome(tmp_path / "a") == expected
    for number, done in ((signal.SIGKILL, 3), (signal.SIGTERM, 7)):  # 2 views of 60 images are 8 batches, 9 steps 9
        code = run(tmp_path / "b", *overrides, before=send_while_computing(number, 4))
        assert code == (-number if number == signal.SIGKILL else 128 + number)
        (progress,) = (tmp_path / "b").glob(".cached_logits/*/progress.json")
        assert json.loads(progress.read_text())["batches"] == done
        assert not files(tmp_path / "b")
    assert run(tmp_path / "b", *overrides, before=in_small_batches) == 0
    assert files(tmp_path / "b") == written
    assert outcome(tmp_path / "b") == expected


def test_a_student_killed_among_its_steps_ends_with_the_same_weights(cold, tmp_path):
    from helpers.traps import kill_after

    for step in (3, 7):
        assert run(tmp_path, *DISTILLATION, before=kill_after("student", step)) == -signal.SIGKILL
    assert run(tmp_path, *DISTILLATION) == 0
    assert outcome(tmp_path) == outcome(cold)


def test_workers_change_nothing_in_what_is_kept(cold, tmp_path):
    assert run(tmp_path, *DISTILLATION, "data.num_workers=2") == 0
    assert outcome(tmp_path) == outcome(cold)
    assert files(tmp_path) == files(cold)


def test_runs_that_only_learn_otherwise_share_the_cache(cold, tmp_path):
    shutil.copytree(cold / ".cached_logits", tmp_path / ".cached_logits")
    assert run(tmp_path, *DISTILLATION, "strategy.alpha=0.5", "strategy.temperature=2", before=no_computing) == 0
    for other in ("augmentation=flip", "strategy.cached_views=3", "strategy.teacher_logits=passes", "seed=1"):
        before = len(files(tmp_path))
        assert run(tmp_path, *DISTILLATION, other) == 0
        assert len(files(tmp_path)) == before + 1, other


def test_logits_of_images_without_augmentation_need_one_view(tmp_path):
    assert run(tmp_path, *DISTILLATION, "augmentation=none") == 0
    (file,) = tmp_path.glob(f".cached_logits/*/{LOGITS_FILE}")
    assert len(np.load(file)) == 60


def test_logits_of_images_without_augmentation_serve_every_seed(tmp_path):
    assert run(tmp_path, *DISTILLATION, "augmentation=none", "strategy.control=false") == 0
    (teacher,) = tmp_path.glob("runs/*/stages/1-teacher/checkpoints/final.ckpt")
    given = (*DISTILLATION, "augmentation=none", "strategy.control=false", f"strategy.teachers=[{teacher}]")
    assert run(tmp_path, *given, before=no_computing) == 0
    assert run(tmp_path, *given, "seed=1", "data.split_seed=0", before=no_computing) == 0


def test_keys_that_change_nothing_do_not_make_another_run():
    def named(*overrides: str) -> Path:
        return run_path(compose(["strategy=distillation", *overrides]), "")

    assert named() != named("strategy.cached_views=3")
    for base, *others in (
        ("augmentation=none", "strategy.cached_views=3", "strategy.teacher_logits=passes"),
        ("strategy.teacher_logits=live", "strategy.cached_views=3"),
        ("strategy.teacher_logits=passes", "strategy.cached_views=3"),
        ("augmentation=cutmix", "strategy.cached_views=3", "strategy.teacher_logits=passes"),
        ("strategy.target_type=hard", "strategy.temperature=3"),
    ):
        for other in others:
            assert named(base) == named(base, other), (base, other)
            if base != "strategy.target_type=hard":
                assert named(base, "strategy.temperature=3") != named(base)


def test_damaged_logits_are_computed_again_and_it_is_said(cold, tmp_path, capfd):
    shutil.copytree(cold / ".cached_logits", tmp_path / ".cached_logits")
    (file,) = tmp_path.glob(f".cached_logits/*/{LOGITS_FILE}")
    np.load(file, mmap_mode="r+")["values"][:] = np.float16(0)
    assert run(tmp_path, *DISTILLATION) == 0
    assert "holds other logits than those of stage student's teacher: computed again" in capfd.readouterr().err
    assert files(tmp_path) == files(cold)
    assert outcome(tmp_path) == outcome(cold)


def test_a_second_process_waits_for_the_first_and_says_so(cold, tmp_path, capfd):
    shutil.copytree(cold / ".cached_logits", tmp_path / ".cached_logits")
    (folder,) = (path for path in (tmp_path / ".cached_logits").iterdir() if path.is_dir())
    lock = FileLock(folder.with_suffix(".lock"), thread_local=False)
    lock.acquire()
    waiting, waits = os.pipe()

    def tell_that_it_waits() -> None:
        no_computing()
        teacher_cache.POLL_SECONDS = 0.05
        say = Observer.say

        def said(self, line):
            say(self, line)
            if "waiting for it" in line:
                os.write(waits, b"!")

        Observer.say = said

    def release() -> None:
        os.read(waiting, 1)
        lock.release()

    first = threading.Thread(target=release, daemon=True)
    first.start()
    assert run(tmp_path, *DISTILLATION, before=tell_that_it_waits) == 0
    first.join()
    assert capfd.readouterr().err.count("another process computes the same logits; waiting for it") == 1
    assert outcome(tmp_path) == outcome(cold)


def test_mixed_images_are_answered_as_they_are_mixed(tmp_path, capfd):
    """Kept for every step, though views were asked for; the student's loss is the one that a live teacher gives."""
    mixing = (*DISTILLATION, "augmentation=cutmix_mixup", "strategy.alpha=0")
    assert run(tmp_path / "kept", *mixing) == 0
    assert "the teacher's logits are cached for every step, not for views that repeat" in capfd.readouterr().err
    assert run(tmp_path / "live", *mixing, "strategy.teacher_logits=live") == 0
    kept, live = (outcome(tmp_path / name)["tables"]["stages/2-student/metrics.csv"] for name in ("kept", "live"))
    assert not (tmp_path / "live/.cached_logits").exists()
    for ours, theirs in zip(kept, live, strict=True):
        for name in ("train/loss", "train/kl"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=0.02)


@pytest.mark.parametrize(
    ("logits", "in_lower", "right"),
    [
        ([20.0, 19.0, 0.0], [20.5, 18.5, 0.1], False),  # within a tenth of each logit, and other probabilities
        ([20.0, 19.0, 0.0], [20.01, 19.0, 0.1], True),
        ([0.01, 0.0, -9.0], [0.0, 0.01, -9.0], True),  # a near-tie
        ([0.2, 0.0, *[0.1] * 98], [0.0, 0.2, *[0.1] * 98], False),  # near probabilities, another answer
        ([1.0, 0.0, 0.0], [float("nan")] * 3, False),
    ],
)
def test_a_lower_precision_is_right_where_it_gives_the_same_probabilities_and_predictions(logits, in_lower, right):
    class Predictions:
        autocast_dtype = None

        def __call__(self, images):
            return torch.tensor([logits if self.autocast_dtype is None else in_lower])

    data = SimpleNamespace(
        splits=SimpleNamespace(labelled=np.arange(3)),
        eval_dataloader=lambda indices: [SimpleNamespace(images=torch.zeros(1, 1, 2, 2))],
    )
    this = SimpleNamespace(data=data, device=torch.device("cpu"))
    assert teachers._is_precise(this, Predictions(), torch.float16) is right


def test_logits_that_are_no_numbers_end_in_a_line(outputs, capfd):
    def broken() -> None:
        from tutelage.models import Teacher

        answer = Teacher.__call__
        Teacher.__call__ = lambda self, images: answer(self, images) / 0

    assert run(outputs, *DISTILLATION, before=broken) == 70
    assert "stage student: the teacher's logits are not finite" in capfd.readouterr().err
