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
from helpers.traps import kill_after
from tutelage.augmentation import Mixing, draw_mixing, mix_batch
from tutelage.config import MixConfig
from tutelage.config.compose import compose
from tutelage.data import EvalBatch, StageData, Stream, StreamBatch, data_module
from tutelage.errors import UserError
from tutelage.models import accuracy
from tutelage.randomness import Key

KEY = Key(7, "supervised", "labelled")
CUTMIX, MIXUP = MixConfig(cutmix=1), MixConfig(mixup=1)
NEGLIGIBLE = 1e-4  # a probability; draws are fixed by their keys, so a test that passes goes on passing


def config_of(kind: str, **changes) -> MixConfig:
    return MixConfig(**dict.fromkeys(kind.split("+"), 1), **changes)


def batch_of(count: int, channels: int = 3, height: int = 6, width: int = 5, classes: int = 4):
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, classes, (count,), generator=generator)


def by_hand(own, blend, boxes) -> Mixing:
    return Mixing(np.array(own, dtype=np.float32), np.array(blend, dtype=np.float32), np.array(boxes, dtype=np.int64))


def test_by_hand_cutmix_pastes_the_next_image_and_counts_its_pixels():
    images = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1, 1).repeat(1, 1, 2, 4)
    drawn = by_hand([0.75, 1, 0], [1, 1, 1], [[0, 2, 1, 4], [1, 1, 1, 1], [0, 0, 2, 4]])
    pixels, weights = mix_batch(images, torch.tensor([0, 1, 2]), drawn, 3)
    assert pixels[:, 0].tolist() == [
        [[10, 10, 20, 20], [10, 10, 10, 10]],
        [[20, 20, 20, 20], [20, 20, 20, 20]],
        [[10, 10, 10, 10], [10, 10, 10, 10]],  # the last one's partner is the first
    ]
    assert weights.tolist() == [[0.75, 0.25, 0], [0, 1, 0], [1, 0, 0]]
    assert weights.dtype == torch.float32


def test_by_hand_mixup_blends_to_the_nearest_pixel():
    images = torch.tensor([[0, 255], [100, 3], [7, 8]], dtype=torch.uint8).view(3, 1, 1, 2)
    drawn = by_hand([0.75, 0.5, 1], [0.75, 0.5, 1], [[0, 0, 0, 0]] * 3)
    pixels, weights = mix_batch(images, torch.tensor([2, 0, 0]), drawn, 3)
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
def test_what_labels_weigh_is_the_share_of_pixels_counted(count, height, width, step, per, alpha):
    """Each image of a colour and a class of its own: what is left of the colour can be counted."""
    images = torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1).repeat(1, 3, height, width)
    drawn = draw_mixing(MixConfig(cutmix=alpha, per=per), KEY, step, count, height, width)
    pixels, weights = mix_batch(images, torch.arange(count), drawn, count)
    for i in range(count):
        counted = np.bincount(pixels[i, 0].flatten(), minlength=count)
        assert set(np.flatnonzero(counted)) <= {i, (i + 1) % count}
        assert (pixels[i] == pixels[i, :1]).all()  # the same in every channel
        assert weights[i].numpy() == pytest.approx(counted / (height * width), abs=1e-7)


@given(st.integers(2, 20), st.integers(0, 2**40), st.sampled_from(["batch", "sample"]), st.sampled_from([0.1, 1.0]))
def test_blended_pixels_are_the_nearest_to_what_labels_weigh(count, step, per, alpha):
    images, labels = batch_of(count)
    drawn = draw_mixing(MixConfig(mixup=alpha, per=per), KEY, step, count, 6, 5)
    pixels, weights = mix_batch(images, labels, drawn, 4)
    share = drawn.label_weights.astype(np.float64)[:, None, None, None]
    exact = share * images.numpy() + (1 - share) * images.roll(-1, 0).numpy()
    assert np.abs(pixels.numpy() - exact).max() <= 0.5
    one_hot = np.eye(4)[labels.numpy()]
    assert weights.numpy() == pytest.approx(
        share[..., 0, 0] * one_hot + (1 - share[..., 0, 0]) * np.roll(one_hot, -1, 0), abs=1e-7
    )


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("step", range(5))
def test_cutmix_is_torchvisions_given_the_same_box(step, soft, monkeypatch):
    images, labels = batch_of(9, height=17, width=23)
    targets = torch.rand(9, 4).softmax(dim=1) if soft else labels
    drawn = draw_mixing(CUTMIX, KEY, step, 9, 17, 23)
    top, left, bottom, right = drawn.boxes[0].tolist()
    given_box = {"box": (left, top, right, bottom), "lam_adjusted": float(drawn.label_weights[0])}
    monkeypatch.setattr(v2.CutMix, "make_params", lambda *_: given_box)
    # torchvision's partner is the image before: the same batch, back to front
    expected, expected_targets = v2.CutMix(num_classes=4)(images.flip(0), targets.flip(0))
    pixels, weights = mix_batch(images, targets, drawn, 4)
    assert torch.equal(pixels, expected.flip(0))
    torch.testing.assert_close(weights, expected_targets.flip(0))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("step", range(5))
