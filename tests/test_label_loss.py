"""The loss against labels, smoothed or a user's own, in every strategy; and clipped gradients."""

import json
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from helpers.networks import make_spec
from helpers.overrides import QUIET
from helpers.runs import only_run, run
from helpers.stages import make_batches
from tutelage.config import (
    PLAIN_CROSS_ENTROPY,
    CrossEntropyConfig,
    OptimizerConfig,
    SchedulerConfig,
)
from tutelage.config.compose import compose
from tutelage.data import StageData, StreamBatch, data_module
from tutelage.errors import UserError
from tutelage.models import (
    CrossEntropy,
    ImageClassifier,
    LabelLoss,
    LeNet5,
    OptimizationConfig,
    Teacher,
    load_classifier,
    make_classifier,
    make_loss,
)
from tutelage.randomness import Key
from tutelage.runs import run_identity
from tutelage.runs.checks import check_before_data
from tutelage.strategies import StageContext, TrainStage
from tutelage.strategies.distillation import DistillationStrategy
from tutelage.strategies.distillation.method import Distillation
from tutelage.strategies.fixmatch import FixMatchStrategy
from tutelage.strategies.fixmatch.method import FixMatch
from tutelage.strategies.mean_teacher import MeanTeacherStrategy
from tutelage.strategies.mean_teacher.method import MeanTeacher
from tutelage.strategies.noisy_student.method import NoisyStudent
from tutelage.strategies.pseudo_label import PseudoLabelStrategy
from tutelage.strategies.pseudo_label.method import PseudoLabel


@given(st.floats(0, 0.99), st.integers(0, 2**31), st.sampled_from(["classes", "mixed"]), st.booleans())
def test_smoothed_cross_entropy_is_the_papers_and_torchs(smoothing, seed, kind, weighted):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(5, 4, generator=generator, dtype=torch.float64)
    classes = torch.randint(0, 4, (5,), generator=generator)
    probabilities = functional.one_hot(classes, 4).double()
    if kind == "mixed":
        probabilities = 0.7 * probabilities + 0.3 * probabilities.roll(1, 0)
    weights = torch.rand(4, generator=generator, dtype=torch.float64) if weighted else None
    targets = classes if kind == "classes" else probabilities
    loss = CrossEntropy(label_smoothing=smoothing)(logits, targets, weights)
    log_probabilities = logits - logits.exp().sum(1, keepdim=True).log()
    smoothed = (1 - smoothing) * probabilities + smoothing / 4
    by_hand = -(smoothed * log_probabilities * (1 if weights is None else weights)).sum() / 5
    torch.testing.assert_close(loss, by_hand)
    torch_sum = functional.cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(loss, torch_sum / 5)


def smooth(network: ImageClassifier, smoothing: float) -> None:
    """Configure a network's training with smoothed labels and class weights."""
    network.configure_training(
        OptimizationConfig(
            OptimizerConfig(name="sgd", lr=0.1),
            SchedulerConfig(name="constant"),
            steps=9,
            class_weights=tuple(0.5 + 0.1 * c for c in range(10)),
            loss=CrossEntropyConfig(label_smoothing=smoothing),
        )
    )


FIXMATCH = FixMatchStrategy.from_arguments({"threshold": 0.0, "weight": 2.0})
MEAN_TEACHER = MeanTeacherStrategy.from_arguments({"weight": 3.0, "ramp_up": 0.0, "decay": 0.9})
PSEUDO_LABEL = PseudoLabelStrategy.from_arguments({"ramp_begins": 0.0, "ramp_ends": 0.0, "final_weight": 2.0})
MODULES = {  # the module, and the views of labelled and of pool images
    "fixmatch": (partial(FixMatch, config=FIXMATCH), 1, 2),
    "mean_teacher": (partial(MeanTeacher, config=MEAN_TEACHER, steps=9), 2, 2),
    "noisy_student": (NoisyStudent, 1, 1),
    "pseudo_label": (partial(PseudoLabel, config=PSEUDO_LABEL, steps=9), 1, 1),
}


