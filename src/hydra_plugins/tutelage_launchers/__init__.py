"""Tutelage's launchers. Hydra imports these modules at every start, so they import heavy modules only when needed."""
