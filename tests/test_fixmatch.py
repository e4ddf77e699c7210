"""FixMatch: its loss, its views, its stages and its runs."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from helpers.networks import make_spec
from helpers.overrides import POOL_STRATEGY
from helpers.runs import outcome, run
from helpers.stages import make_batches, plan_stages
from tutelage.config.compose import compose
from tutelage.data import UNKNOWN, StageData
from tutelage.data.loading.batches import TrainDataset
from tutelage.data.source import WholeImages
from tutelage.errors import UserError
from tutelage.models import LeNet5
from tutelage.randomness import Key
from tutelage.strategies import TrainStage
from tutelage.strategies.fixmatch import FixMatchStrategy
from tutelage.strategies.fixmatch.method import FixMatch
from tutelage.testing import kill_after


def make_config(threshold: float = 0.0, weight: float = 1.0) -> FixMatchStrategy:
    return FixMatchStrategy.from_arguments({"threshold": threshold, "weight": weight})


def make_module(config: FixMatchStrategy, views: int = 1) -> FixMatch:
    torch.manual_seed(0)
    return FixMatch(LeNet5(make_spec()), config, views)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("selected", [6, 2])
def test_the_loss_is_equations_3_and_4_in_one_forward_pass(views, selected):
    batches = make_batches(4, 6, views, 2)
    weak, strong = batches["pool"].images.split(6)
    probabilities = make_module(make_config()).student(weak).softmax(1).detach()
    certainty, predictions = probabilities.max(1)
    threshold = 0.0 if selected == 6 else float(certainty.sort().values[-selected] - 1e-6)
    learner, calls = make_module(make_config(threshold, weight=3.0), views), []
    learner.student.backbone.register_forward_hook(lambda make_module, args, out: calls.append(len(args[0])))
    parts = learner.training_step(batches, 0)
    assert calls == [4 + 12]  # of two views of a labelled image the weak one
    logits = learner.student(strong).log_softmax(1)
    on_pool = sum(-row[a] for row, a, c in zip(logits, predictions, certainty, strict=True) if c >= threshold) / 6
    on_labelled = functional.cross_entropy(
        learner.student(batches["labelled"].images[:4]), batches["labelled"].targets[:4]
    )
    torch.testing.assert_close(parts["loss_labelled"], on_labelled.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parts["loss_pool"], on_pool.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parts["loss"], on_labelled + 3 * on_pool, rtol=1e-6, atol=1e-6)
    assert parts["mask_rate"].item() == pytest.approx(selected / 6)


def test_the_weak_view_has_no_gradient():
    learner, batches = make_module(make_config(weight=1.0)), make_batches(4, 6, pool_views=2)
    images = batches["pool"].images
    logits = []

    def keep(make_module, inputs, out):
        out.retain_grad()
        logits.append(out)

    learner.student.head.register_forward_hook(keep)
    learner.training_step(batches, 0)["loss"].backward()
    (all_logits,) = logits
    assert not all_logits.grad[4 : 4 + len(images) // 2].any()
    assert all_logits.grad[4 + len(images) // 2 :].any(dim=1).all()


def test_the_control_trains_as_many_steps_on_the_labels_alone():
    _, plan = plan_stages("fixmatch", "data.batch_size=8", labels_per_class=3)
    matched, control = plan
    assert [stage.name for stage in plan] == ["fixmatch", "control"]
    assert isinstance(matched, TrainStage)
    assert isinstance(control, TrainStage)
    assert (matched.steps, matched.epoch_steps, matched.model) == (control.steps, control.epoch_steps, control.model)
    assert control.control
    assert [stream.name for stream in control.streams({})] == ["labelled"]
    labelled, pool = matched.streams({})
    assert (labelled.batch_size, pool.batch_size) == (8, 56)  # mu = 7 in the paper's table 4
    assert set(pool.targets.tolist()) == {UNKNOWN}  # the true labels are not used
    assert [stage.name for stage in plan_stages("fixmatch", "strategy.control=false", labels_per_class=3)[1]] == [
        "fixmatch"
    ]


@pytest.mark.parametrize("augmentation", ["weak_strong", "affine_randaugment"])
def test_the_pools_batch_is_each_images_weak_view_and_then_its_strong_one(augmentation):
    overrides = [f"augmentation={augmentation}", "data.batch_size=8"]
    config, (matched, _) = plan_stages("fixmatch", *overrides, labels_per_class=3)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (128, 28, 28, 1), dtype=np.uint8)
    _, pool = matched.streams({})
    views = config.augmentation
    training = StageData([pool], views.transforms, lambda name: Key(0, "fixmatch", name), 2, strong=views.strong)
    batches = TrainDataset(WholeImages(images), training, (28, 28, 1))
    make_batches = batches[0]["pool"]
    weak, strong = make_batches.images.chunk(2)
    assert len(make_batches.targets) == len(make_batches.images) == 2 * 56
    assert not torch.equal(weak, strong)
    plain = images[pool.indices]
    stored = {image.tobytes() for image in plain}
    is_stored = [image.contiguous().numpy().tobytes() in stored for image in weak.permute(0, 2, 3, 1)]
    assert all(is_stored) == (augmentation == "affine_randaugment")
    assert torch.equal(batches[0]["pool"].images, make_batches.images)
    assert not torch.equal(batches[1]["pool"].images, make_batches.images)


def test_an_empty_pool_or_mixing_is_an_error_of_one_line():
    with pytest.raises(UserError, match="strategy=fixmatch: no unlabelled images; use fewer labels"):
        plan_stages("fixmatch")
    with pytest.raises(UserError, match="strategy=fixmatch compares views of one image.*augmentation.mix=null"):
        compose(["strategy=fixmatch", "augmentation=cutmix"])


@pytest.mark.parametrize("strategy", ["noisy_student", "fixmatch", "mean_teacher", "pseudo_label"])
def test_strategies_with_a_pool_are_one_key_apart(outputs, strategy):
    assert run(outputs, f"strategy={strategy}", *POOL_STRATEGY) == 0


def test_a_killed_run_ends_with_the_same_weights_and_tables(outputs, tmp_path):
    overrides = ("strategy=fixmatch", "augmentation=weak_strong", "optimizer.ema_decay=0.9", *POOL_STRATEGY)
    assert run(outputs, *overrides) == 0
    assert run(tmp_path, *overrides, before=kill_after("fixmatch", 3)) == -9
    assert run(tmp_path, *overrides) == 0
    assert outcome(tmp_path) == outcome(outputs)