def test_mixup_is_torchvisions_given_the_same_share(step, soft, monkeypatch):
    images, labels = batch_of(9)
    targets = torch.rand(9, 4).softmax(dim=1) if soft else labels
    drawn = draw_mixing(MIXUP, KEY, step, 9, 6, 5)
    monkeypatch.setattr(v2.MixUp, "make_params", lambda *_: {"lam": float(drawn.pixel_weights[0])})
    expected, expected_targets = v2.MixUp(num_classes=4)(images.flip(0).double(), targets.flip(0))
    pixels, weights = mix_batch(images, targets, drawn, 4)
    assert (pixels - expected.flip(0)).abs().max() <= 0.5
    torch.testing.assert_close(weights, expected_targets.flip(0))


@pytest.mark.parametrize("alpha", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_shares_of_mixup_are_beta_distributed(alpha, per):
    config, count = MixConfig(mixup=alpha, per=per), 4000
    if per == "sample":
        shares = draw_mixing(config, KEY, 0, count, 8, 8).pixel_weights
    else:
        shares = [draw_mixing(config, KEY, step, 1, 8, 8).pixel_weights[0] for step in range(count)]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > NEGLIGIBLE


@pytest.mark.parametrize("alpha", [0.4, 1.0, 3.0])
def test_what_cutmix_leaves_of_images_is_distributed_as_torchvisions(alpha):
    count, side = 4000, 1000  # so many pixels that rounding to whole ones does not show
    ours = draw_mixing(MixConfig(cutmix=alpha, per="sample"), KEY, 0, count, side, side)
    torch.manual_seed(0)
    reference, canvas = v2.CutMix(alpha=alpha, num_classes=2), [torch.empty(1, 1, side, side)]
    theirs = [reference.make_params(canvas) for _ in range(count)]
    assert stats.ks_2samp(ours.label_weights, [params["lam_adjusted"] for params in theirs]).pvalue > NEGLIGIBLE
    for edge, place in zip(("top", "left", "bottom", "right"), (1, 0, 3, 2), strict=True):
        index = ("top", "left", "bottom", "right").index(edge)
        assert stats.ks_2samp(ours.boxes[:, index], [p["box"][place] for p in theirs]).pvalue > NEGLIGIBLE, edge


def test_the_same_box_is_drawn_at_any_size_to_the_nearest_pixel():
    config = MixConfig(cutmix=1, per="sample")
    small, large = draw_mixing(config, KEY, 0, 1000, 7, 11).boxes, draw_mixing(config, KEY, 0, 1000, 7000, 11000).boxes
    assert np.abs(small - large / 1000).max() <= 0.501
    assert len(np.unique(small, axis=0)) > 300


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize(("probability", "switch"), [(0.5, 0.5), (0.2, 0.9), (1.0, 0.0), (1.0, 1.0), (0.0, 0.5)])
def test_mixing_fires_and_switches_as_often_as_it_should(probability, switch, per):
    config, count = MixConfig(cutmix=1, mixup=1, probability=probability, switch=switch, per=per), 4000
    plans = [draw_mixing(config, KEY, 0, count, 64, 64)]
    if per == "batch":
        plans = [draw_mixing(config, KEY, step, 1, 64, 64) for step in range(count)]
    boxes = np.concatenate([drawn.boxes for drawn in plans])
    cut = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    blended = np.concatenate([drawn.pixel_weights for drawn in plans]) < 1
    assert not (cut & blended).any()
    assert (np.concatenate([drawn.label_weights for drawn in plans])[~cut & ~blended] == 1).all()
    for times, chance in ((cut.sum(), probability * switch), (blended.sum(), probability * (1 - switch))):
        assert abs(times / count - chance) <= 4 * math.sqrt(chance * (1 - chance) / count) + 1e-3, chance


@pytest.mark.parametrize("kind", ["cutmix", "mixup", "cutmix+mixup"])
def test_a_draw_is_for_the_batch_or_for_each_sample(kind):
    same, each = (draw_mixing(config_of(kind, per=per), KEY, 0, 32, 28, 28) for per in ("batch", "sample"))
    assert len(np.unique(np.column_stack(same), axis=0)) == 1
    assert len(np.unique(np.column_stack(each), axis=0)) > 16


def test_a_plan_follows_from_key_step_and_size_alone():
    config = config_of("cutmix+mixup", per="sample")
    first = draw_mixing(config, KEY, 5, 31, 28, 28)
    np.random.seed(3)
    torch.manual_seed(3)
    draw_mixing(CUTMIX, KEY, 4, 8, 9, 9)
    assert all(np.array_equal(a, b) for a, b in zip(first, draw_mixing(config, KEY, 5, 31, 28, 28), strict=True))
    others = [
        draw_mixing(config, KEY, 6, 31, 28, 28),
        draw_mixing(config, Key(8, "supervised", "labelled"), 5, 31, 28, 28),
        draw_mixing(config, Key(7, "student-1", "labelled"), 5, 31, 28, 28),
        draw_mixing(config, Key(7, "supervised", "pool"), 5, 31, 28, 28),
    ]
    assert len({drawn.label_weights.tobytes() for drawn in (first, *others)}) == 5


@pytest.mark.parametrize("kind", ["cutmix", "mixup", "cutmix+mixup"])
def test_an_image_alone_in_its_batch_is_its_own_partner_and_nothing_changes(kind):
    for step in range(20):
        images, labels = batch_of(1)
        pixels, weights = mix_batch(images, labels, draw_mixing(config_of(kind), KEY, step, 1, 6, 5), 4)
        assert torch.equal(pixels, images)
        assert torch.equal(weights, functional.one_hot(labels, 4).float())


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_images_of_one_pixel_are_mixed_too(kind):
    images = torch.tensor([0, 200, 100], dtype=torch.uint8).view(3, 1, 1, 1)
    seen = set()
    for step in range(50):
        pixels, weights = mix_batch(images, torch.arange(3), draw_mixing(config_of(kind), KEY, step, 3, 1, 1), 3)
        assert weights.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
        assert pixels.flatten().numpy() == pytest.approx((weights @ torch.tensor([0.0, 200, 100])).numpy(), abs=0.5001)
        seen.add(int(pixels[0]))
    assert seen == {0, 200} if kind == "cutmix" else len(seen) > 20


@pytest.mark.parametrize("kind", ["cutmix", "mixup", "cutmix+mixup"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_layout_in_memory_is_kept_and_changes_no_value(kind, channels):
    images, labels = batch_of(7, channels)
    drawn = draw_mixing(config_of(kind, per="sample"), KEY, 0, 7, 6, 5)
    plain, _ = mix_batch(images, labels, drawn, 4)
    last = torch.from_numpy(np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())).permute(0, 3, 1, 2)
    pixels, _ = mix_batch(last, labels, drawn, 4)
    assert plain.is_contiguous()
    assert pixels.stride() == last.stride()
    assert torch.equal(pixels, plain)
    assert not torch.equal(pixels, images)


@pytest.mark.parametrize("soft", [False, True])
def test_rows_of_targets_go_on_summing_to_one_and_what_came_in_is_left_alone(soft):
    images, labels = batch_of(13)
    targets = torch.rand(13, 4, generator=torch.Generator().manual_seed(0)).softmax(dim=1) if soft else labels
    before = images.clone(), targets.clone()
    for step in range(20):
        _, weights = mix_batch(
            images, targets, draw_mixing(config_of("cutmix+mixup", per="sample"), KEY, step, 13, 6, 5), 4
        )
        assert (weights.shape, weights.dtype) == ((13, 4), torch.float32)
        assert weights.sum(dim=1).tolist() == pytest.approx([1.0] * 13)
        assert float(weights.min()) >= 0
    assert torch.equal(images, before[0])
    assert torch.equal(targets, before[1])


def test_of_two_views_each_is_mixed_with_the_same_view_of_the_partner():
    first, labels = batch_of(5)
    second = 255 - first
    drawn = draw_mixing(config_of("cutmix+mixup", per="sample"), KEY, 1, 5, 6, 5)
    pixels, weights = mix_batch(torch.cat([first, second]), labels.repeat(2), drawn, 4)
    for part, view in enumerate((first, second)):
        alone, alone_weights = mix_batch(view, labels, drawn, 4)
        assert torch.equal(pixels[5 * part : 5 * part + 5], alone)
        assert torch.equal(weights[5 * part : 5 * part + 5], alone_weights)


def test_mixing_waits_for_no_device():
    """Tensors of the meta device hold no values: whatever had to look at one would fail."""
    images, labels = batch_of(6)
    drawn = draw_mixing(config_of("cutmix+mixup", per="sample"), KEY, 0, 6, 6, 5)
    there = Mixing(*(part.to("meta") for part in drawn.tensors()))
    for targets in (labels, torch.rand(6, 4)):
        pixels, weights = mix_batch(images.to("meta"), targets.to("meta"), there, 4)
        assert (pixels.device.type, weights.device.type) == ("meta", "meta")
        assert (pixels.shape, pixels.dtype) == (images.shape, torch.uint8)
        assert (weights.shape, weights.dtype) == ((6, 4), torch.float32)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bytes_and_is_not_waited_for():
    """In a fork: those that other tests begin could not use a GPU that this process has started."""

    def work() -> int:
        images, labels = batch_of(31, height=28, width=28)
        for step in range(10):
            drawn = draw_mixing(config_of("cutmix+mixup", per="sample"), KEY, step, 31, 28, 28)
            expected = mix_batch(images, labels, drawn, 4)
            there = Mixing(*(part.cuda() for part in drawn.tensors()))
            on_gpu = images.cuda(), labels.cuda()
            torch.cuda.set_sync_debug_mode("error")
            try:
                found = mix_batch(*on_gpu, there, 4)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))
        return 0

    assert call_in_fork(work) == 0


