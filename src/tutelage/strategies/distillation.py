"""Knowledge distillation: a student learns from labels and from a frozen teacher's softened answers.

Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network"; a hint from the teacher's middle before
it (Romero et al. 2015, "FitNets"); the divergence in two parts (Zhao et al. 2022, "Decoupled Knowledge Distillation").
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from tutelage.config import Config, DistillationConfig, Hints
from tutelage.data import UNKNOWN, Source, Splits, Stream, StreamBatch, abbreviate
from tutelage.errors import UserError
from tutelage.models import (
    ImageClassifier,
    Regressor,
    Teacher,
    accuracy,
    cross_entropy,
    decoupled_divergence,
    hint_loss,
    layer_output,
    middle_layer,
    softened_divergence,
)
from tutelage.strategies.stages import Stage, labelled_stream, length, supervised_on
from tutelage.strategies.teacher_student import (
    StudentWithTeacher,
    agreement_metrics,
    control,
    taught_by,
    teacher_stages,
    teaching,
)

HINTS = "hints"  # the stage


class Distillation(StudentWithTeacher):
    """A student that learns from labels, by ``alpha``, and from its teacher, by the rest."""

    def __init__(
        self,
        student: ImageClassifier,
        teacher: Teacher,
        *,
        recipe: DistillationConfig,
        stream: str = "labelled",
        known: float = 1.0,
    ) -> None:
        """Take the weights of the losses, the temperature, the stream, and the share of its images with labels.

        Raises:
            UserError: the decoupled divergence is asked for, and the teacher does not know the true classes.
        """
        super().__init__(student, teacher)
        self._recipe = recipe
        self._stream = stream
        self._known = known
        if recipe.decoupled is not None and not self.same_classes:
            raise UserError(
                "strategy.decoupled: the teacher tells other classes apart than the data has, so that none of its "
                "classes is the true one; set it to null"
            )

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss, its parts, how near the student is to its teacher, and how right both are."""
        shown, alpha = batch[self._stream], self._recipe.alpha
        own, ours, theirs = self.answers(shown)
        loss_label = self._on_labels(cross_entropy, own, shown.targets, self.student.class_weights)
        loss_teacher = self._from_teacher(ours, theirs, shown.targets)
        parts = {
            "loss": alpha * loss_label + (1 - alpha) * loss_teacher,
            "loss_label": loss_label.detach(),
            "loss_teacher": loss_teacher.detach(),
            **agreement_metrics(ours, theirs),
            "accuracy": self._on_labels(accuracy, own.detach(), shown.targets),
        }
        if self.same_classes:
            parts["teacher_accuracy"] = self._on_labels(accuracy, theirs, shown.targets)
        return parts

    def _on_labels(
        self, mean: Callable[..., Tensor], logits: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Return a ``mean`` over the labelled images of logits (B, C), as this batch tells of it.

        A batch holds more or fewer of them, or none; their sum over as many as it holds in the mean is right over a
        pass.
        """
        more = () if weights is None else (weights,)
        if self._known == 1:
            return mean(logits, targets, *more)
        known = targets != UNKNOWN
        found = mean(logits[known], targets[known], *more).nan_to_num()  # of no image: 0
        return found * known.sum() / (self._known * len(logits))

    def _from_teacher(self, ours: Tensor, theirs: Tensor, targets: Tensor) -> Tensor:
        """Return what the student loses against its teacher's logits; of mixed labels the heavier one is true."""
        recipe = self._recipe
        if recipe.target_type == "hard":
            return cross_entropy(ours, theirs.argmax(dim=1))
        if recipe.decoupled is None:
            return softened_divergence(ours, theirs, recipe.temperature)
        classes = targets if targets.ndim == 1 else targets.argmax(dim=1)
        parts = recipe.decoupled
        return decoupled_divergence(ours, theirs, classes, recipe.temperature, parts.target, parts.others)


class HintTraining(StudentWithTeacher):
    """A student whose layers up to the guided one learn to give what the teacher's hint layer gives (stage 1)."""

    def __init__(self, student: ImageClassifier, teacher: Teacher, *, hints: Hints, stream: str = "labelled") -> None:
        """Take the names of both layers, their middle ones where there are none, and the stream of images.

        Raises:
            UserError: a network has no such layer.
        """
        super().__init__(student, teacher)
        self._layers = _layer(student, "student", hints.student), _layer(teacher.networks[0], "teacher", hints.teacher)
        self._stream = stream
        spec = student.spec
        nothing = torch.zeros(2, spec.channels, spec.image_size, spec.image_size, dtype=torch.uint8)
        student.eval()
        with torch.no_grad():
            guided = layer_output(student, self._layers[0], nothing)
        student.train()
        self.regressor = Regressor(guided.shape, teacher.layer_output(self._layers[1], nothing).shape)

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss."""
        images = batch[self._stream].images
        guided = self.regressor(layer_output(self.student, self._layers[0], images))
        return {"loss": hint_loss(guided, self.teacher.layer_output(self._layers[1], images))}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer of student and regressor.

        What lies above the guided layer needs no freezing: it gets no gradient, and optimizers pass over such weights.
        """
        return self.student.configure_optimizers(self.regressor)


def _layer(network: ImageClassifier, whose: str, name: str | None) -> str:
    """Return the name of a layer, or of the middle one.

    Raises:
        UserError: there is no such layer.
    """
    if name is None:
        return middle_layer(network)
    names = [known for known, _ in network.backbone.named_modules(prefix="backbone")]
    if name not in names:
        raise UserError(f"strategy.hints.{whose}={name}: no such layer; there are {abbreviate(names[1:] or names)}")
    return name


def _all(config: Config, source: Source, splits: Splits) -> Stream:
    """Return the stream of the labelled images and those without labels, which no training reads the labels of.

    Raises:
        UserError: an option needs the label of every image.
    """
    recipe, mix = config.strategy, config.augmentation.mix
    assert isinstance(recipe, DistillationConfig)  # noqa: S101 - the strategy was chosen by this type
    even = config.data.balance == "sampling"
    for key, asked, instead in (
        ("strategy.decoupled", recipe.decoupled is not None, "null"),
        ("augmentation.mix", mix is not None, "null"),
        ("data.balance=sampling", even, "none or weights"),
    ):
        if asked:
            raise UserError(f"strategy.images=all: {key} needs the labels of all images; set it to {instead}")
    targets = np.concatenate([source.labels[splits.labelled], np.full(len(splits.pool), UNKNOWN)])
    indices = np.concatenate([splits.labelled, splits.pool])
    return Stream("all", indices, targets, config.data.batch_size, blocks=splits.blocks)


def stages(config: Config, source: Source, splits: Splits) -> Sequence[Stage]:
    """Return teacher, where hints are asked for a stage of them, student, control.

    Raises:
        UserError: several teachers give no one hint.
    """
    recipe = config.strategy
    assert isinstance(recipe, DistillationConfig)  # noqa: S101 - the strategy was chosen by this type
    labelled = labelled_stream(config, source, splits)
    stream = labelled if recipe.images == "labelled" else _all(config, source, splits)
    known = len(splits.labelled) / len(stream.indices)
    size = (stream.length, stream.batch_size)
    extent = length(config, 1.0, size)
    student = replace(
        supervised_on("student", config.model, extent, stream),
        module=partial(Distillation, recipe=recipe, stream=stream.name, known=known),
        teaching=teaching(recipe, stream.name),
        told=taught_by(recipe),
    )
    taught = [student]
    if recipe.hints is not None:
        if len(recipe.teachers) > 1:
            raise UserError(
                f"strategy.hints: {len(recipe.teachers)} teachers give no one hint; name one, or strategy.hints=null"
            )
        extent = length(config, recipe.hints.length, size)
        hints = replace(
            student,
            name=HINTS,
            steps=extent.steps,
            epoch_steps=extent.epoch_steps,
            module=partial(HintTraining, hints=recipe.hints, stream=stream.name),
            teaching=replace(teaching(recipe, stream.name), live=True, views=None),
            judged=False,
            told="hints: the student's lower layers learned to give what a teacher's layer gives; it has no head yet.",
        )
        taught = [hints, replace(student, starts_from=HINTS)]
    plan = [*teacher_stages(config, recipe, labelled), *taught]
    steps = sum(fit.steps for fit in taught)
    return [*plan, *([control(config, labelled, steps, student.epoch_steps)] if recipe.control else [])]
