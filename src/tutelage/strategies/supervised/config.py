"""The config of supervised training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from tutelage.config import Strategy

if TYPE_CHECKING:
    from tutelage.strategies.stage_context import StageContext
    from tutelage.strategies.stages import Stage


class SupervisedStrategy(Strategy):
    """Cross-entropy on the labelled images."""

    takes_one_pass: ClassVar = True

    def stages(self, context: "StageContext") -> "Sequence[Stage]":
        """Return the stages (see ``method.stages``)."""
        from tutelage.strategies.supervised.method import stages

        return stages(self, context)