@pytest.mark.parametrize("strategy", MODULES)
def test_smoothing_is_in_the_loss_of_labels_and_not_in_that_of_the_pool(strategy):
    make_module, labelled_views, pool_views = MODULES[strategy]
    batches, parts = make_batches(4, 6, labelled_views, pool_views), []
    for smoothing in (0.0, 0.3):
        torch.manual_seed(0)
        student = LeNet5(make_spec())
        smooth(student, smoothing)
        parts.append(make_module(student).training_step(batches, 0))
    images, targets = (part.chunk(labelled_views)[-1] for part in batches["labelled"][:2])
    weights = torch.arange(10) * 0.1 + 0.5
    expected = functional.cross_entropy(student(images), targets, weights, reduction="sum", label_smoothing=0.3) / 4
    torch.testing.assert_close(parts[1]["loss_labelled"], expected.detach())
    assert not torch.allclose(parts[0]["loss_labelled"], parts[1]["loss_labelled"], rtol=1e-4)
    torch.testing.assert_close(parts[0]["loss_pool"], parts[1]["loss_pool"], rtol=0, atol=0)
    difference = parts[1]["loss"] - parts[0]["loss"]
    torch.testing.assert_close(difference, parts[1]["loss_labelled"] - parts[0]["loss_labelled"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target_type", ["soft", "hard"])
def test_a_distilled_students_labels_are_smoothed_where_there_are_some_and_its_teachers_are_not(target_type):
    config = DistillationStrategy.from_arguments(
        {
            "teachers": ["somewhere"],
            "temperature": 4.0,
            "teacher_logits": "live",
            "cached_views": 1,
            "alpha": 0.5,
            "images": "all",
            "target_type": target_type,
        }
    )
    torch.manual_seed(0)
    student, teacher, images = LeNet5(make_spec()), LeNet5(make_spec()), make_batches(6)["labelled"].images
    module = Distillation(student, Teacher([teacher]), config=config, stream="all", labelled_fraction=0.5)
    targets, of_teacher = torch.tensor([3, -1, 7, -1, -1, -1]), []
    for smoothing in (0.0, 0.3):
        smooth(student, smoothing)
        parts = module.training_step({"all": StreamBatch(images, targets)}, 0)
        of_teacher.append(parts["loss_teacher"])
        known = functional.cross_entropy(
            student(images)[[0, 2]],
            targets[[0, 2]],
            student.class_weights,
            reduction="sum",
            label_smoothing=smoothing,
        )
        torch.testing.assert_close(parts["loss_label"], known.detach() / (0.5 * 6))
    assert of_teacher[0] == of_teacher[1]
    unknown = module.training_step({"all": StreamBatch(images, torch.full((6,), -1))}, 0)
    assert unknown["loss_label"] == 0
    assert torch.isfinite(unknown["loss"])


class Biased(LabelLoss):
    """Has a constant, and keeps a state on request."""

    def __init__(self, kind: str = "constant") -> None:
        super().__init__()
        if kind == "weights":
            self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("prior", torch.zeros(10), persistent=kind == "state")

    def forward(self, logits, targets, weights):
        return functional.cross_entropy(logits + self.prior, targets)


def test_a_loss_with_constants_leaves_no_trace_in_the_weights_and_one_with_a_state_is_refused(monkeypatch):
    import tutelage.models as package

    monkeypatch.setattr(package, "Biased", Biased, raising=False)
    monkeypatch.setattr(Biased, "__module__", "tutelage.models")
    network = LeNet5(make_spec())
    names = list(network.state_dict())
    network.loss_function = make_loss({"_target_": "tutelage.models.Biased"})
    assert list(network.state_dict()) == names
    assert "loss_function.prior" in dict(network.named_buffers())  # follows the network to its device
    for kind, name in (("weights", "scale"), ("state", "prior")):
        with pytest.raises(UserError, match=rf"^loss: Biased has weights or a state \({name}\).*persistent=False$"):
            make_loss({"_target_": "tutelage.models.Biased", "kind": kind})


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"_target_": "tutelage.models.LeNet5"}, "loss: 'tutelage.models.LeNet5' is no LabelLoss"),
        ({"_target_": "tutelage.models.Focal"}, "loss: 'tutelage.models.Focal' does not exist"),
        ({"_target_": "torch.nn.MSELoss"}, "loss: 'torch.nn.MSELoss' is outside the allowed packages"),
        ({"_target_": "tutelage.models.CrossEntropy", "gamma": 2}, "loss: CrossEntropy refuses gamma=2"),
    ],
)
def test_a_loss_that_cannot_be_built_is_an_error_of_one_line(loss, message):
    with pytest.raises(UserError, match=message) as refused:
        make_loss(loss)
    assert "\n" not in str(refused.value)


