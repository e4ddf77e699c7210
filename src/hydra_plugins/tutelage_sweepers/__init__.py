"""Tutelage's sweepers. Hydra imports these modules at every start: what is heavy is imported when it is needed."""
