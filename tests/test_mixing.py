"""CutMix and MixUp: pixels and labels are mixed alike, by the key and the step alone."""

import math
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.nn import functional
from torchvision.transforms import v2

from helpers.forks import call_in_fork
from helpers.runs import only_run, outcome, run, tables
from tutelage.augmentation import Mixing, draw_mixing, mix_batch
from tutelage.config import MixConfig
from tutelage.config.compose import compose
from tutelage.data import EvalBatch, StageData, Stream, StreamBatch, data_module
from tutelage.errors import UserError
from tutelage.models import accuracy
from tutelage.randomness import Key
from tutelage.testing import kill_after

KEY = Key(7, "supervised", "labelled")
CUTMIX, MIXUP = MixConfig(cutmix=1), MixConfig(mixup=1)
NEGLIGIBLE = 1e-4  # a probability; draws are fixed by their keys, so a test that passes goes on passing


def make_config(kind: str, **changes) -> MixConfig:
    return MixConfig(**dict.fromkeys(kind.split("+"), 1), **changes)


def make_batch(count: int, channels: int = 3, height: int = 6, width: int = 5, classes: int = 4):
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, classes, (count,), generator=generator)


def make_mixing(label_weights, blend, boxes) -> Mixing:
    return Mixing(
        np.array(label_weights, dtype=np.float32), np.array(blend, dtype=np.float32), np.array(boxes, dtype=np.int64)
    )


def test_cutmix_pastes_a_box_of_the_next_image_and_weighs_labels_by_pixels():
    images = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1, 1).repeat(1, 1, 2, 4)
    mixing = make_mixing([0.75, 1, 0], [1, 1, 1], [[0, 2, 1, 4], [1, 1, 1, 1], [0, 0, 2, 4]])
    pixels, weights = mix_batch(images, torch.tensor([0, 1, 2]), mixing, 3)
    assert pixels[:, 0].tolist() == [
        [[10, 10, 20, 20], [10, 10, 10, 10]],
        [[20, 20, 20, 20], [20, 20, 20, 20]],
        [[10, 10, 10, 10], [10, 10, 10, 10]],  # the last one's partner is the first
    ]
    assert weights.tolist() == [[0.75, 0.25, 0], [0, 1, 0], [1, 0, 0]]
    assert weights.dtype == torch.float32


def test_mixup_blends_images_and_rounds_to_the_nearest_value():
    images = torch.tensor([[0, 255], [100, 3], [7, 8]], dtype=torch.uint8).view(3, 1, 1, 2)
    mixing = make_mixing([0.75, 0.5, 1], [0.75, 0.5, 1], [[0, 0, 0, 0]] * 3)
    pixels, weights = mix_batch(images, torch.tensor([2, 0, 0]), mixing, 3)
    assert pixels[0].flatten().tolist() == [25, 192]  # 25 and 192.0
    assert pixels[1].flatten().tolist() in ([53, 5], [54, 6], [54, 5], [53, 6])  # 53.5 and 5.5 are as near to both
    assert pixels[2].flatten().tolist() == [7, 8]
    assert weights.tolist() == [[0.25, 0, 0.75], [1, 0, 0], [1, 0, 0]]


@given(
    st.integers(2, 40),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**40),
    st.sampled_from(["batch", "sample"]),
    st.sampled_from([0.1, 1.0, 5.0]),
)
def test_cutmixs_label_weights_are_the_counted_fractions_of_pixels(count, height, width, step, per, alpha):
    """Each image has its own colour and class, so the pixels of each image can be counted."""
    images = torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1).repeat(1, 3, height, width)
    mixing = draw_mixing(MixConfig(cutmix=alpha, per=per), KEY, step, count, height, width)
    pixels, weights = mix_batch(images, torch.arange(count), mixing, count)
    for i in range(count):
        pixel_counts = np.bincount(pixels[i, 0].flatten(), minlength=count)
        assert set(np.flatnonzero(pixel_counts)) <= {i, (i + 1) % count}
        assert (pixels[i] == pixels[i, :1]).all()  # the same in every channel
        assert weights[i].numpy() == pytest.approx(pixel_counts / (height * width), abs=1e-7)


