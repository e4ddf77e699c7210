"""Pseudo-labels: the ramp-up, the loss, the stages and a killed run."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from helpers.networks import make_spec
from helpers.runs import outcome, run
from helpers.stages import make_batches, plan_stages
from tutelage.data import UNKNOWN
from tutelage.errors import UserError
from tutelage.models import LeNet5
from tutelage.strategies import TrainStage
from tutelage.strategies.pseudo_label import PseudoLabelStrategy
from tutelage.strategies.pseudo_label.method import PseudoLabel, pseudo_label_weight
from tutelage.testing import kill_after

TINY = (
    "strategy=pseudo_label",
    "schedule.epochs=null",
    "schedule.steps=6",
    "data.limit=200",
    "data.batch_size=8",
    "data.labels_per_class=2",
    "strategy.unlabelled_ratio=2",
    "callbacks.report=false",
)


def make_config(
    begins: float = 0.1, ends: float = 0.6, final: float = 3.0, threshold: float = 0.0
) -> PseudoLabelStrategy:
    return PseudoLabelStrategy.from_arguments(
        {"ramp_begins": begins, "ramp_ends": ends, "final_weight": final, "threshold": threshold}
    )


def test_the_weight_is_the_papers_at_each_epoch():
    paper = make_config(100 / 800, 600 / 800, 3.0)  # section 3.2: T1 = 100, T2 = 600, alpha_f = 3
    schedule = {99: 0.0, 100: 0.0, 225: 0.75, 350: 1.5, 599: 3.0 * 499 / 500, 600: 3.0, 799: 3.0}
    for epoch, weight in schedule.items():
        assert pseudo_label_weight(epoch, 800, paper) == pytest.approx(weight)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 100), st.integers(1, 50))
def test_the_weight_never_falls_and_stays_within_its_ends(first, second, final, steps):
    begins, ends = sorted((first, second))
    weights = [pseudo_label_weight(step, steps, make_config(begins, ends, final)) for step in range(steps)]
    assert weights == sorted(weights)
    assert all(0 <= weight <= final for weight in weights)
    assert weights[-1] == final or ends * steps > steps - 1


def make_module(config: PseudoLabelStrategy) -> PseudoLabel:
    torch.manual_seed(0)
    return PseudoLabel(LeNet5(make_spec()), config, steps=10)


@pytest.mark.parametrize("selected", [9, 4])
def test_the_loss_is_equation_15_in_one_forward(selected):
    batches = make_batches()
    probabilities = make_module(make_config()).student(batches["pool"].images).softmax(1)
    certainty = probabilities.max(1).values.detach()
    threshold = 0.0 if selected == len(certainty) else float(certainty.sort().values[-selected] - 1e-6)
    learner, calls = make_module(make_config(0, 0, 3.0, threshold)), []
    learner.student.backbone.register_forward_hook(lambda make_module, args, out: calls.append(len(args[0])))
    parts = learner.training_step(batches, 0)
    assert calls == [13]
    on_pool = sum(-p.max().log() for p in probabilities if p.max() >= threshold) / 9
    on_labelled = functional.cross_entropy(learner.student(batches["labelled"].images), batches["labelled"].targets)
    torch.testing.assert_close(parts["loss_pool"], on_pool.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parts["loss"], on_labelled + 3 * on_pool, rtol=1e-6, atol=1e-6)
    assert parts["mask_rate"].item() == pytest.approx(selected / 9)


def test_the_pools_true_labels_are_not_used_and_its_images_not_before_t1():
    gradients = []
    for pool, config in (
        (0, make_config(0, 0)),
        (7, make_config(0, 0)),
        (0, make_config(0.5, 0.6)),
        (0, make_config(0, 0, final=0)),
    ):
        learner, batches = make_module(config), make_batches()
        batches["pool"] = batches["pool"]._replace(targets=torch.full((9,), pool))
        learner.training_step(batches, 0)["loss"].backward()
        gradients.append([p.grad for p in learner.student.parameters()])
    for first, second, equal in ((0, 1, True), (2, 3, True), (0, 2, False)):
        assert all(torch.equal(a, b) for a, b in zip(gradients[first], gradients[second], strict=True)) == equal


def test_the_control_trains_as_many_steps_on_the_labels_alone():
    _, plan = plan_stages("pseudo_label", "data.batch_size=8", labels_per_class=3)
    assert [stage.name for stage in plan] == ["pseudo_label", "control"]
    trained, control = plan
    assert isinstance(trained, TrainStage)
    assert isinstance(control, TrainStage)
    assert (trained.steps, trained.epoch_steps, trained.model) == (control.steps, control.epoch_steps, control.model)
    assert [stream.name for stream in control.streams({})] == ["labelled"]
    labelled, pool = trained.streams({})
    assert (labelled.batch_size, pool.batch_size) == (8, 64)
    assert not set(labelled.indices) & set(pool.indices)
    assert set(pool.targets.tolist()) == {UNKNOWN}  # the true labels are not used
    assert control.control
    assert "labels alone" in control.note


def test_the_control_can_be_left_out():
    assert [stage.name for stage in plan_stages("pseudo_label", "strategy.control=false", labels_per_class=3)[1]] == [
        "pseudo_label"
    ]


def test_without_unlabelled_images_it_is_an_error():
    with pytest.raises(UserError, match="strategy=pseudo_label: no unlabelled images; use fewer labels"):
        plan_stages("pseudo_label")


def test_a_run_killed_on_the_ramp_ends_with_the_same_weights_and_tables(outputs, tmp_path):
    assert run(outputs, *TINY) == 0
    assert run(tmp_path, *TINY, before=kill_after("pseudo_label", 3)) == -9
    assert run(tmp_path, *TINY) == 0
    assert outcome(tmp_path) == outcome(outputs)
    (row,) = outcome(outputs)["tables"]["stages/1-pseudo_label/metrics.csv"]
    assert float(row["train/weight"]) == pytest.approx(
        sum(pseudo_label_weight(step, 6, make_config()) for step in range(6)) / 6
    )
