"""Mean teacher (Tarvainen and Valpola 2017)."""

from tutelage.strategies.mean_teacher.config import MeanTeacherStrategy

__all__ = ["MeanTeacherStrategy"]