@given(st.integers(2, 20), st.integers(0, 2**40), st.sampled_from(["batch", "sample"]), st.sampled_from([0.1, 1.0]))
def test_mixups_pixels_are_rounded_sums_with_the_label_weights(count, step, per, alpha):
    images, labels = make_batch(count)
    mixing = draw_mixing(MixConfig(mixup=alpha, per=per), KEY, step, count, 6, 5)
    pixels, weights = mix_batch(images, labels, mixing, 4)
    weight = mixing.label_weights.astype(np.float64)[:, None, None, None]
    exact = weight * images.numpy() + (1 - weight) * images.roll(-1, 0).numpy()
    assert np.abs(pixels.numpy() - exact).max() <= 0.5
    one_hot = np.eye(4)[labels.numpy()]
    assert weights.numpy() == pytest.approx(
        weight[..., 0, 0] * one_hot + (1 - weight[..., 0, 0]) * np.roll(one_hot, -1, 0), abs=1e-7
    )


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("step", range(5))
def test_cutmix_with_the_same_box_equals_torchvisions(step, soft, monkeypatch):
    images, labels = make_batch(9, height=17, width=23)
    targets = torch.rand(9, 4).softmax(dim=1) if soft else labels
    mixing = draw_mixing(CUTMIX, KEY, step, 9, 17, 23)
    top, left, bottom, right = mixing.boxes[0].tolist()
    params = {"box": (left, top, right, bottom), "lam_adjusted": float(mixing.label_weights[0])}
    monkeypatch.setattr(v2.CutMix, "make_params", lambda *_: params)
    # torchvision's partner is the image before: the same batch, back to front
    expected, expected_targets = v2.CutMix(num_classes=4)(images.flip(0), targets.flip(0))
    pixels, weights = mix_batch(images, targets, mixing, 4)
    assert torch.equal(pixels, expected.flip(0))
    torch.testing.assert_close(weights, expected_targets.flip(0))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("step", range(5))
def test_mixup_with_the_same_weight_equals_torchvisions(step, soft, monkeypatch):
    images, labels = make_batch(9)
    targets = torch.rand(9, 4).softmax(dim=1) if soft else labels
    mixing = draw_mixing(MIXUP, KEY, step, 9, 6, 5)
    monkeypatch.setattr(v2.MixUp, "make_params", lambda *_: {"lam": float(mixing.pixel_weights[0])})
    expected, expected_targets = v2.MixUp(num_classes=4)(images.flip(0).double(), targets.flip(0))
    pixels, weights = mix_batch(images, targets, mixing, 4)
    assert (pixels - expected.flip(0)).abs().max() <= 0.5
    torch.testing.assert_close(weights, expected_targets.flip(0))