def test_a_loss_that_is_refused_is_found_before_data_is_read():
    config = compose(["loss._target_=tutelage.models.LeNet5", "~loss.label_smoothing"])
    with pytest.raises(UserError, match="loss: 'tutelage.models.LeNet5' is no LabelLoss"):
        check_before_data(config)


def test_plain_cross_entropy_is_no_part_of_the_identity():
    assert compose([]).loss == PLAIN_CROSS_ENTROPY
    assert "loss" not in run_identity(compose([]), "")
    assert run_identity(compose(["loss.label_smoothing=0.1"]), "")["loss"] == {"label_smoothing": 0.1}
    other = run_identity(compose(["loss._target_=mine.Focal", "+loss.gamma=2.0", "~loss.label_smoothing"]), "")
    assert other["loss"] == {"_target_": "mine.Focal", "gamma": 2}


CLIP_NORM, LR, SMOOTHING, STEPS = 1.25, 0.2, 0.1, 5
CLIPPED = (
    "model=mlp",
    "model.width=16",
    "model.depth=2",
    "augmentation=none",
    "optimizer=sgd",
    f"optimizer.lr={LR}",
    "optimizer.momentum=0",
    "optimizer.nesterov=false",
    "optimizer.weight_decay=0",
    f"optimizer.clip_norm={CLIP_NORM}",
    f"loss.label_smoothing={SMOOTHING}",
    "scheduler=constant",
    "schedule.epochs=null",
    f"schedule.steps={STEPS}",
    "data.limit=60",
    "data.batch_size=8",
    "data.validation=none",
    "callbacks.report=false",
)


def test_a_run_with_clipped_gradients_and_smoothed_labels_is_a_loop_by_hand(outputs):
    """Gradients are accumulated over two halves of each batch, and clipped as one."""
    assert run(outputs, *CLIPPED, "trainer.accumulate=2") == 0
    config = compose([*QUIET, *CLIPPED])
    data = data_module(config.data)
    (stage,) = config.strategy.stages(StageContext(config, data.source, data.splits))
    assert isinstance(stage, TrainStage)
    stage_data = StageData(stage.streams({}), transforms=[], key=partial(Key, config.seed, stage.name), steps=STEPS)
    trained = load_classifier(only_run(outputs) / "checkpoints" / "final.ckpt")
    torch.manual_seed(Key(config.seed, stage.name).torch_seed("initial weights"))
    network = make_classifier(config.model.arguments(), trained.spec)
    norms = []
    for batch in data.train_batches(stage_data, range(STEPS)):
        images, targets = batch["labelled"][:2]
        log_probabilities = network(images).log_softmax(1)
        smoothed = (1 - SMOOTHING) * functional.one_hot(targets, 10) + SMOOTHING / 10
        gradients = torch.autograd.grad(-(smoothed * log_probabilities).sum(1).mean(), [*network.parameters()])
        norms.append(float(sum(gradient.square().sum() for gradient in gradients) ** 0.5))
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.sub_(gradient, alpha=LR * min(1.0, CLIP_NORM / norms[-1]))
    assert min(norms) < CLIP_NORM < max(norms)
    torch.testing.assert_close(dict(trained.named_parameters()), dict(network.named_parameters()), rtol=1e-4, atol=1e-5)
    identity = json.loads((only_run(outputs) / "run.json").read_text())["identity"]
    assert identity["optimizer"]["clip_norm"] == CLIP_NORM
    assert identity["loss"] == {"label_smoothing": SMOOTHING}
