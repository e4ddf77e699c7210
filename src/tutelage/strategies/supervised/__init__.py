"""Supervised training on the labelled images."""

from tutelage.strategies.supervised.config import SupervisedStrategy

__all__ = ["SupervisedStrategy"]
