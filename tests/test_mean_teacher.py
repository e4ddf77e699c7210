"""Mean teacher: the ramp, the average, what is minimised, and that a run can be stopped."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from helpers.configs import data_config
from helpers.networks import make_spec
from helpers.overrides import POOL_STRATEGY
from helpers.runs import only_run, outcome, run
from helpers.sources import make_source
from helpers.traps import kill_after
from tutelage.config import MeanTeacherConfig
from tutelage.config.compose import compose
from tutelage.data import StageData, StreamBatch, split
from tutelage.data.loading.batches import TrainDataset
from tutelage.data.source import WholeImages
from tutelage.errors import UserError
from tutelage.models import LeNet5, load_classifier
from tutelage.randomness import Key
from tutelage.strategies import TrainStage, stages
from tutelage.strategies.mean_teacher import MeanTeacher, consistency_weight, teacher_decay

MEAN = ("strategy=mean_teacher", "model.dropout=0.3", "augmentation=affine_randaugment", *POOL_STRATEGY)


def config_of(weight: float = 100.0, ramp_up: float = 0.25, decay: float = 0.999) -> MeanTeacherConfig:
    return MeanTeacherConfig(name="mean_teacher", weight=weight, ramp_up=ramp_up, decay=decay)


def test_the_weight_is_the_papers_over_its_steps():
    paper = config_of(100.0, 40_000 / 150_000)  # appendix B.1: 40,000 of 150,000 steps
    schedule = {0: 100 * math.exp(-5), 20_000: 100 * math.exp(-1.25), 40_000: 100.0, 149_999: 100.0}
    for step, weight in schedule.items():
        assert consistency_weight(step, 150_000, paper) == pytest.approx(weight)
    assert consistency_weight(0, 10, config_of(7.0, 0.0)) == 7.0


@given(st.floats(0, 100), st.floats(0, 1), st.integers(1, 50))
def test_the_weight_never_falls_and_ends_at_the_weight(weight, ramp_up, steps):
    weights = [consistency_weight(step, steps, config_of(weight, ramp_up)) for step in range(steps + 1)]
    assert weights == sorted(weights)
    assert weights[-1] == weight


def test_the_teacher_is_the_mean_of_the_first_steps_and_then_the_running_average():
    assert [teacher_decay(step, config_of(decay=0.7)) for step in range(4)] == [0.5, 1 - 1 / 3, 0.7, 0.7]
    learner = module(config_of(decay=0.99))
    seen = [[parameter.detach().clone() for parameter in learner.student.parameters()]]
    for step in range(3):
        with torch.no_grad():
            for parameter in learner.student.parameters():
                parameter.add_(torch.randn_like(parameter))
        seen.append([parameter.detach().clone() for parameter in learner.student.parameters()])
        learner.update_teacher(teacher_decay(step, config_of(decay=0.99)))
    for place, parameter in enumerate(learner.teacher.parameters()):
        torch.testing.assert_close(parameter, torch.stack([one[place] for one in seen]).mean(dim=0))


def module(config: MeanTeacherConfig, dropout: float = 0.0) -> MeanTeacher:
    torch.manual_seed(0)
    return MeanTeacher(LeNet5(make_spec(), dropout=dropout), config, steps=10)


def batch(labelled: int = 4, pool: int = 9) -> dict[str, StreamBatch]:
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> torch.Tensor:
        return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)

    targets = torch.randint(0, 10, (labelled,), generator=generator).repeat(2)
    return {
        "labelled": StreamBatch(images(2 * labelled), targets),
        "pool": StreamBatch(images(2 * pool), torch.zeros(2 * pool)),
    }


def test_by_hand_the_loss_is_classification_and_the_mean_squared_difference_of_probabilities():
    learner, shown = module(config_of(weight=10.0, ramp_up=0.0)), batch()
    with torch.no_grad():
        for parameter in learner.teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    labelled, pool = shown["labelled"].images.split(4), shown["pool"].images.split(9)
    ours = [learner.student(images).softmax(1) for images in (labelled[1], pool[1])]
    theirs = [learner.teacher(images).softmax(1).detach() for images in (labelled[0], pool[0])]
    squares = sum(((o - t) ** 2).sum() for o, t in zip(ours, theirs, strict=True))
    consistency = squares / ((4 + 9) * 10)
    classification = functional.nll_loss(ours[0].log(), shown["labelled"].targets[4:])
    parts = learner.training_step(shown, 0)
    torch.testing.assert_close(parts["loss"], classification + 10 * consistency)
    torch.testing.assert_close(parts["loss_pool"], consistency.detach())
    parts["loss"].backward()
    assert all(parameter.grad is None for parameter in learner.teacher.parameters())


def test_the_teacher_is_noised_as_the_student_is_and_only_the_student_learns():
    learner = module(config_of(ramp_up=0.0), dropout=0.5).train()
    same = {name: shown._replace(images=shown.images[: len(shown.images) // 2].repeat(2, 1, 1, 1))
            for name, shown in batch().items()}  # fmt: skip
    assert learner.training_step(same, 0)["loss_pool"] > 0  # equal weights and images, other dropout
    assert learner.eval().training_step(same, 0)["loss_pool"] == 0
    assert learner.classifier is learner.teacher


def plan_of(*overrides: str, **data: int):
    config = compose(["strategy=mean_teacher", "schedule.epochs=null", "schedule.steps=10", *overrides])
    source = make_source(np.repeat(np.arange(4), 30), test=8, unlabelled=0)
    return config, stages(config, source, split(source, data_config(**data)))


def test_the_control_takes_as_many_steps_on_the_labels_alone():
    _, plan = plan_of("data.batch_size=8", labels_per_class=3)
    taught, control = plan
    assert [stage.name for stage in plan] == ["mean_teacher", "control"]
    assert isinstance(taught, TrainStage)
    assert isinstance(control, TrainStage)
    assert (taught.steps, taught.epoch_steps, taught.model) == (control.steps, control.epoch_steps, control.model)
    assert control.control
    assert (taught.averages_weights, control.averages_weights) == (
        True,
        False,
    )  # whose weights optimizer.ema_decay averages
    assert [(stream.name, stream.beside) for stream in control.streams({})] == [("labelled", "")]
    assert [stream.batch_size for stream in taught.streams({})] == [8, 24]
    assert [stage.name for stage in plan_of("strategy.control=false", labels_per_class=3)[1]] == ["mean_teacher"]


def test_teacher_and_student_see_two_draws_of_the_same_images():
    config, (taught, _) = plan_of("augmentation=affine_randaugment", "data.batch_size=8", labels_per_class=3)
    images = np.random.default_rng(0).integers(0, 256, (128, 28, 28, 1), dtype=np.uint8)

    def shown(stream, transforms):
        training = StageData([stream], transforms, lambda name: Key(0, "mean_teacher", name), 2)
        return TrainDataset(WholeImages(images), training, (28, 28, 1))[1][stream.name].images

    for stream in taught.streams({}):
        theirs, ours = shown(stream, config.augmentation.transforms).chunk(2)
        assert not torch.equal(theirs, ours)
        assert torch.equal(ours, shown(replace(stream, beside=""), config.augmentation.transforms))
        theirs, ours = shown(stream, []).chunk(2)
        assert torch.equal(theirs, ours)


def test_what_it_cannot_do_is_said_in_a_line():
    with pytest.raises(UserError, match="strategy=mean_teacher: no unlabelled images; use fewer labels"):
        plan_of()
    with pytest.raises(UserError, match="strategy=mean_teacher compares views of one image.*augmentation.mix=null"):
        compose(["strategy=mean_teacher", "augmentation=mixup"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("undisturbed")
    assert run(outputs, *MEAN) == 0
    return outputs


@pytest.mark.parametrize("step", [1, 4])
def test_a_killed_run_ends_with_the_same_weights_and_tables(undisturbed, outputs, step):
    assert run(outputs, *MEAN, before=kill_after("mean_teacher", step)) == -9
    assert run(outputs, *MEAN) == 0
    assert outcome(outputs) == outcome(undisturbed)


def test_the_network_that_is_kept_is_the_teacher_of_the_checkpoint(undisturbed):
    checkpoints = only_run(undisturbed) / "checkpoints"
    last = torch.load(checkpoints / "last.ckpt", weights_only=True)["state_dict"]
    kept = load_classifier(checkpoints / "final.ckpt").state_dict()
    for name, tensor in kept.items():
        assert torch.equal(tensor, last[f"teacher.{name}"])
    assert any(not torch.equal(tensor, last[f"student.{name}"]) for name, tensor in kept.items())
