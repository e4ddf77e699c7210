"""What all strategies with a frozen teacher have in common."""

from tutelage.strategies.frozen_teacher.config import FrozenTeacherStrategy

__all__ = ["FrozenTeacherStrategy"]
