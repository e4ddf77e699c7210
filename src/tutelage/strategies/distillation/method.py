"""Knowledge distillation: a student learns from labels and from a frozen teacher's softened probabilities.

Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network"; before it, hints from a middle layer of
the teacher (Romero et al. 2015, "FitNets"); the divergence in two parts (Zhao et al. 2022, "Decoupled Knowledge
Distillation").
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from tutelage.data import UNKNOWN, Stream, StreamBatch, abbreviate
from tutelage.errors import UserError
from tutelage.models import (
    COUNT,
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
from tutelage.strategies.distillation.config import DistillationStrategy, Hints
from tutelage.strategies.frozen_teacher.method import (
    TEACHER,
    StudentWithTeacher,
    agreement_metrics,
    student_control,
    teacher_spec,
    teacher_stages,
)
from tutelage.strategies.stage_context import Length, StageContext
from tutelage.strategies.stages import Stage, TrainStage

HINTS = "hints"  # the name of the stage


class Distillation(StudentWithTeacher):
    """A student that learns from labels, with weight ``alpha``, and from its teacher, with weight 1 - ``alpha``."""

    def __init__(
        self,
        student: ImageClassifier,
        teacher: Teacher,
        *,
        config: DistillationStrategy,
        stream: str = "labelled",
        labelled_fraction: float = 1.0,
    ) -> None:
        """Keep the losses' weights and temperature, the stream, and the fraction of its images that have labels.

        Raises:
            UserError: the decoupled divergence needs the true classes, which the teacher does not have.
        """
        super().__init__(student, teacher)
        self._config = config
        self._stream = stream
        self._labelled_fraction = labelled_fraction
        if config.decoupled is not None and not self.same_classes:
            raise UserError(
                "strategy.decoupled: the teacher's classes are not those of the data, so that none of them is the true "
                "class; set it to null"
            )

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss, its parts, how much student and teacher agree, and the accuracy of both."""
        images, alpha = batch[self._stream], self._config.alpha
        logits, student_logits, teacher_logits = self.logits(images)
        loss_label = self._label_loss(logits, images.targets)
        loss_teacher = self._teacher_loss(student_logits, teacher_logits, images.targets)
        parts = {
            "loss": alpha * loss_label + (1 - alpha) * loss_teacher,
            "loss_label": loss_label.detach(),
            "loss_teacher": loss_teacher.detach(),
            **agreement_metrics(student_logits, teacher_logits),
            **self._count_correct("accuracy", logits.detach(), images.targets),
        }
        if self.same_classes:
            parts |= self._count_correct("teacher_accuracy", teacher_logits, images.targets)
        return parts

    def _count_correct(self, name: str, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the accuracy of logits (B, C), or how many are right and the number of labelled images (``COUNT``)."""
        if self._labelled_fraction == 1:
            return {name: accuracy(logits, targets)}
        labelled = targets != UNKNOWN
        correct = (logits.argmax(dim=1) == targets) & labelled
        return {name: correct.sum().float(), f"{name}{COUNT}": labelled.sum().float()}

    def _label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return this batch's estimate of the mean label loss over the labelled images, of logits (B, C).

        A batch has more or fewer labelled images, or none: the sum of their losses, divided by the number that a batch
        has on average, is right over a pass.
        """
        if self._labelled_fraction == 1:
            return self.student.label_loss(logits, targets)
        labelled = targets != UNKNOWN
        if not labelled.any():
            return 0 * logits.sum()
        mean = self.student.label_loss(logits[labelled], targets[labelled])
        return mean * labelled.sum() / (self._labelled_fraction * len(logits))

    def _teacher_loss(self, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss against the teacher's logits; of mixed labels the one with the larger weight is true."""
        config = self._config
        if config.target_type == "hard":
            return cross_entropy(student_logits, teacher_logits.argmax(dim=1))
        if config.decoupled is None:
            return softened_divergence(student_logits, teacher_logits, config.temperature)
        classes = targets if targets.ndim == 1 else targets.argmax(dim=1)
        weights = config.decoupled
        return decoupled_divergence(
            student_logits, teacher_logits, classes, config.temperature, weights.target, weights.others
        )


class HintTraining(StudentWithTeacher):
    """A student whose layers up to the guided one learn the output of the teacher's hint layer (stage 1)."""

    def __init__(self, student: ImageClassifier, teacher: Teacher, *, hints: Hints, stream: str = "labelled") -> None:
        """Find both layers, by default the middle ones, and make the regressor between them.

        Raises:
            UserError: a network has no such layer.
        """
        super().__init__(student, teacher)
        self._guided = _find_layer(student, "student", hints.student)
        self._hint = _find_layer(teacher.networks[0], "teacher", hints.teacher)
        self._stream = stream
        spec = student.spec
        black = torch.zeros(2, spec.channels, spec.image_size, spec.image_size, dtype=torch.uint8)
        student.eval()
        with torch.no_grad():
            guided = layer_output(student, self._guided, black)
        student.train()
        self.regressor = Regressor(guided.shape, teacher.layer_output(self._hint, black).shape)

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss."""
        images = batch[self._stream].images
        guided = self.regressor(layer_output(self.student, self._guided, images))
        return {"loss": hint_loss(guided, self.teacher.layer_output(self._hint, images))}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer of student and regressor, and the learning rate schedule.

        The layers above the guided one need not be frozen: they get no gradient, and optimizers skip such parameters.
        """
        return self.student.configure_optimizers(self.regressor)


def _find_layer(network: ImageClassifier, role: str, name: str | None) -> str:
    """Return the name of a layer of the student or teacher (``role``), checked; the middle one for None.

    Raises:
        UserError: there is no such layer.
    """
    if name is None:
        return middle_layer(network)
    names = [module for module, _ in network.backbone.named_modules(prefix="backbone")]
    if name not in names:
        raise UserError(f"strategy.hints.{role}={name}: no such layer; there are {abbreviate(names[1:] or names)}")
    return name


def _stream_of_all_images(strategy: DistillationStrategy, context: StageContext) -> Stream:
    """Return the stream of the labelled images and of the pool, whose labels are not used.

    Raises:
        UserError: an option needs the label of every image.
    """
    config, source, splits = context.config, context.source, context.splits
    for key, is_set, allowed in (
        ("strategy.decoupled", strategy.decoupled is not None, "null"),
        ("augmentation.mix", config.augmentation.mix is not None, "null"),
        ("data.balance=sampling", config.data.balance == "sampling", "none or weights"),
    ):
        if is_set:
            raise UserError(f"strategy.images=all: {key} needs the labels of all images; set it to {allowed}")
    targets = np.concatenate([source.labels[splits.labelled], np.full(len(splits.pool), UNKNOWN)])
    indices = np.concatenate([splits.labelled, splits.pool])
    return Stream("all", indices, targets, config.data.batch_size, blocks=splits.blocks)


def _hint_stage(strategy: DistillationStrategy, context: StageContext, hints: Hints, stream: Stream) -> TrainStage:
    """Return the stage in which the student learns from a hint, before it learns from labels.

    Raises:
        UserError: there are several teachers.
    """
    if len(strategy.teachers) > 1:
        raise UserError(
            f"strategy.hints: {len(strategy.teachers)} teachers give no one hint; name one, or strategy.hints=null"
        )
    return context.supervised_stage(
        HINTS,
        context.length(hints.length, stream),
        stream,
        module=partial(HintTraining, hints=hints, stream=stream.name),
        teacher=replace(teacher_spec(strategy, stream.name), live=True, cached_views=None),
        select_best=False,
        note="hints: the student's lower layers learned to give what a teacher's layer gives; it has no head yet.",
    )


def stages(strategy: DistillationStrategy, context: StageContext) -> Sequence[Stage]:
    """Return teacher, under ``strategy.hints`` the stage of hints, student, control.

    Raises:
        UserError: hints cannot come from several teachers.
    """
    stream = context.labelled if strategy.images == "labelled" else _stream_of_all_images(strategy, context)
    labelled_fraction = len(context.splits.labelled) / len(stream.indices)
    student = context.supervised_stage(
        "student",
        context.length(1.0, stream),
        stream,
        module=partial(Distillation, config=strategy, stream=stream.name, labelled_fraction=labelled_fraction),
        teacher=teacher_spec(strategy, stream.name),
        aims_at=None if strategy.teachers else TEACHER,
    )
    taught = [student]
    if strategy.hints is not None:
        taught = [_hint_stage(strategy, context, strategy.hints, stream), replace(student, starts_from=HINTS)]
    length = Length(sum(stage.steps for stage in taught), student.epoch_steps)
    control = [student_control(context, length)] if strategy.control else []
    return [*teacher_stages(strategy, context), *taught, *control]
