"""FixMatch (Sohn et al. 2020)."""

from tutelage.strategies.fixmatch.config import FixMatchStrategy

__all__ = ["FixMatchStrategy"]
