"""Pseudo-labels (Lee 2013)."""

from tutelage.strategies.pseudo_label.config import PseudoLabelStrategy

__all__ = ["PseudoLabelStrategy"]
