"""The loss of a network's logits against labels: cross-entropy, or a user's own."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from tutelage.config import CrossEntropyConfig
from tutelage.config.targets import build
from tutelage.errors import UserError


def cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Return the mean cross-entropy of logits (B, C) and classes (B,) int64 or probabilities (B, C).

    With ``weights`` (C,) the terms of each class are multiplied by its weight; the mean is still over the images.
    """
    if weights is None:
        return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    total = functional.cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=label_smoothing)
    return total / len(logits)


class LabelLoss(nn.Module):
    """The loss of logits against labels, in every strategy: the base of ``_target_`` in ``conf/loss/``.

    It has no weights and no state that a checkpoint would need; a constant tensor is a buffer with
    ``persistent=False``.
    """

    @abstractmethod
    def forward(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Return the mean loss over the images, a scalar.

        Args:
            logits: (B, C).
            targets: classes (B,) int64, or, of mixed images, probabilities (B, C).
            weights: of each class (C,), under ``data.balance=weights``.
        """


class CrossEntropy(LabelLoss):
    """Cross-entropy, with targets that are mixed with the uniform distribution (Szegedy et al. 2016, section 7).

    Of C classes, each gets ``label_smoothing`` / C on top of 1 - ``label_smoothing`` times the target. Arguments:
    ``CrossEntropyConfig``.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.label_smoothing = CrossEntropyConfig.from_arguments(arguments).label_smoothing

    def forward(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Return the mean loss over the images."""
        return cross_entropy(logits, targets, weights, self.label_smoothing)


def make_loss(arguments: Mapping[str, Any]) -> LabelLoss:
    """Return the loss of a config's section ``loss``.

    Raises:
        UserError: it cannot be built, or has weights or a state.
    """
    loss: LabelLoss = build(arguments, LabelLoss, "loss")
    names = dict.fromkeys([*dict(loss.named_parameters()), *loss.state_dict()])
    if names:
        raise UserError(
            f"loss: {type(loss).__name__} has weights or a state ({', '.join(names)}), which no optimizer trains "
            "and no checkpoint keeps; make constants buffers with persistent=False"
        )
    return loss
