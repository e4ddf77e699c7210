"""Transfer: a pretrained backbone and a new head."""

from tutelage.strategies.transfer.config import (
    TransferFinetuneStrategy,
    TransferFrozenStrategy,
    TransferGradualStrategy,
)

__all__ = ["TransferFinetuneStrategy", "TransferFrozenStrategy", "TransferGradualStrategy"]
