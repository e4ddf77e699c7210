"""How labels are used: one file for each method, which is a list of stages."""

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
from tutelage.strategies.stages import NO_RESULTS, SCRATCH, PseudoLabelStage, Results, Stage, TeacherSpec, TrainStage

_STAGES: dict[str, Callable[[Config, Source, Splits], Sequence[Stage]]] = {
    "distillation": distillation.stages,
    "fixmatch": fixmatch.stages,
    "lwf": lwf.stages,
    "mean_teacher": mean_teacher.stages,
    "pseudo_label": pseudo_label.stages,
    "supervised": supervised.stages,
    "teacher_student": teacher_student.stages,
    "transfer_finetune": transfer.finetune_stages,
    "transfer_frozen": transfer.frozen_stages,
    "transfer_gradual": transfer.gradual_stages,
}


def stages(config: Config, source: Source, splits: Splits, results: Results = NO_RESULTS) -> Sequence[Stage]:
    """Return the stages of the config's strategy.

    Args:
        config: the whole config.
        source: the data.
        splits: which images are labelled, unlabelled, for validation, for testing.
        results: of the finished training stages, by name. The list of stages may depend on them and on nothing else
            that happens; up to the last of them it must not change.

    Raises:
        UserError: the data does not fit the strategy.
    """
    if config.strategy.name == "noisy_student":  # the one strategy whose stages depend on results
        return noisy_student.stages(config, source, splits, results)
    return _STAGES[config.strategy.name](config, source, splits)


__all__ = ["SCRATCH", "NoisyStudent", "PseudoLabelStage", "Results", "Stage", "TeacherSpec", "TrainStage", "stages"]
