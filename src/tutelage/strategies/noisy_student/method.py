"""Noisy-student self-training (Xie et al. 2020, "Self-training with Noisy Student improves ImageNet classification").

The paper's algorithm 1: train a teacher on the labelled images; let it label the pool without noise; train a student,
as large or larger, with noise, on both; make the student the teacher and go on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn import functional

from tutelage.data import Rules, Selection, Stream, StreamBatch, select
from tutelage.errors import UserError
from tutelage.models import ImageClassifier, Teacher, accuracy, cross_entropy
from tutelage.strategies.learner import StudentModule
from tutelage.strategies.noisy_student.config import FinetuneConfig, NoisyStudentStrategy
from tutelage.strategies.stage_context import Length, StageContext, stage_length
from tutelage.strategies.stages import PseudoLabelStage, Results, Stage, TeacherSpec, TrainStage

CONTROL_NOTE = (
    "Control: the last student's network, augmentation and noise on the labels alone, "
    "for as many steps as all other stages together."
)


class NoisyStudent(StudentModule):
    """A student that learns from labelled images and from a teacher's stored labels of the pool.

    Labelled and pool images, each batch of its own size, go through one concatenated forward pass, so that batch
    normalisation sees them together; the loss is the sum of both mean cross-entropies.
    """

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss, its parts, the accuracy on labelled images, and the agreement with the teacher.

        ``agreement`` is the weight of the student's predictions in the pool's stored labels (see ``accuracy``): for
        hard labels how often student and teacher predict the same class, for soft labels the teacher's mean probability
        of the student's prediction.
        """
        labelled, pool = batch["labelled"], batch["pool"]
        labelled_logits, pool_logits = self.split_logits(labelled.images, pool.images)
        loss_pool = cross_entropy(pool_logits, pool.targets)
        return self.parts(labelled_logits, labelled.targets, pool_logits, pool.targets, loss_pool)

    def split_logits(self, labelled: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
        """Return the student's logits of labelled images and of the pool's, from one forward pass."""
        labelled_logits, pool_logits = self.student(torch.cat([labelled, pool])).split([len(labelled), len(pool)])
        return labelled_logits, pool_logits

    def parts(
        self, labelled_logits: Tensor, targets: Tensor, pool_logits: Tensor, pseudo_labels: Tensor, loss_pool: Tensor
    ) -> dict[str, Tensor]:
        """Return the loss, its parts, the accuracy on labelled images, and the agreement with the teacher."""
        loss_labelled = self.student.label_loss(labelled_logits, targets)
        return {
            "loss": loss_labelled + loss_pool,
            "loss_labelled": loss_labelled.detach(),
            "loss_pool": loss_pool.detach(),
            "accuracy": accuracy(labelled_logits.detach(), targets),
            "agreement": accuracy(pool_logits.detach(), pseudo_labels),
        }


class LiveNoisyStudent(NoisyStudent):
    """A student whose teacher labels the pool's images, as they are, in the very step that shows views of them."""

    def __init__(self, student: ImageClassifier, teacher: Teacher, config: NoisyStudentStrategy) -> None:
        """Keep the confidence below which a label is not used, and the type and temperature of the labels."""
        super().__init__(student)
        self.teacher = teacher
        self._config = config

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return what ``NoisyStudent`` does, and the mask rate.

        The pool's batch is all images as they are, then a view of each. ``mask_rate`` is the fraction of them where the
        teacher reaches the confidence; the others have loss 0, and the mean is still over all.
        """
        labelled, (plain, views) = batch["labelled"], batch["pool"].images.chunk(2)
        teacher_logits = self.teacher(plain)
        confidence, classes = teacher_logits.softmax(dim=1).max(dim=1)
        pseudo_labels = classes
        if self._config.target_type == "soft":
            pseudo_labels = (teacher_logits / self._config.temperature).softmax(dim=1)
        mask = (confidence >= self._config.confidence).float()
        labelled_logits, pool_logits = self.split_logits(labelled.images, views)
        loss_pool = (mask * functional.cross_entropy(pool_logits, pseudo_labels, reduction="none")).mean()
        parts = self.parts(labelled_logits, labelled.targets, pool_logits, pseudo_labels, loss_pool)
        return {**parts, "mask_rate": mask.mean()}


@dataclass(frozen=True)
class _RoundStages(StageContext):
    """Builds the stages of teacher, rounds, fine-tuning and control."""

    strategy: NoisyStudentStrategy = field(kw_only=True)

    @cached_property
    def unlabelled_batch_size(self) -> int:
        """The number of pool images of a step."""
        return self.pool_batch_size(self.strategy.unlabelled_ratio)

    def first_teacher(self) -> TrainStage:
        """Return the first stage: a teacher learns from the labelled images alone."""
        length = self.length(self.strategy.teacher_length, self.labelled)
        return self.supervised_stage("teacher", length, self.labelled)

    def round(self, number: int, teacher: TrainStage) -> tuple[Sequence[PseudoLabelStage], TrainStage]:
        """Return the stages of a round: the teacher labels the pool, unless it does so live, and a student learns."""
        student_config = self.strategy.student_of_round(number)
        labelled, batch_size = self.labelled, self.unlabelled_batch_size
        student = self.supervised_stage(
            f"student-{number}",
            stage_length(
                self.config,
                student_config.length,
                (labelled.length, labelled.batch_size),
                (len(self.splits.pool), batch_size),
            ),
            labelled,
            model=self.strategy.student_model(student_config, self.config),
            images_per_step=labelled.batch_size + batch_size,
            grows_from=teacher.name,
            starts_from=teacher.name if self.strategy.start == "teacher" else None,
        )
        if self.strategy.label_source == "live":
            return [], replace(
                student,
                streams=self._live_streams,
                module=partial(LiveNoisyStudent, config=self.strategy),
                teacher=TeacherSpec("pool", teacher.name, live=True),
            )
        labelling = PseudoLabelStage(
            f"labels-{number}",
            teacher.name,
            select=partial(select, rules=self._selection_rules()),
            tta_views=self.strategy.tta_views,
            previous=f"labels-{number - 1}" if number > 1 else None,
        )
        return [labelling], replace(
            student, streams=partial(self._selected_streams, labelling.name), module=NoisyStudent
        )

    def _selection_rules(self) -> Rules:
        strategy = self.strategy
        return Rules(
            confidence=0.0 if self.config.debug else strategy.confidence,  # after four steps no network is confident
            balance=strategy.balance,
            per_class=strategy.per_class,
            hard=strategy.target_type == "hard",
            temperature=strategy.temperature,
            in_order=len(self.splits.blocks) > 0,
        )

    def _live_streams(self, selections: Mapping[str, Selection]) -> Sequence[Stream]:
        """Return the streams of a student with a live teacher: the labelled images, and the whole pool."""
        return [self.labelled, self.unlabelled_stream(self.unlabelled_batch_size, "plain")]

    def _selected_streams(self, labels: str, selections: Mapping[str, Selection]) -> Sequence[Stream]:
        """Return the streams of a student: the labelled images, and those of the pool that a stage selected.

        Raises:
            UserError: none was selected.
        """
        selection = selections[labels]
        if not len(selection.entries):
            raise UserError(f"strategy.confidence={self.strategy.confidence}: no pool image reaches it; set it lower")
        indices, batch_size = self.splits.pool[selection.entries], self.unlabelled_batch_size
        pool = Stream("pool", indices, selection.targets, batch_size, selection.copies, blocks=self.splits.blocks)
        return [self.labelled, pool]

    def finetune(self, finetune: FinetuneConfig, student: TrainStage) -> TrainStage:
        """Return the last stage: un-augmented labelled images at a higher resolution; lower layers may be frozen.

        Section 3.1 of the paper, after Touvron et al. 2019 ("Fixing the train-test resolution discrepancy"): objects
        are larger in a random crop than in the whole image, and the network is fine-tuned at the size that objects have
        at test time.
        """
        tuning = self.fine_tuning(student.model, student.name)
        frozen_layers = max(finetune.frozen_layers, student.model.frozen_layers)
        return self.supervised_stage(
            "finetune",
            self.length(finetune.length, self.labelled),
            self.labelled,
            model=student.model,
            starts_from=student.name,
            image_size=finetune.image_size,
            augmented=False,
            lr_scale=finetune.lr_scale,
            fine_tuning=replace(tuning, frozen_layers=frozen_layers),
        )


def _has_gained(student: TrainStage, teacher: TrainStage, results: Results, monitor: str) -> bool | None:
    """Return whether a student is better on validation than its teacher, by the metric that selects the best weights.

    None where either has no result yet.
    """
    if student.name not in results or teacher.name not in results:
        return None
    return results[student.name][monitor] > results[teacher.name][monitor]


def _rounds(build: _RoundStages) -> tuple[list[Stage], TrainStage]:
    """Return teacher, pseudo-labels and student in turn, and the stage of the best network, as far as is known.

    Under ``until=validation`` students without a result are listed as if they gained; where there is no limit, one
    round beyond those in the config.
    """
    strategy, results, teacher = build.strategy, build.results, build.first_teacher()
    stages: list[Stage] = [teacher]
    unlimited = strategy.until == "validation" and strategy.rounds is None
    number, measured = 1, True
    while number <= len(strategy.students_by_round) or (unlimited and measured):
        labelling, student = build.round(number, teacher)
        gained = None
        if strategy.until == "validation":
            gained = _has_gained(student, teacher, results, build.config.callbacks.monitor)
        stages += [*labelling, replace(student, rejected=gained is False)]
        if gained is False:
            break
        teacher, measured, number = student, gained is not None, number + 1
    return stages, teacher


def stages(strategy: NoisyStudentStrategy, context: StageContext) -> Sequence[Stage]:
    """Return teacher, then pseudo-labels and student in turn, under ``strategy.finetune`` that stage, then the control.

    The control is plain supervised training on the same labels with the last student's architecture, augmentation and
    noise, for as many steps as all the other stages together: the last student's gain over it is due to the method.

    Raises:
        UserError: there is no pool, or no validation images under ``until=validation``.
    """
    if strategy.until == "validation" and not len(context.splits.validation):
        raise UserError(
            "strategy.until=validation: there are no validation images; give some by data.validation=inside or "
            "outside:N, or strategy.until=rounds"
        )
    build = _RoundStages(context.config, context.source, context.splits, context.results, strategy=strategy)
    listed, best = _rounds(build)
    if strategy.finetune is not None:
        listed.append(build.finetune(strategy.finetune, best))
    if strategy.control:
        trained = [stage for stage in listed if isinstance(stage, TrainStage)]
        length = Length(sum(stage.steps for stage in trained), best.epoch_steps)
        listed.append(context.control(length, note=CONTROL_NOTE, model=best.model))
    return listed
