"""How labels are used: one file a method, each a list of stages."""

from collections.abc import Callable, Sequence

from tutelage.config import Config
from tutelage.data import Source, Splits
from tutelage.strategies import distillation, lwf, noisy_student, pseudo_label, supervised, teacher_student, transfer
from tutelage.strategies.noisy_student import NoisyStudent
from tutelage.strategies.stages import SCRATCH, Fit, Label, Stage, Teaching

_STAGES: dict[str, Callable[[Config, Source, Splits], Sequence[Stage]]] = {
    "distillation": distillation.stages,
    "lwf": lwf.stages,
    "noisy_student": noisy_student.stages,
    "pseudo_label": pseudo_label.stages,
    "supervised": supervised.stages,
    "teacher_student": teacher_student.stages,
    "transfer_finetune": transfer.finetune,
    "transfer_frozen": transfer.frozen,
    "transfer_gradual": transfer.gradual,
}


def stages(config: Config, source: Source, splits: Splits) -> Sequence[Stage]:
    """Return the stages of the config's strategy.

    Raises:
        UserError: the data cannot serve the strategy.
    """
    return _STAGES[config.strategy.name](config, source, splits)


__all__ = ["SCRATCH", "Fit", "Label", "NoisyStudent", "Stage", "Teaching", "stages"]
