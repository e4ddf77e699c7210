"""The jobs of a sweep, the folder that records how they ended, and the checks before the first one. Needs no torch."""
