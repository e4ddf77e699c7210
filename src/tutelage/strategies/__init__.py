"""How labels are used: one file a method, each a list of stages."""

from collections.abc import Callable, Sequence

from tutelage.config import Config
from tutelage.data import Source, Splits
from tutelage.strategies import (
    distillation,
    fixmatch,
    lwf,
    mean_teacher,
    noisy_student,
    pseudo_label,
    supervised,
    teacher_student,
    transfer,
)
from tutelage.strategies.noisy_student import NoisyStudent
from tutelage.strategies.stages import NOTHING, SCRATCH, PseudoLabelStage, Results, Stage, TeacherSpec, TrainStage

_STAGES: dict[str, Callable[[Config, Source, Splits], Sequence[Stage]]] = {
    "distillation": distillation.stages,
    "fixmatch": fixmatch.stages,
    "lwf": lwf.stages,
    "mean_teacher": mean_teacher.stages,
    "noisy_student": noisy_student.stages,
    "pseudo_label": pseudo_label.stages,
    "supervised": supervised.stages,
    "teacher_student": teacher_student.stages,
    "transfer_finetune": transfer.finetune,
    "transfer_frozen": transfer.frozen,
    "transfer_gradual": transfer.gradual,
}


def stages(config: Config, source: Source, splits: Splits, results: Results = NOTHING) -> Sequence[Stage]:
    """Return the stages of the config's strategy.

    Args:
        config: the whole config.
        source: the data.
        splits: who may see which image.
        results: of the Fit stages that are finished, by name: a plan may depend on them, and on nothing else that
            happens. What it lists up to them stays as it was.

    Raises:
        UserError: the data cannot serve the strategy.
    """
    if config.strategy.name == "noisy_student":
        return noisy_student.stages(config, source, splits, results)
    return _STAGES[config.strategy.name](config, source, splits)


__all__ = ["SCRATCH", "NoisyStudent", "PseudoLabelStage", "Results", "Stage", "TeacherSpec", "TrainStage", "stages"]
