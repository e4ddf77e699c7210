"""The config of pseudo-labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from tutelage.config import Strategy
from tutelage.config.section import Fraction, PartOf, Ratio, Weight

if TYPE_CHECKING:
    from tutelage.strategies.stage_context import StageContext
    from tutelage.strategies.stages import Stage


class PseudoLabelStrategy(Strategy):
    """Pseudo-labels (Lee 2013): the network's own predictions on the pool, computed anew at every step.

    Attributes:
        ramp_begins: the fraction of the steps up to which the pool's loss has no weight.
        ramp_ends: the fraction of the steps from which it has ``final_weight``; it rises linearly in between.
        threshold: the confidence below which a prediction has no weight.
    """

    unlabelled_ratio: Ratio = 1.0
    ramp_begins: Fraction
    ramp_ends: Fraction
    final_weight: Weight
    threshold: PartOf = 0.0
    control: bool = True

    @model_validator(mode="after")
    def _check_ramp(self) -> Self:
        if self.ramp_begins > self.ramp_ends:
            raise ValueError("strategy.ramp_begins must not be greater than strategy.ramp_ends")
        return self

    def stages(self, context: "StageContext") -> "Sequence[Stage]":
        """Return the stages (see ``method.stages``)."""
        from tutelage.strategies.pseudo_label.method import stages

        return stages(self, context)
