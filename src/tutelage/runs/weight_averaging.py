"""The moving average of the weights that ``optimizer.ema_decay`` asks for."""

from collections.abc import Callable

from torch import Tensor


def warmed_up_average(decay: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return how a running average of weights is updated after a step, for torch's ``AveragedModel``.

    The average is the mean of the weights after each step so far, and the running average as soon as that covers more
    steps, as Tarvainen and Valpola's code does for the mean teacher: a short run's average is not its first weights.
    """

    def update(average: Tensor, current: Tensor, count: Tensor) -> Tensor:
        if not average.is_floating_point():
            return current  # batch norm counts its batches
        share = (1 / (count + 1)).clamp(min=1 - decay).to(average.dtype)
        return average.lerp(current, share)  # exact where both are equal, as constants are

    return update
