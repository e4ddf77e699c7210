"""Noisy-student self-training (Xie et al. 2020)."""

from tutelage.strategies.noisy_student.config import FinetuneConfig, NoisyStudentStrategy, StudentConfig

__all__ = ["FinetuneConfig", "NoisyStudentStrategy", "StudentConfig"]
