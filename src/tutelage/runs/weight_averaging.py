"""The moving average of the weights that ``optimizer.ema_decay`` asks for."""

from pytorch_lightning.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_avg_fn


def average_decay(step: int, decay: float) -> float:
    """Return the weight of the average in its update after ``step`` (from 0).

    The average is the mean of the weights after each step so far, and the running average as soon as that covers more
    steps, as Tarvainen and Valpola's code does for the mean teacher: a short run's average is not its first weights.
    """
    return min(decay, 1 - 1 / (step + 1))


class WarmedUpAveraging(WeightAveraging):
    """Lightning's averaged weights, by which a network is validated and saved, with a decay that warms up.

    Args:
        decay: of the running average (see ``average_decay``).
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self._decay = decay

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether the average is updated, which is after each step, and set the decay of that update."""
        if step_idx is None or self._average_model is None:
            return False
        decay = average_decay(step_idx, self._decay)
        self._average_model.avg_fn = get_ema_avg_fn(decay)  # type: ignore[no-untyped-call]
        return True
