"""A student learns a frozen teacher's softened probabilities (Hinton et al. 2015), here on images without labels."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from tutelage.data import StreamBatch
from tutelage.errors import UserError
from tutelage.models import ImageClassifier, Teacher, softened_divergence
from tutelage.strategies.frozen_teacher.method import (
    TEACHER,
    StudentWithTeacher,
    agreement_metrics,
    student_control,
    teacher_spec,
    teacher_stages,
)
from tutelage.strategies.stage_context import StageContext
from tutelage.strategies.stages import Stage
from tutelage.strategies.teacher_student.config import TeacherStudentStrategy


class TeacherStudent(StudentWithTeacher):
    """A student that learns a teacher's softened probabilities and nothing else."""

    def __init__(self, student: ImageClassifier, teacher: Teacher, *, stream: str, temperature: float) -> None:
        """Keep the stream of images, and the temperature that softens both networks' probabilities.

        Raises:
            UserError: teacher and student have different classes: the student would not learn its own.
        """
        super().__init__(student, teacher)
        if not self.same_classes:
            raise UserError(
                "strategy=teacher_student: the teacher's classes are not those of the data, and nothing else teaches "
                "the student; use strategy=distillation"
            )
        self._stream = stream
        self._temperature = temperature

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss, and how much student and teacher agree."""
        _, student_logits, teacher_logits = self.logits(batch[self._stream])
        return {
            "loss": softened_divergence(student_logits, teacher_logits, self._temperature),
            **agreement_metrics(student_logits, teacher_logits),
        }


def stages(strategy: TeacherStudentStrategy, context: StageContext) -> Sequence[Stage]:
    """Return teacher, student, control."""
    if len(context.splits.pool):
        stream, note = context.unlabelled_stream(context.config.data.batch_size), ""
    else:
        stream = context.labelled
        note = "student: trained on the labelled images, without their labels, as there are no other images."
    length = context.length(1.0, stream)
    student = context.supervised_stage(
        "student",
        length,
        stream,
        module=partial(TeacherStudent, stream=stream.name, temperature=strategy.temperature),
        teacher=teacher_spec(strategy, stream.name),
        aims_at=None if strategy.teachers else TEACHER,
        note=note,
    )
    taught = [*teacher_stages(strategy, context), student]
    return [*taught, student_control(context, length)] if strategy.control else taught