def test_by_hand_an_answer_is_as_right_as_its_class_weighs():
    logits = torch.tensor([[3.0, 1, 0], [0, 2, 1], [0, 0, 5], [1, 0, 0]])
    assert float(accuracy(logits, torch.tensor([0, 1, 1, 0]))) == 0.75
    weights = torch.tensor([[0.75, 0.25, 0], [0.5, 0.5, 0], [1, 0, 0], [0, 0.5, 0.5]])
    assert float(accuracy(logits, weights)) == (0.75 + 0.5 + 0 + 0) / 4
    one_hot = functional.one_hot(torch.tensor([0, 1, 1, 0]), 3).float()
    assert float(accuracy(logits, one_hot)) == 0.75


STRONGER = [{"_target_": "tutelage.augmentation.RandAugment", "num_ops": 2, "magnitude": 20}]


def training(mix: MixConfig | None, strong: list | None = None) -> StageData:
    labels = np.arange(40) % 10
    soft = np.random.default_rng(0).dirichlet(np.ones(10), 60).astype(np.float32)
    streams = [Stream("labelled", np.arange(40), labels, 5), Stream("pool", np.arange(40, 100), soft, 8)]
    return StageData(streams, [], lambda stream: Key(0, "student-1", stream), steps=6, mix=mix, strong=strong or [])


