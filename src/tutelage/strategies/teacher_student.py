"""A student learns a frozen teacher's softened answers (Hinton et al. 2015), here on images without labels."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from tutelage.config import Config, FrozenTeacherConfig, TeacherStudentConfig
from tutelage.data import Source, Splits, Stream, StreamBatch
from tutelage.errors import UserError
from tutelage.models import ImageClassifier, Teacher, softened_divergence
from tutelage.strategies.learner import StudentModule
from tutelage.strategies.stages import (
    SCRATCH,
    Length,
    Stage,
    TeacherSpec,
    TrainStage,
    labelled_stream,
    length,
    supervised_on,
    unknown_stream,
)

TEACHER = "teacher"  # the stage


class StudentWithTeacher(StudentModule):
    """A student beside a frozen teacher, which is no part of it: not in its weights, its optimizer or its mode.

    Where the teacher tells other classes apart, a second head on the student's features learns to answer as it does;
    the network that the stage ends with does not have it.
    """

    def __init__(self, student: ImageClassifier, teacher: Teacher) -> None:
        super().__init__(student)
        self.teacher = teacher
        self.second: nn.Module | None = None
        if not self.same_classes:
            self.second = nn.Linear(_feature_count(student), len(teacher.classes))

    @property
    def same_classes(self) -> bool:
        """Whether teacher and student tell the same classes apart."""
        return self.teacher.classes == self.student.spec.classes

    def answers(self, shown: StreamBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits: the student's (B, C), its answers to the teacher (B, K), and the teacher's (B, K).

        Those of the teacher are the kept ones, where they are kept.
        """
        theirs = self.teacher(shown.images) if shown.answers is None else shown.answers
        features = self.student.features(shown.images)
        own: Tensor = self.student.head(features)
        return own, own if self.second is None else self.second(features), theirs

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer of the student and its second head."""
        return self.student.configure_optimizers(*([] if self.second is None else [self.second]))


def _feature_count(network: ImageClassifier) -> int:
    """Return how many features a backbone gives."""
    spec = network.spec
    network.eval()  # a batch norm must not take part of this
    with torch.no_grad():
        found = network.features(torch.zeros(1, spec.channels, spec.image_size, spec.image_size, dtype=torch.uint8))
    network.train()
    return found.shape[1]


def agreement_metrics(ours: Tensor, theirs: Tensor) -> dict[str, Tensor]:
    """Return how near the student's logits (B, K) are to the teacher's: divergence, and share of the same answers."""
    ours = ours.detach()
    same = ours.argmax(dim=1) == theirs.argmax(dim=1)
    return {"kl": softened_divergence(ours, theirs, 1.0), "agreement": same.float().mean()}


class TeacherStudent(StudentWithTeacher):
    """A student that learns a teacher's softened answers and nothing else."""

    def __init__(self, student: ImageClassifier, teacher: Teacher, *, stream: str, temperature: float) -> None:
        """Take the stream of images, and the temperature of both networks' answers.

        Raises:
            UserError: the teacher tells other classes apart: nothing would teach the student its own.
        """
        super().__init__(student, teacher)
        if not self.same_classes:
            raise UserError(
                "strategy=teacher_student: the teacher tells other classes apart than the data has, and nothing else "
                "teaches the student; use strategy=distillation"
            )
        self._stream = stream
        self._temperature = temperature

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss, and how near the student is to its teacher."""
        _, ours, theirs = self.answers(batch[self._stream])
        return {"loss": softened_divergence(ours, theirs, self._temperature), **agreement_metrics(ours, theirs)}


def teaching(recipe: FrozenTeacherConfig, stream: str) -> TeacherSpec:
    """Return what the recipe's teachers answer to a stream."""
    views = recipe.cached_views if recipe.teacher_logits == "views" else None
    networks = tuple(map(Path, recipe.teachers)) or TEACHER
    return TeacherSpec(stream, networks, views=views, live=recipe.teacher_logits == "live")


def taught_by(recipe: FrozenTeacherConfig) -> str:
    """Return which finished runs teach the student, as a sentence; nothing where its teacher stands in the table."""
    return f"student: taught by {', '.join(recipe.teachers)}." if recipe.teachers else ""


def teacher_stages(config: Config, recipe: FrozenTeacherConfig, stream: Stream) -> Sequence[TrainStage]:
    """Return the stage that trains the teacher; none where there are teachers."""
    if recipe.teachers:
        return []
    assert recipe.teacher is not None  # noqa: S101 - the schema asks for one or the other
    extent = length(config, recipe.teacher_length, (stream.length, stream.batch_size))
    return [replace(supervised_on(TEACHER, recipe.teacher, extent, stream), starts_from=SCRATCH)]


def control(config: Config, stream: Stream, steps: int, epoch_steps: int) -> TrainStage:
    """Return the student's network on the labels alone."""
    told = f"Control: the student's network on the labels alone, for as many steps ({steps:,}) as with a teacher."
    return replace(supervised_on("control", config.model, Length(steps, epoch_steps), stream), control=True, told=told)


def stages(config: Config, source: Source, splits: Splits) -> Sequence[Stage]:
    """Return teacher, student, control."""
    recipe = config.strategy
    assert isinstance(recipe, TeacherStudentConfig)  # noqa: S101 - the strategy was chosen by this type
    labelled = labelled_stream(config, source, splits)
    stream, told = labelled, "student: it saw the labelled images, without their labels: there are no others."
    if len(splits.pool):
        stream, told = unknown_stream(splits, config.data.batch_size), ""
    extent = length(config, 1.0, (stream.length, stream.batch_size))
    plan = list(teacher_stages(config, recipe, labelled))
    plan.append(
        replace(
            supervised_on("student", config.model, extent, stream),
            module=partial(TeacherStudent, stream=stream.name, temperature=recipe.temperature),
            teaching=teaching(recipe, stream.name),
            told=" ".join(filter(None, (taught_by(recipe), told))),
        )
    )
    return [*plan, *([control(config, labelled, extent.steps, extent.epoch_steps)] if recipe.control else [])]
