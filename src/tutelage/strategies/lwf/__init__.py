"""Learning without forgetting (Li and Hoiem 2016)."""

from tutelage.strategies.lwf.config import LwFStrategy

__all__ = ["LwFStrategy"]
