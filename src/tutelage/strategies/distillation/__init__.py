"""Knowledge distillation (Hinton et al. 2015)."""

from tutelage.strategies.distillation.config import Decoupled, DistillationStrategy, Hints

__all__ = ["Decoupled", "DistillationStrategy", "Hints"]
