"""A student learns a frozen teacher's probabilities."""

from tutelage.strategies.teacher_student.config import TeacherStudentStrategy

__all__ = ["TeacherStudentStrategy"]
