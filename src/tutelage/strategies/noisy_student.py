"""Noisy-student self-training (Xie et al. 2020, "Self-training with Noisy Student improves ImageNet classification").

The paper's algorithm 1: train a teacher on the labelled images; let it label the pool without noise; train a student,
as large or larger, with noise, on both; make the student the teacher and go on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from tutelage.config import Config, NoisyStudentConfig
from tutelage.data import Rules, Selection, Source, Splits, Stream, StreamBatch, select
from tutelage.errors import UserError
from tutelage.models import FineTuning, ImageClassifier, Teacher, accuracy, cross_entropy
from tutelage.strategies.learner import StudentModule
from tutelage.strategies.stages import (
    NOTHING,
    Length,
    PseudoLabelStage,
    Results,
    Stage,
    TeacherSpec,
    TrainStage,
    labelled_stream,
    length,
    pool_batch,
    supervised_on,
    unknown_stream,
)

VALIDATED = "val/accuracy"  # what has to gain


class NoisyStudent(StudentModule):
    """A student that learns from labelled images and from a teacher's stored labels of the pool.

    Labelled and pool images, each batch of its own size, go through one concatenated forward, so that batch
    normalisation sees them together; the loss is the sum of both mean cross-entropies.
    """

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss, its parts, and how right the answers are.

        ``agreement`` is what the stored labels weigh on the student's answers to the pool (see ``accuracy``): the share
        that is answered as the teacher did where labels are hard, how sure the teacher was of it where they are soft.
        """
        labelled, pool = batch["labelled"], batch["pool"]
        on_labelled, on_pool = self.both(labelled.images, pool.images)
        return self.parts(on_labelled, labelled.targets, on_pool, pool.targets, cross_entropy(on_pool, pool.targets))

    def both(self, labelled: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
        """Return the student's logits of labelled images and of the pool's, from one forward."""
        on_labelled, on_pool = self.student(torch.cat([labelled, pool])).split([len(labelled), len(pool)])
        return on_labelled, on_pool

    def parts(
        self, on_labelled: Tensor, targets: Tensor, on_pool: Tensor, told: Tensor, loss_pool: Tensor
    ) -> dict[str, Tensor]:
        """Return the loss, its parts, and how right the answers are."""
        loss_labelled = cross_entropy(on_labelled, targets, self.student.class_weights)
        return {
            "loss": loss_labelled + loss_pool,
            "loss_labelled": loss_labelled.detach(),
            "loss_pool": loss_pool.detach(),
            "accuracy": accuracy(on_labelled.detach(), targets),
            "agreement": accuracy(on_pool.detach(), told),
        }


class LiveNoisyStudent(NoisyStudent):
    """A student whose teacher answers to the pool's images, as they are, in the very step that shows views of them."""

    def __init__(self, student: ImageClassifier, teacher: Teacher, config: NoisyStudentConfig) -> None:
        """Take the confidence below which an answer counts nothing, and the kind and temperature of its labels."""
        super().__init__(student)
        self.teacher = teacher
        self._config = config

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss, its parts, and how right and sure the answers are.

        The pool's batch is all images as they are, then a view of each. ``sure`` is the share of them whose answer
        reaches the confidence; the others count nothing, and the mean is still over all.
        """
        labelled, (plain, views) = batch["labelled"], batch["pool"].images.chunk(2)
        answers = self.teacher(plain)
        certainty, hard = answers.softmax(dim=1).max(dim=1)
        told = hard if self._config.target_type == "hard" else (answers / self._config.temperature).softmax(dim=1)
        sure = (certainty >= self._config.confidence).float()
        on_labelled, on_pool = self.both(labelled.images, views)
        loss_pool = (sure * functional.cross_entropy(on_pool, told, reduction="none")).mean()
        return {**self.parts(on_labelled, labelled.targets, on_pool, told, loss_pool), "mask_rate": sure.mean()}


@dataclass(frozen=True)
class _Recipe:
    """Makes the stages of a run."""

    config: Config
    strategy: NoisyStudentConfig
    labelled: Stream
    splits: Splits
    pool_batch: int

    @property
    def _labelled_size(self) -> tuple[int, int]:
        return self.labelled.length, self.labelled.batch_size

    def teacher(self) -> TrainStage:
        """Return the first stage: the labels alone."""
        extent = length(self.config, self.strategy.teacher_length, self._labelled_size)
        return supervised_on("teacher", self.config.model, extent, self.labelled)

    def round(self, number: int, teacher: TrainStage) -> Sequence[Stage]:
        """Return what a round is: the labels of a teacher, where they are stored, and a student."""
        student = self.strategy.student_of_round(number)
        extent = length(self.config, student.length, self._labelled_size, (len(self.splits.pool), self.pool_batch))
        fit = replace(
            supervised_on(f"student-{number}", self.config.student_model(student), extent, self.labelled),
            images_per_step=self.labelled.batch_size + self.pool_batch,
            grows_from=teacher.name,
            starts_from=teacher.name if self.strategy.start == "teacher" else None,
        )
        if self.strategy.label_source == "live":
            module = partial(LiveNoisyStudent, config=self.strategy)
            asked = TeacherSpec("pool", teacher.name, live=True)
            return [replace(fit, streams=self._both_live, module=module, teaching=asked)]
        before = f"labels-{number - 1}" if number > 1 else None
        rules = partial(select, rules=self._rules())
        labels = PseudoLabelStage(f"labels-{number}", teacher.name, rules, self.strategy.tta_views, before)
        return [labels, replace(fit, streams=partial(self._both, labels.name), module=NoisyStudent)]

    def _rules(self) -> Rules:
        chosen = self.strategy
        return Rules(
            confidence=0.0 if self.config.debug else chosen.confidence,  # four steps make no network sure
            balance=chosen.balance,
            per_class=chosen.per_class,
            hard=chosen.target_type == "hard",
            temperature=chosen.temperature,
            in_order=len(self.splits.blocks) > 0,
        )

    def _both_live(self, selections: Mapping[str, Selection]) -> Sequence[Stream]:
        """Return the streams of a student whose teacher answers in each step; made when they are asked for."""
        return [self.labelled, unknown_stream(self.splits, self.pool_batch, "plain")]

    def _both(self, labels: str, selections: Mapping[str, Selection]) -> Sequence[Stream]:
        """Return the streams of a student: the labelled images, and those of the pool that were selected.

        Raises:
            UserError: there are none.
        """
        chosen = selections[labels]
        if not len(chosen.entries):
            raise UserError(f"strategy.confidence={self.strategy.confidence}: no pool image reaches it; set it lower")
        indices, blocks = self.splits.pool[chosen.entries], self.splits.blocks
        pool = Stream("pool", indices, chosen.targets, self.pool_batch, chosen.copies, blocks=blocks)
        return [self.labelled, pool]

    def finetune(self, student: TrainStage) -> TrainStage:
        """Return the last stage: un-augmented labels at a higher resolution, in which shallow layers may stay.

        Section 3.1 of the paper, after Touvron et al. 2019 ("Fixing the train-test resolution discrepancy"): objects
        look larger in a random crop than in the image as it is, and a network goes on where it will be used.
        """
        recipe = self.strategy.finetune
        assert recipe is not None  # noqa: S101 - the caller has looked
        return replace(
            supervised_on(
                "finetune", student.model, length(self.config, recipe.length, self._labelled_size), self.labelled
            ),
            starts_from=student.name,
            image_size=recipe.image_size,
            augmented=False,
            lr_scale=recipe.lr_scale,
            tuning=FineTuning(frozen_layers=recipe.frozen_layers),
        )

    def control(self, last: TrainStage, fits: Sequence[TrainStage]) -> TrainStage:
        """Return plain training on the labels, with a student's network and noise, as long as some stages together."""
        extent = Length(sum(fit.steps for fit in fits), last.epoch_steps)
        return replace(supervised_on("control", last.model, extent, self.labelled), control=True)


def _gains(student: TrainStage, over: TrainStage, results: Results) -> bool | None:
    """Return whether a student is better on validation than what it came from; None where that is yet to be seen."""
    if student.name not in results or over.name not in results:
        return None
    return results[student.name][VALIDATED] > results[over.name][VALIDATED]


def _rounds(make: _Recipe, results: Results) -> tuple[list[Stage], TrainStage]:
    """Return teacher, labels and student in turn, and the one that is chosen, as far as is known.

    Under ``until=validation`` what is yet to be seen is planned as if it gained; where there is no limit, one round
    beyond those listed.
    """
    recipe, chosen = make.strategy, make.teacher()
    plan: list[Stage] = [chosen]
    endless = recipe.until == "validation" and recipe.rounds is None
    number, seen = 1, True
    while number <= len(recipe.students_by_round) or (endless and seen):
        *labels, student = make.round(number, chosen)
        assert isinstance(student, TrainStage)  # noqa: S101 - a round ends with its student
        gains = _gains(student, chosen, results) if recipe.until == "validation" else None
        plan += [*labels, replace(student, rejected=gains is False)]
        if gains is False:
            break
        chosen, seen, number = student, gains is not None, number + 1
    return plan, chosen


def stages(config: Config, source: Source, splits: Splits, results: Results = NOTHING) -> Sequence[Stage]:
    """Return teacher, then labels and student in turn, a fine-tune where one is asked for, then the control.

    The control is plain supervised training on the same labels with the last student's architecture, augmentation and
    noise, for as many steps as all the other stages together: what it lacks against the last student is the method.

    Args:
        config: the whole config.
        source: the data.
        splits: who may see which image.
        results: of the stages that are finished, by name. What comes after them follows from them alone.

    Raises:
        UserError: there is no pool, or nothing to validate on where that decides.
    """
    recipe = config.strategy
    assert isinstance(recipe, NoisyStudentConfig)  # noqa: S101 - the strategy was chosen by this type
    if recipe.until == "validation" and not len(splits.validation):
        raise UserError(
            "strategy.until=validation: there are no validation images; give some by data.validation=inside or "
            "outside:N, or strategy.until=rounds"
        )
    labelled = labelled_stream(config, source, splits)
    make = _Recipe(config, recipe, labelled, splits, pool_batch(config, splits, recipe.unlabelled_ratio))
    plan, chosen = _rounds(make, results)
    if recipe.finetune is not None:
        plan.append(make.finetune(chosen))
    if recipe.control:
        plan.append(make.control(chosen, [stage for stage in plan if isinstance(stage, TrainStage)]))
    return plan
