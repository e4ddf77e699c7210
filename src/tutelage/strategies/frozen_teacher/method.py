"""A student beside a frozen teacher, and the stages of teacher and control."""

from collections.abc import Sequence
from pathlib import Path

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from tutelage.data import StreamBatch
from tutelage.models import ImageClassifier, Teacher, softened_divergence
from tutelage.strategies.frozen_teacher.config import FrozenTeacherStrategy
from tutelage.strategies.learner import StudentModule
from tutelage.strategies.stage_context import Length, StageContext
from tutelage.strategies.stages import SCRATCH, TeacherSpec, TrainStage

TEACHER = "teacher"  # the name of the stage


class StudentWithTeacher(StudentModule):
    """A student beside a frozen teacher, which is not part of the module: not in its weights, optimizer or mode.

    Where the teacher has other classes than the student, a second head on the student's features learns the teacher's
    classes; the network that the stage ends with does not have it.
    """

    def __init__(self, student: ImageClassifier, teacher: Teacher) -> None:
        super().__init__(student)
        self.teacher = teacher
        self.second: nn.Module | None = None
        if not self.same_classes:
            self.second = nn.Linear(_count_features(student), len(teacher.classes))

    @property
    def same_classes(self) -> bool:
        """Whether teacher and student have the same classes, in the same order."""
        return self.teacher.classes == self.student.spec.classes

    def logits(self, batch: StreamBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits: the student's (B, C), the student's for the teacher's classes (B, K), the teacher's (B, K).

        The teacher's are the cached ones, where there are any.
        """
        teacher_logits = self.teacher(batch.images) if batch.cached is None else batch.cached
        features = self.student.features(batch.images)
        logits: Tensor = self.student.head(features)
        return logits, logits if self.second is None else self.second(features), teacher_logits

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer of the student and its second head, and the learning rate schedule."""
        return self.student.configure_optimizers(*([] if self.second is None else [self.second]))


def _count_features(network: ImageClassifier) -> int:
    """Return the number of features of a backbone."""
    spec = network.spec
    network.eval()  # batch norms must not update their statistics
    with torch.no_grad():
        features = network.features(torch.zeros(1, spec.channels, spec.image_size, spec.image_size, dtype=torch.uint8))
    network.train()
    return features.shape[1]


def agreement_metrics(student_logits: Tensor, teacher_logits: Tensor) -> dict[str, Tensor]:
    """Return the divergence of the student's from the teacher's logits (B, K), and how often both predict one class."""
    student_logits = student_logits.detach()
    same = student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)
    return {"kl": softened_divergence(student_logits, teacher_logits, 1.0), "agreement": same.float().mean()}


def teacher_spec(strategy: FrozenTeacherStrategy, stream: str) -> TeacherSpec:
    """Return the spec of the strategy's teachers on a stream."""
    cached_views = strategy.cached_views if strategy.teacher_logits == "views" else None
    networks = tuple(map(Path, strategy.teachers)) or TEACHER
    return TeacherSpec(stream, networks, cached_views=cached_views, live=strategy.teacher_logits == "live")


def teacher_stages(strategy: FrozenTeacherStrategy, context: StageContext) -> Sequence[TrainStage]:
    """Return the stage that trains the teacher; no stage where the strategy names finished teachers."""
    if strategy.teacher is None or strategy.teachers:
        return []
    length = context.length(strategy.teacher_length, context.labelled)
    return [context.supervised_stage(TEACHER, length, context.labelled, model=strategy.teacher, starts_from=SCRATCH)]


def student_control(context: StageContext, length: Length) -> TrainStage:
    """Return the stage that trains the student's network on the labels alone."""
    return context.control(
        length,
        f"Control: the student's network on the labels alone, for as many steps ({length.steps:,}) as with a teacher.",
    )
