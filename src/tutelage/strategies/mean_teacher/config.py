"""The config of mean teacher."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from tutelage.config import Strategy
from tutelage.config.section import Fraction, PartOf, Ratio, Weight
from tutelage.strategies.config_checks import check_unmixed

if TYPE_CHECKING:
    from tutelage.config import Config
    from tutelage.strategies.stage_context import StageContext
    from tutelage.strategies.stages import Stage


class MeanTeacherStrategy(Strategy):
    """Mean teacher (Tarvainen and Valpola 2017): the teacher is the average of the student's past weights.

    Attributes:
        weight: the weight of the consistency loss after the ramp.
        ramp_up: the fraction of the steps over which it grows to ``weight``.
        decay: the decay of the average, alpha.
    """

    takes_two_views: ClassVar = True
    unlabelled_ratio: Ratio = 1.0
    weight: Weight
    ramp_up: Fraction
    decay: PartOf
    control: bool = True

    def check(self, config: "Config") -> None:
        """Check that the augmentation makes views of one image.

        Raises:
            ValueError: it mixes images.
        """
        check_unmixed(self.name, config.augmentation)

    def stages(self, context: "StageContext") -> "Sequence[Stage]":
        """Return the stages (see ``method.stages``)."""
        from tutelage.strategies.mean_teacher.method import stages

        return stages(self, context)