def batches(
    mix: MixConfig | None, workers: int = 0, done: int = 0, strong: list | None = None
) -> list[dict[str, StreamBatch]]:
    """Return the batches of a stage as strategies see them."""
    module = data_module(compose(["data=digits", f"data.num_workers={workers}"]).data)
    module.begin_stage(training(mix, strong))
    module.trainer = SimpleNamespace(global_step=done)
    return [module.on_after_batch_transfer(batch, 0) for batch in module.train_dataloader()]


def test_each_stream_is_mixed_within_itself_and_others_are_left_as_they_are():
    plain, after = batches(None), batches(config_of("mixup"))
    for step, (before, found) in enumerate(zip(plain, after, strict=True)):
        assert before["labelled"].targets.dtype == torch.int64
        for name, shown in found.items():
            assert isinstance(shown, StreamBatch)
            count, _, height, width = before[name].images.shape
            drawn = draw_mixing(config_of("mixup"), Key(0, "student-1", name), step, count, height, width)
            images, targets = mix_batch(*before[name][:2], drawn, 10)
            assert torch.equal(shown.images, images)
            assert torch.equal(shown.targets, targets)
        assert not torch.equal(found["pool"].targets, before["pool"].targets)


def test_two_views_of_an_image_are_mixed_alike():
    mix = config_of("cutmix+mixup", per="sample")
    weak, both = batches(mix), batches(mix, strong=STRONGER)
    for alone, views in zip(weak, both, strict=True):
        for name, (images, targets, _) in alone.items():
            assert torch.equal(views[name].images[: len(images)], images)
            assert len(views[name].images) == 2 * len(images)
            assert torch.equal(views[name].targets, torch.cat([targets, targets]))