@pytest.mark.parametrize("alpha", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_mixups_weights_are_beta_distributed(alpha, per):
    config, count = MixConfig(mixup=alpha, per=per), 4000
    if per == "sample":
        lambdas = draw_mixing(config, KEY, 0, count, 8, 8).pixel_weights
    else:
        lambdas = [draw_mixing(config, KEY, step, 1, 8, 8).pixel_weights[0] for step in range(count)]
    assert stats.kstest(lambdas, stats.beta(alpha, alpha).cdf).pvalue > NEGLIGIBLE


@pytest.mark.parametrize("alpha", [0.4, 1.0, 3.0])
def test_cutmixs_boxes_are_distributed_as_torchvisions(alpha):
    count, side = 4000, 1000  # so many pixels that rounding to whole ones does not show
    cutmix = draw_mixing(MixConfig(cutmix=alpha, per="sample"), KEY, 0, count, side, side)
    torch.manual_seed(0)
    reference, canvas = v2.CutMix(alpha=alpha, num_classes=2), [torch.empty(1, 1, side, side)]
    torchvision_params = [reference.make_params(canvas) for _ in range(count)]
    assert (
        stats.ks_2samp(cutmix.label_weights, [draw["lam_adjusted"] for draw in torchvision_params]).pvalue > NEGLIGIBLE
    )
    for edge, position in zip(("top", "left", "bottom", "right"), (1, 0, 3, 2), strict=True):
        index = ("top", "left", "bottom", "right").index(edge)
        assert (
            stats.ks_2samp(cutmix.boxes[:, index], [p["box"][position] for p in torchvision_params]).pvalue > NEGLIGIBLE
        ), edge


def test_the_same_box_is_drawn_at_any_size_to_the_nearest_pixel():
    config = MixConfig(cutmix=1, per="sample")
    small, large = draw_mixing(config, KEY, 0, 1000, 7, 11).boxes, draw_mixing(config, KEY, 0, 1000, 7000, 11000).boxes
    assert np.abs(small - large / 1000).max() <= 0.501
    assert len(np.unique(small, axis=0)) > 300


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize(("probability", "switch"), [(0.5, 0.5), (0.2, 0.9), (1.0, 0.0), (1.0, 1.0), (0.0, 0.5)])
def test_mixing_is_applied_and_switches_methods_with_the_configured_probabilities(probability, switch, per):
    config, count = MixConfig(cutmix=1, mixup=1, probability=probability, switch=switch, per=per), 4000
    mixings = [draw_mixing(config, KEY, 0, count, 64, 64)]
    if per == "batch":
        mixings = [draw_mixing(config, KEY, step, 1, 64, 64) for step in range(count)]
    boxes = np.concatenate([mixing.boxes for mixing in mixings])
    cut = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    blended = np.concatenate([mixing.pixel_weights for mixing in mixings]) < 1
    assert not (cut & blended).any()
    assert (np.concatenate([mixing.label_weights for mixing in mixings])[~cut & ~blended] == 1).all()
    for times, chance in ((cut.sum(), probability * switch), (blended.sum(), probability * (1 - switch))):
        assert abs(times / count - chance) <= 4 * math.sqrt(chance * (1 - chance) / count) + 1e-3, chance


@pytest.mark.parametrize("kind", ["cutmix", "mixup", "cutmix+mixup"])
def test_a_draw_is_for_the_batch_or_for_each_sample(kind):
    per_batch, per_sample = (draw_mixing(make_config(kind, per=per), KEY, 0, 32, 28, 28) for per in ("batch", "sample"))
    assert len(np.unique(np.column_stack(per_batch), axis=0)) == 1
    assert len(np.unique(np.column_stack(per_sample), axis=0)) > 16


def test_a_mixing_depends_on_key_step_and_size_alone():
    config = make_config("cutmix+mixup", per="sample")
    first = draw_mixing(config, KEY, 5, 31, 28, 28)
    np.random.seed(3)
    torch.manual_seed(3)
    draw_mixing(CUTMIX, KEY, 4, 8, 9, 9)
    assert all(np.array_equal(a, b) for a, b in zip(first, draw_mixing(config, KEY, 5, 31, 28, 28), strict=True))
    different = [
        draw_mixing(config, KEY, 6, 31, 28, 28),
        draw_mixing(config, Key(8, "supervised", "labelled"), 5, 31, 28, 28),
        draw_mixing(config, Key(7, "student-1", "labelled"), 5, 31, 28, 28),
        draw_mixing(config, Key(7, "supervised", "pool"), 5, 31, 28, 28),
    ]
    assert len({mixing.label_weights.tobytes() for mixing in (first, *different)}) == 5


@pytest.mark.parametrize("kind", ["cutmix", "mixup", "cutmix+mixup"])
def test_an_image_alone_in_its_batch_is_its_own_partner_and_nothing_changes(kind):
    for step in range(20):
        images, labels = make_batch(1)
        pixels, weights = mix_batch(images, labels, draw_mixing(make_config(kind), KEY, step, 1, 6, 5), 4)
        assert torch.equal(pixels, images)
        assert torch.equal(weights, functional.one_hot(labels, 4).float())


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_images_of_one_pixel_are_mixed_too(kind):
    images = torch.tensor([0, 200, 100], dtype=torch.uint8).view(3, 1, 1, 1)
    values = set()
    for step in range(50):
        pixels, weights = mix_batch(images, torch.arange(3), draw_mixing(make_config(kind), KEY, step, 3, 1, 1), 3)
        assert weights.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
        assert pixels.flatten().numpy() == pytest.approx((weights @ torch.tensor([0.0, 200, 100])).numpy(), abs=0.5001)
        values.add(int(pixels[0]))
    assert values == {0, 200} if kind == "cutmix" else len(values) > 20


@pytest.mark.parametrize("kind", ["cutmix", "mixup", "cutmix+mixup"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_layout_in_memory_is_kept_and_changes_no_value(kind, channels):
    images, labels = make_batch(7, channels)
    mixing = draw_mixing(make_config(kind, per="sample"), KEY, 0, 7, 6, 5)
    plain, _ = mix_batch(images, labels, mixing, 4)
    channels_last = torch.from_numpy(np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())).permute(0, 3, 1, 2)
    pixels, _ = mix_batch(channels_last, labels, mixing, 4)
    assert plain.is_contiguous()
    assert pixels.stride() == channels_last.stride()
    assert torch.equal(pixels, plain)
    assert not torch.equal(pixels, images)


@pytest.mark.parametrize("soft", [False, True])
def test_mixed_targets_sum_to_one_and_the_inputs_are_not_changed(soft):
    images, labels = make_batch(13)
    targets = torch.rand(13, 4, generator=torch.Generator().manual_seed(0)).softmax(dim=1) if soft else labels
    originals = images.clone(), targets.clone()
    for step in range(20):
        _, weights = mix_batch(
            images, targets, draw_mixing(make_config("cutmix+mixup", per="sample"), KEY, step, 13, 6, 5), 4
        )
        assert (weights.shape, weights.dtype) == ((13, 4), torch.float32)
        assert weights.sum(dim=1).tolist() == pytest.approx([1.0] * 13)
        assert float(weights.min()) >= 0
    assert torch.equal(images, originals[0])
    assert torch.equal(targets, originals[1])


def test_each_view_is_mixed_with_the_same_view_of_the_partner():
    first, labels = make_batch(5)
    second = 255 - first
    mixing = draw_mixing(make_config("cutmix+mixup", per="sample"), KEY, 1, 5, 6, 5)
    pixels, weights = mix_batch(torch.cat([first, second]), labels.repeat(2), mixing, 4)
    for part, view in enumerate((first, second)):
        alone, alone_weights = mix_batch(view, labels, mixing, 4)
        assert torch.equal(pixels[5 * part : 5 * part + 5], alone)
        assert torch.equal(weights[5 * part : 5 * part + 5], alone_weights)


def test_mixing_does_not_synchronise_with_the_device():
    """Tensors of the meta device hold no values, so code that reads one fails."""
    images, labels = make_batch(6)
    mixing = draw_mixing(make_config("cutmix+mixup", per="sample"), KEY, 0, 6, 6, 5)
    on_meta = Mixing(*(part.to("meta") for part in mixing.tensors()))
    for targets in (labels, torch.rand(6, 4)):
        pixels, weights = mix_batch(images.to("meta"), targets.to("meta"), on_meta, 4)
        assert (pixels.device.type, weights.device.type) == ("meta", "meta")
        assert (pixels.shape, pixels.dtype) == (images.shape, torch.uint8)
        assert (weights.shape, weights.dtype) == ((6, 4), torch.float32)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bytes_without_synchronisation():
    """Run in a fork, since forks of other tests could not use a GPU that this process has initialised."""

    def work() -> int:
        images, labels = make_batch(31, height=28, width=28)
        for step in range(10):
            mixing = draw_mixing(make_config("cutmix+mixup", per="sample"), KEY, step, 31, 28, 28)
            expected = mix_batch(images, labels, mixing, 4)
            mixing_on_gpu = Mixing(*(part.cuda() for part in mixing.tensors()))
            on_gpu = images.cuda(), labels.cuda()
            torch.cuda.set_sync_debug_mode("error")
            try:
                mixed = mix_batch(*on_gpu, mixing_on_gpu, 4)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert all(torch.equal(a.cpu(), b) for a, b in zip(mixed, expected, strict=True))
        return 0

    assert call_in_fork(work) == 0


def test_a_prediction_counts_as_much_as_its_class_weighs_in_the_target():
    logits = torch.tensor([[3.0, 1, 0], [0, 2, 1], [0, 0, 5], [1, 0, 0]])
    assert float(accuracy(logits, torch.tensor([0, 1, 1, 0]))) == 0.75
    weights = torch.tensor([[0.75, 0.25, 0], [0.5, 0.5, 0], [1, 0, 0], [0, 0.5, 0.5]])
    assert float(accuracy(logits, weights)) == (0.75 + 0.5 + 0 + 0) / 4
    one_hot = functional.one_hot(torch.tensor([0, 1, 1, 0]), 3).float()
    assert float(accuracy(logits, one_hot)) == 0.75


STRONGER = [{"_target_": "tutelage.augmentation.RandAugment", "num_ops": 2, "magnitude": 20}]


def stage_data(mix: MixConfig | None, strong: list | None = None) -> StageData:
    labels = np.arange(40) % 10
    soft = np.random.default_rng(0).dirichlet(np.ones(10), 60).astype(np.float32)
    streams = [Stream("labelled", np.arange(40), labels, 5), Stream("pool", np.arange(40, 100), soft, 8)]
    return StageData(streams, [], lambda stream: Key(0, "student-1", stream), steps=6, mix=mix, strong=strong or [])


def read_batches(
    mix: MixConfig | None, workers: int = 0, global_step: int = 0, strong: list | None = None
) -> list[dict[str, StreamBatch]]:
    """Return the training batches of a stage as strategies receive them."""
    module = data_module(compose(["data=digits", f"data.num_workers={workers}"]).data)
    module.begin_stage(stage_data(mix, strong))
    module.trainer = SimpleNamespace(global_step=global_step)
    return [module.on_after_batch_transfer(batch, 0) for batch in module.train_dataloader()]


def test_each_streams_batch_is_mixed_within_itself():
    plain_batches, mixed = read_batches(None), read_batches(make_config("mixup"))
    for step, (plain_batch, mixed_batch) in enumerate(zip(plain_batches, mixed, strict=True)):
        assert plain_batch["labelled"].targets.dtype == torch.int64
        for name, stream_batch in mixed_batch.items():
            assert isinstance(stream_batch, StreamBatch)
            count, _, height, width = plain_batch[name].images.shape
            mixing = draw_mixing(make_config("mixup"), Key(0, "student-1", name), step, count, height, width)
            images, targets = mix_batch(*plain_batch[name][:2], mixing, 10)
            assert torch.equal(stream_batch.images, images)
            assert torch.equal(stream_batch.targets, targets)
        assert not torch.equal(mixed_batch["pool"].targets, plain_batch["pool"].targets)


def test_two_views_of_an_image_are_mixed_alike():
    mix = make_config("cutmix+mixup", per="sample")
    weak, two_views = read_batches(mix), read_batches(mix, strong=STRONGER)
    for weak_batch, views in zip(weak, two_views, strict=True):
        for name, (images, targets, _) in weak_batch.items():
            assert torch.equal(views[name].images[: len(images)], images)
            assert len(views[name].images) == 2 * len(images)
            assert torch.equal(views[name].targets, torch.cat([targets, targets]))


def test_batches_do_not_depend_on_workers_or_on_a_resume():
    mix = make_config("cutmix+mixup", per="sample", probability=0.8)
    expected = read_batches(mix)
    for resumed in (read_batches(mix, workers=2), read_batches(mix, global_step=2)):
        for expected_batch, batch in zip(expected[-len(resumed) :], resumed, strict=True):
            for name in expected_batch:
                assert all(torch.equal(a, b) for a, b in zip(expected_batch[name][:2], batch[name][:2], strict=True))


def test_batches_of_evaluation_are_never_mixed():
    module = data_module(compose(["data=digits"]).data)
    module.begin_stage(stage_data(CUTMIX))
    (batch, *_) = module.eval_dataloader(np.arange(20), 20)
    assert isinstance(batch, EvalBatch)
    assert module.on_after_batch_transfer(batch, 0) is batch


MIXED = (
    "augmentation=cutmix_mixup",
    "augmentation.mix.probability=0.8",
    "strategy=noisy_student",
    "strategy.students=[{}]",
    "strategy.unlabelled_ratio=2",
    "data.balance=weights",
    "data.labels=20%",
    "data.limit=120",
    "data.batch_size=7",
    "data.validation=outside:30",
    "schedule.epochs=null",
    "schedule.steps=6",
)


@pytest.mark.slow
def test_a_killed_run_that_mixes_ends_with_the_same_weights_and_tables(outputs):
    assert run(outputs / "a", *MIXED) == 0
    for stage, step in (("teacher", 2), ("student-1", 1), ("student-1", 5)):
        assert run(outputs / "b", *MIXED, "data.num_workers=2", before=kill_after(stage, step)) == -signal.SIGKILL
    assert run(outputs / "b", *MIXED) == 0
    assert outcome(outputs / "a") == outcome(outputs / "b")


def test_a_run_mixes_each_training_batch_once_and_no_other(outputs):
    steps = {"teacher": 6, "student-1": 6, "control": 12}

    def count() -> None:
        from tutelage.data.loading import batches

        original = batches.mix_batch

        def mix_and_note(images, *rest):
            with (outputs / "mixed").open("a") as file:
                file.write(f"{len(images)}\n")
            return original(images, *rest)

        outputs.mkdir()
        batches.mix_batch = mix_and_note

    assert run(outputs, *MIXED, before=count) == 0
    labelled, pool = [7] * sum(steps.values()), [14] * steps["student-1"]
    assert sorted(map(int, (outputs / "mixed").read_text().split())) == labelled + pool


def test_mixing_changes_the_loss_and_weighs_predictions_in_the_accuracy(outputs):
    small = ("debug=tiny", "augmentation=cutmix_mixup", "augmentation.mix.per=sample")
    assert run(outputs / "mixed", *small) == 0
    assert run(outputs / "plain", *small, "augmentation.mix=null") == 0
    (mixed_rows,), (plain_rows,) = (tables(only_run(outputs / name)).values() for name in ("mixed", "plain"))
    assert mixed_rows[0]["train/loss"] != plain_rows[0]["train/loss"]
    assert float(plain_rows[0]["train/accuracy"]) * 32 % 1 == pytest.approx(0)  # 4 steps of 8 images, whole answers
    assert float(mixed_rows[0]["train/accuracy"]) * 32 % 1 != pytest.approx(0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["augmentation=cutmix", "augmentation.mix.cutmix=0"],
            "augmentation.mix: cutmix=0 and mixup=0 mix nothing",
        ),
        (
            ["augmentation=mixup", "augmentation.mix.mixup=-1"],
            "augmentation.mix.mixup=-1: input should be greater",
        ),
        (
            ["augmentation=cutmix", "augmentation.mix.per=pixel"],
            "augmentation.mix.per=pixel: input should be 'batch'",
        ),
        (
            ["augmentation=cutmix", "augmentation.mix.probability=2"],
            "mix.probability=2: input should be less",
        ),
        (["augmentation=cutmix", "augmentation.mix.swich=1"], "did you mean 'augmentation.mix.switch'?"),
    ],
)
def test_an_invalid_mix_is_an_error_of_one_line(overrides, message):
    with pytest.raises(UserError) as refused:
        compose(overrides)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_mixing_enters_the_identity_and_keeps_the_basic_transforms():
    from tutelage.runs import run_identity

    basic, cutmix, mixup = (compose([f"augmentation={name}"]) for name in ("basic", "cutmix", "mixup"))
    assert basic.augmentation.transforms == cutmix.augmentation.transforms == mixup.augmentation.transforms
    assert "mix" not in run_identity(basic, "")["augmentation"]
    assert run_identity(cutmix, "")["augmentation"]["mix"] == {"cutmix": 1, "probability": 0.5}
    assert run_identity(mixup, "")["augmentation"]["mix"] == {"mixup": 0.2}


def test_nearest_neighbours_store_unmixed_images(outputs):
    small = ("model=nearest_neighbours", "debug=tiny")
    assert run(outputs / "mixed", *small, "augmentation=cutmix") == 0
    assert run(outputs / "plain", *small, "augmentation=none") == 0
    hashes = [outcome(outputs / name)["stages"][0]["weights_sha256"] for name in ("mixed", "plain")]
    assert hashes[0] == hashes[1]
