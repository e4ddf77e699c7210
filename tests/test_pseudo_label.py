"""Pseudo-labels: the ramp, what is minimised, and that a run can be stopped."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from helpers.configs import data_config
from helpers.networks import make_spec
from helpers.runs import outcome, run
from helpers.sources import make_source
from helpers.traps import kill_after
from tutelage.config import PseudoLabelConfig
from tutelage.config.compose import compose
from tutelage.data import UNKNOWN, StreamBatch, split
from tutelage.errors import UserError
from tutelage.models import LeNet5
from tutelage.strategies import TrainStage, stages
from tutelage.strategies.pseudo_label import PseudoLabel, pseudo_label_weight

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


def config_of(begins: float = 0.1, ends: float = 0.6, final: float = 3.0, threshold: float = 0.0) -> PseudoLabelConfig:
    return PseudoLabelConfig(
        name="pseudo_label", ramp_begins=begins, ramp_ends=ends, final_weight=final, threshold=threshold
    )


def test_the_weight_is_the_papers_over_its_epochs():
    paper = config_of(100 / 800, 600 / 800, 3.0)  # section 3.2: T1 = 100, T2 = 600, alpha_f = 3
    schedule = {99: 0.0, 100: 0.0, 225: 0.75, 350: 1.5, 599: 3.0 * 499 / 500, 600: 3.0, 799: 3.0}
    for epoch, weight in schedule.items():
        assert pseudo_label_weight(epoch, 800, paper) == pytest.approx(weight)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 100), st.integers(1, 50))
def test_the_weight_never_falls_and_stays_within_its_ends(one, other, final, steps):
    begins, ends = sorted((one, other))
    weights = [pseudo_label_weight(step, steps, config_of(begins, ends, final)) for step in range(steps)]
    assert weights == sorted(weights)
    assert all(0 <= weight <= final for weight in weights)
    assert weights[-1] == final or ends * steps > steps - 1


def batch(labelled: int = 4, pool: int = 9) -> dict[str, StreamBatch]:
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> torch.Tensor:
        return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)

    targets = torch.randint(0, 10, (labelled,), generator=generator)
    return {
        "labelled": StreamBatch(images(labelled), targets),
        "pool": StreamBatch(images(pool), torch.zeros(pool).long()),
    }


def module(config: PseudoLabelConfig) -> PseudoLabel:
    torch.manual_seed(0)
    return PseudoLabel(LeNet5(make_spec()), config, steps=10)


@pytest.mark.parametrize("counted", [9, 4])
def test_the_loss_is_equation_15_in_one_forward(counted):
    shown = batch()
    probabilities = module(config_of()).student(shown["pool"].images).softmax(1)
    certainty = probabilities.max(1).values.detach()
    threshold = 0.0 if counted == len(certainty) else float(certainty.sort().values[-counted] - 1e-6)
    learner, calls = module(config_of(0, 0, 3.0, threshold)), []
    learner.student.backbone.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    parts = learner.training_step(shown, 0)
    assert calls == [13]
    on_pool = sum(-p.max().log() for p in probabilities if p.max() >= threshold) / 9
    on_labelled = functional.cross_entropy(learner.student(shown["labelled"].images), shown["labelled"].targets)
    torch.testing.assert_close(parts["loss_pool"], on_pool.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parts["loss"], on_labelled + 3 * on_pool, rtol=1e-6, atol=1e-6)
    assert parts["mask_rate"].item() == pytest.approx(counted / 9)


def test_the_pools_truth_changes_nothing_and_before_t1_the_pool_does_not_either():
    gradients = []
    for pool, config in (
        (0, config_of(0, 0)),
        (7, config_of(0, 0)),
        (0, config_of(0.5, 0.6)),
        (0, config_of(0, 0, final=0)),
    ):
        learner, shown = module(config), batch()
        shown["pool"] = shown["pool"]._replace(targets=torch.full((9,), pool))
        learner.training_step(shown, 0)["loss"].backward()
        gradients.append([p.grad for p in learner.student.parameters()])
    for one, other, equal in ((0, 1, True), (2, 3, True), (0, 2, False)):
        assert all(torch.equal(a, b) for a, b in zip(gradients[one], gradients[other], strict=True)) == equal


def plan_of(*overrides: str, **data: int):
    config = compose(["strategy=pseudo_label", "schedule.epochs=null", "schedule.steps=10", *overrides])
    source = make_source(np.repeat(np.arange(4), 30), test=8, unlabelled=0)
    return stages(config, source, split(source, data_config(**data)))


def test_the_control_takes_as_many_steps_on_the_labels_alone():
    plan = plan_of("data.batch_size=8", labels_per_class=3)
    assert [stage.name for stage in plan] == ["pseudo_label", "control"]
    taught, control = plan
    assert isinstance(taught, TrainStage)
    assert isinstance(control, TrainStage)
    assert (taught.steps, taught.epoch_steps, taught.model) == (control.steps, control.epoch_steps, control.model)
    assert [stream.name for stream in control.streams({})] == ["labelled"]
    labelled, pool = taught.streams({})
    assert (labelled.batch_size, pool.batch_size) == (8, 64)
    assert not set(labelled.indices) & set(pool.indices)
    assert set(pool.targets.tolist()) == {UNKNOWN}  # the truth stays outside
    assert control.control
    assert "labels alone" in control.note


def test_it_runs_without_its_control():
    assert [stage.name for stage in plan_of("strategy.control=false", labels_per_class=3)] == ["pseudo_label"]


def test_without_unlabelled_images_it_is_an_error():
    with pytest.raises(UserError, match="strategy=pseudo_label: no unlabelled images; use fewer labels"):
        plan_of()


def test_a_run_killed_on_the_ramp_ends_with_the_same_weights_and_tables(outputs, tmp_path):
    assert run(outputs, *TINY) == 0
    assert run(tmp_path, *TINY, before=kill_after("pseudo_label", 3)) == -9
    assert run(tmp_path, *TINY) == 0
    assert outcome(tmp_path) == outcome(outputs)
    (row,) = outcome(outputs)["tables"]["stages/1-pseudo_label/metrics.csv"]
    assert float(row["train/weight"]) == pytest.approx(
        sum(pseudo_label_weight(step, 6, config_of()) for step in range(6)) / 6
    )