def test_workers_and_a_later_start_change_no_batch():
    mix = config_of("cutmix+mixup", per="sample", probability=0.8)
    expected = batches(mix)
    for found in (batches(mix, workers=2), batches(mix, done=2)):
        for before, shown in zip(expected[-len(found) :], found, strict=True):
            for name in before:
                assert all(torch.equal(a, b) for a, b in zip(before[name][:2], shown[name][:2], strict=True))


def test_batches_of_evaluation_are_never_mixed():
    module = data_module(compose(["data=digits"]).data)
    module.begin_stage(training(CUTMIX))
    (batch, *_) = module.eval_dataloader(np.arange(20))
    assert isinstance(batch, EvalBatch)
    assert module.on_after_batch_transfer(batch, 0) is batch


MIXED = (
    "augmentation=cutmix_mixup",
    "augmentation.mix.probability=0.8",
    "strategy=noisy_student",
    "strategy.students=[{}]",
    "strategy.unlabelled_ratio=2",
    "data.balance=weights",
    "data.labels=0.2",
    "data.limit=120",
    "data.batch_size=7",
    "data.validation=outside:30",
    "schedule.epochs=null",
    "schedule.steps=6",
)


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

        def noted(images, *rest):
            with (outputs / "mixed").open("a") as file:
                file.write(f"{len(images)}\n")
            return original(images, *rest)

        outputs.mkdir()
        batches.mix_batch = noted

    assert run(outputs, *MIXED, before=count) == 0
    labelled, pool = [7] * sum(steps.values()), [14] * steps["student-1"]
    assert sorted(map(int, (outputs / "mixed").read_text().split())) == labelled + pool


def test_mixing_changes_what_is_learned_and_counts_answers_by_their_weight(outputs):
    small = ("debug=tiny", "augmentation=cutmix_mixup", "augmentation.mix.per=sample")
    assert run(outputs / "mixed", *small) == 0
    assert run(outputs / "plain", *small, "augmentation.mix=null") == 0
    (mixed_rows,), (plain_rows,) = (tables(only_run(outputs / name)).values() for name in ("mixed", "plain"))
    assert mixed_rows[0]["train/loss"] != plain_rows[0]["train/loss"]
    assert float(plain_rows[0]["train/accuracy"]) * 32 % 1 == pytest.approx(0)  # 4 steps of 8 images, whole answers
    assert float(mixed_rows[0]["train/accuracy"]) * 32 % 1 != pytest.approx(0)


@pytest.mark.parametrize(
    ("overrides", "told"),
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
def test_what_is_wrong_with_a_mix_is_told_in_one_line(overrides, told):
    with pytest.raises(UserError) as refused:
        compose(overrides)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_mixing_is_part_of_what_a_run_is_and_transforms_stay_the_basic_ones():
    from tutelage.runs import run_identity

    basic, cutmix, mixup = (compose([f"augmentation={name}"]) for name in ("basic", "cutmix", "mixup"))
    assert basic.augmentation.transforms == cutmix.augmentation.transforms == mixup.augmentation.transforms
    assert "mix" not in run_identity(basic, "")["augmentation"]
    assert run_identity(cutmix, "")["augmentation"]["mix"] == {"cutmix": 1, "probability": 0.5}
    assert run_identity(mixup, "")["augmentation"]["mix"] == {"mixup": 0.2}


def test_nearest_neighbours_store_images_as_they_are_whatever_the_augmentation(outputs):
    small = ("model=nearest_neighbours", "debug=tiny")
    assert run(outputs / "mixed", *small, "augmentation=cutmix") == 0
    assert run(outputs / "plain", *small, "augmentation=none") == 0
    hashes = [outcome(outputs / name)["stages"][0]["weights_sha256"] for name in ("mixed", "plain")]
    assert hashes[0] == hashes[1]
