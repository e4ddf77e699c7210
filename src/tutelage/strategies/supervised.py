"""Supervised training: cross-entropy on the labelled images, or their neighbours, and nothing else."""

from collections.abc import Sequence
from dataclasses import replace

from tutelage.config import Config, NearestNeighboursConfig
from tutelage.data import Source, Splits
from tutelage.strategies.stages import Stage, labelled_stream, length, supervised_on


def stages(config: Config, source: Source, splits: Splits) -> Sequence[Stage]:
    """Return the one stage."""
    stream = labelled_stream(config, source, splits)
    extent = length(config, 1.0, (stream.length, stream.batch_size))
    fit = supervised_on("supervised", config.model, extent, stream)
    return [replace(fit, one_pass=isinstance(config.model, NearestNeighboursConfig))]
