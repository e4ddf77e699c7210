"""Pseudo-labels of the pool: stored, selected and summarised."""
