"""Supervised training: cross-entropy on the labelled images, or their nearest neighbours."""

from collections.abc import Sequence

from tutelage.config import NearestNeighboursConfig
from tutelage.strategies.stage_context import StageContext
from tutelage.strategies.stages import Stage
from tutelage.strategies.supervised.config import SupervisedStrategy


def stages(strategy: SupervisedStrategy, context: StageContext) -> Sequence[Stage]:
    """Return one stage, of one pass for nearest neighbours."""
    one_pass = isinstance(context.config.model, NearestNeighboursConfig)
    length = context.length(1.0, context.labelled)
    return [context.supervised_stage("supervised", length, context.labelled, one_pass=one_pass)]
