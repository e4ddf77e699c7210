"""The config of FixMatch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from tutelage.config import Strategy
from tutelage.config.section import PartOf, Ratio, Weight
from tutelage.strategies.config_checks import check_unmixed

if TYPE_CHECKING:
    from tutelage.config import Config
    from tutelage.strategies.stage_context import StageContext
    from tutelage.strategies.stages import Stage


class FixMatchStrategy(Strategy):
    """FixMatch (Sohn et al. 2020): a confident prediction for the weak view is the target for the strong view.

    Attributes:
        unlabelled_ratio: the size of the pool's batch as a ratio to the labelled one's, mu.
        threshold: the confidence that a prediction needs, tau.
        weight: the weight of the pool's loss, lambda_u.
    """

    name: ClassVar = "fixmatch"
    takes_two_views: ClassVar = True
    unlabelled_ratio: Ratio = 1.0
    threshold: PartOf
    weight: Weight
    control: bool = True

    def check(self, config: "Config") -> None:
        """Check that the augmentation makes two different views of an image.

        Raises:
            ValueError: it makes none, or it mixes images.
        """
        check_unmixed(self.name, config.augmentation)
        if not (config.augmentation.transforms or config.augmentation.strong):
            raise ValueError("strategy=fixmatch needs two different views of an image: choose augmentation=weak_strong")

    def stages(self, context: "StageContext") -> "Sequence[Stage]":
        """Return the stages (see ``method.stages``)."""
        from tutelage.strategies.fixmatch.method import stages

        return stages(self, context)
