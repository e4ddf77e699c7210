"""How labels are used: one file a method, each a list of stages."""

from collections.abc import Callable, Sequence

from tutelage.config import Config
from tutelage.data import Source, Splits
from tutelage.strategies import noisy_student, supervised
from tutelage.strategies.noisy_student import NoisyStudent
from tutelage.strategies.stages import Fit, Label, Stage

_STAGES: dict[str, Callable[[Config, Source, Splits], Sequence[Stage]]] = {
    "noisy_student": noisy_student.stages,
    "supervised": supervised.stages,
}


def stages(config: Config, source: Source, splits: Splits) -> Sequence[Stage]:
    """Return the stages of the config's strategy.

    Raises:
        UserError: the data cannot serve the strategy.
    """
    return _STAGES[config.strategy.name](config, source, splits)


__all__ = ["Fit", "Label", "NoisyStudent", "Stage", "stages"]
