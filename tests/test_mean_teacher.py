"""Mean teacher: the ramp-up, the averaged weights, the loss, the stages and a killed run."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from helpers.networks import make_spec
from helpers.overrides import POOL_STRATEGY
from helpers.runs import only_run, outcome, run
from helpers.stages import make_batches, plan_stages
from tutelage.config.compose import compose
from tutelage.data import StageData
from tutelage.data.loading.batches import TrainDataset
from tutelage.data.source import WholeImages
from tutelage.errors import UserError
from tutelage.models import LeNet5, load_classifier
from tutelage.randomness import Key
from tutelage.strategies import TrainStage
from tutelage.strategies.mean_teacher import MeanTeacherStrategy
from tutelage.strategies.mean_teacher.method import MeanTeacher, consistency_weight, teacher_decay
from tutelage.testing import kill_after

MEAN = ("strategy=mean_teacher", "model.dropout=0.3", "augmentation=affine_randaugment", *POOL_STRATEGY)


def make_config(weight: float = 100.0, ramp_up: float = 0.25, decay: float = 0.999) -> MeanTeacherStrategy:
    return MeanTeacherStrategy.from_arguments({"weight": weight, "ramp_up": ramp_up, "decay": decay})


def test_the_weight_is_the_papers_at_each_step():
    paper = make_config(100.0, 40_000 / 150_000)  # appendix B.1: 40,000 of 150,000 steps
    schedule = {0: 100 * math.exp(-5), 20_000: 100 * math.exp(-1.25), 40_000: 100.0, 149_999: 100.0}
    for step, weight in schedule.items():
        assert consistency_weight(step, 150_000, paper) == pytest.approx(weight)
    assert consistency_weight(0, 10, make_config(7.0, 0.0)) == 7.0


@given(st.floats(0, 100), st.floats(0, 1), st.integers(1, 50))
def test_the_weight_never_falls_and_ends_at_the_weight(weight, ramp_up, steps):
    weights = [consistency_weight(step, steps, make_config(weight, ramp_up)) for step in range(steps + 1)]
    assert weights == sorted(weights)
    assert weights[-1] == weight


def test_the_teacher_is_the_mean_of_the_first_steps_and_then_the_running_average():
    assert [teacher_decay(step, make_config(decay=0.7)) for step in range(4)] == [0.5, 1 - 1 / 3, 0.7, 0.7]
    learner = make_module(make_config(decay=0.99))
    weights = [[parameter.detach().clone() for parameter in learner.student.parameters()]]
    for step in range(3):
        with torch.no_grad():
            for parameter in learner.student.parameters():
                parameter.add_(torch.randn_like(parameter))
        weights.append([parameter.detach().clone() for parameter in learner.student.parameters()])
        learner.update_teacher(teacher_decay(step, make_config(decay=0.99)))
    for number, parameter in enumerate(learner.teacher.parameters()):
        torch.testing.assert_close(
            parameter, torch.stack([step_weights[number] for step_weights in weights]).mean(dim=0)
        )


def make_module(config: MeanTeacherStrategy, dropout: float = 0.0) -> MeanTeacher:
    torch.manual_seed(0)
    return MeanTeacher(LeNet5(make_spec(), dropout=dropout), config, steps=10)


def test_the_loss_is_cross_entropy_plus_the_mean_squared_difference_of_probabilities():
    learner, batches = make_module(make_config(weight=10.0, ramp_up=0.0)), make_batches(labelled_views=2, pool_views=2)
    with torch.no_grad():
        for parameter in learner.teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    labelled, pool = batches["labelled"].images.split(4), batches["pool"].images.split(9)
    student_probabilities = [learner.student(images).softmax(1) for images in (labelled[1], pool[1])]
    teacher_probabilities = [learner.teacher(images).softmax(1).detach() for images in (labelled[0], pool[0])]
    squares = sum(((o - t) ** 2).sum() for o, t in zip(student_probabilities, teacher_probabilities, strict=True))
    consistency = squares / ((4 + 9) * 10)
    classification = functional.nll_loss(student_probabilities[0].log(), batches["labelled"].targets[4:])
    parts = learner.training_step(batches, 0)
    torch.testing.assert_close(parts["loss"], classification + 10 * consistency)
    torch.testing.assert_close(parts["loss_pool"], consistency.detach())
    parts["loss"].backward()
    assert all(parameter.grad is None for parameter in learner.teacher.parameters())


def test_the_teacher_has_dropout_of_its_own_and_is_the_classifier():
    learner = make_module(make_config(ramp_up=0.0), dropout=0.5).train()
    identical = {
        name: batch._replace(images=batch.images[: len(batch.images) // 2].repeat(2, 1, 1, 1))
        for name, batch in make_batches(labelled_views=2, pool_views=2).items()
    }
    assert learner.training_step(identical, 0)["loss_pool"] > 0  # equal weights and images, other dropout
    assert learner.eval().training_step(identical, 0)["loss_pool"] == 0
    assert learner.classifier is learner.teacher


def test_the_control_trains_as_many_steps_on_the_labels_alone():
    _, plan = plan_stages("mean_teacher", "data.batch_size=8", labels_per_class=3)
    trained, control = plan
    assert [stage.name for stage in plan] == ["mean_teacher", "control"]
    assert isinstance(trained, TrainStage)
    assert isinstance(control, TrainStage)
    assert (trained.steps, trained.epoch_steps, trained.model) == (control.steps, control.epoch_steps, control.model)
    assert control.control
    assert (trained.averages_weights, control.averages_weights) == (
        True,
        False,
    )  # whose weights optimizer.ema_decay averages
    assert [(stream.name, stream.beside) for stream in control.streams({})] == [("labelled", "")]
    assert [stream.batch_size for stream in trained.streams({})] == [8, 24]
    assert [stage.name for stage in plan_stages("mean_teacher", "strategy.control=false", labels_per_class=3)[1]] == [
        "mean_teacher"
    ]


def test_teacher_and_student_see_two_draws_of_the_same_images():
    config, (trained, _) = plan_stages(
        "mean_teacher", "augmentation=affine_randaugment", "data.batch_size=8", labels_per_class=3
    )
    images = np.random.default_rng(0).integers(0, 256, (128, 28, 28, 1), dtype=np.uint8)

    def make_images(stream, transforms):
        training = StageData([stream], transforms, lambda name: Key(0, "mean_teacher", name), 2)
        return TrainDataset(WholeImages(images), training, (28, 28, 1))[1][stream.name].images

    for stream in trained.streams({}):
        teacher_images, student_images = make_images(stream, config.augmentation.transforms).chunk(2)
        assert not torch.equal(teacher_images, student_images)
        assert torch.equal(student_images, make_images(replace(stream, beside=""), config.augmentation.transforms))
        teacher_images, student_images = make_images(stream, []).chunk(2)
        assert torch.equal(teacher_images, student_images)


def test_an_empty_pool_or_mixing_is_an_error_of_one_line():
    with pytest.raises(UserError, match="strategy=mean_teacher: no unlabelled images; use fewer labels"):
        plan_stages("mean_teacher")
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


def test_the_final_network_is_the_teacher_of_the_checkpoint(undisturbed):
    checkpoints = only_run(undisturbed) / "checkpoints"
    last = torch.load(checkpoints / "last.ckpt", weights_only=True)["state_dict"]
    final = load_classifier(checkpoints / "final.ckpt").state_dict()
    for name, tensor in final.items():
        assert torch.equal(tensor, last[f"teacher.{name}"])
    assert any(not torch.equal(tensor, last[f"student.{name}"]) for name, tensor in final.items())
