"""The configs of transfer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tutelage.config import Strategy
from tutelage.config.section import INIT_FROM_FORMS

if TYPE_CHECKING:
    from tutelage.config import Config
    from tutelage.strategies.stage_context import StageContext
    from tutelage.strategies.stages import Stage


class TransferStrategy(Strategy):
    """The key and the check of all ways of transfer."""

    control: bool = True

    def check(self, config: "Config") -> None:
        """Check that there are trained weights to start from.

        Raises:
            ValueError: there are none.
        """
        if config.init_from is None:
            raise ValueError(f"strategy={self.name} starts from trained weights: give {INIT_FROM_FORMS}")


class TransferFrozenStrategy(TransferStrategy):
    """A new head on a frozen backbone."""

    def check(self, config: "Config") -> None:
        """Check that there are trained weights to start from, and that nothing is said of how the backbone learns.

        Raises:
            ValueError: there are none, or something is said.
        """
        super().check(config)
        if (config.optimizer.backbone_lr_scale, config.optimizer.layer_decay, config.model.frozen_layers) != (1, 1, 0):
            raise ValueError(
                f"strategy={self.name} trains no layer of the backbone: set optimizer.backbone_lr_scale=1 "
                "optimizer.layer_decay=1 model.frozen_layers=0, or choose strategy=transfer_finetune"
            )

    def stages(self, context: "StageContext") -> "Sequence[Stage]":
        """Return the stages (see ``method.frozen_stages``)."""
        from tutelage.strategies.transfer.method import frozen_stages

        return frozen_stages(self, context)


class TransferFinetuneStrategy(TransferStrategy):
    """Training of the whole network; ``optimizer`` and ``model`` say which layers learn, and how fast."""

    def stages(self, context: "StageContext") -> "Sequence[Stage]":
        """Return the stages (see ``method.finetune_stages``)."""
        from tutelage.strategies.transfer.method import finetune_stages

        return finetune_stages(self, context)


class TransferGradualStrategy(TransferFinetuneStrategy):
    """Training of the head alone, then of the whole network."""

    head_length: Annotated[float, Field(gt=0, lt=1)] = 0.5

    def stages(self, context: "StageContext") -> "Sequence[Stage]":
        """Return the stages (see ``method.gradual_stages``)."""
        from tutelage.strategies.transfer.method import gradual_stages

        return gradual_stages(self, context)
