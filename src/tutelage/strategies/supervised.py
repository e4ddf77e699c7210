"""Supervised training: cross-entropy on the labelled images, or their nearest neighbours."""

from collections.abc import Sequence

from tutelage.config import Config, NearestNeighboursConfig
from tutelage.data import Source, Splits
from tutelage.strategies.stage_builder import StageBuilder
from tutelage.strategies.stages import Stage


def stages(config: Config, source: Source, splits: Splits) -> Sequence[Stage]:
    """Return one stage, of one pass for nearest neighbours."""
    build = StageBuilder(config, source, splits)
    one_pass = isinstance(config.model, NearestNeighboursConfig)
    return [build.supervised_stage("supervised", build.length(1.0, build.labelled), build.labelled, one_pass=one_pass)]
