"""The config of teacher-student training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tutelage.strategies.frozen_teacher.config import FrozenTeacherStrategy

if TYPE_CHECKING:
    from tutelage.strategies.stage_context import StageContext
    from tutelage.strategies.stages import Stage


class TeacherStudentStrategy(FrozenTeacherStrategy):
    """Training of a student on a teacher's probabilities for images without labels."""

    def stages(self, context: "StageContext") -> "Sequence[Stage]":
        """Return the stages (see ``method.stages``)."""
        from tutelage.strategies.teacher_student.method import stages

        return stages(self, context)
