"""Tutelage trains image classifiers where labels are scarce."""

__version__ = "0.1.0"
