"""How labels are used: one folder for each method, which is a list of stages. Importing this imports no torch."""

from typing import TYPE_CHECKING, Any

from tutelage.config import Strategy

if TYPE_CHECKING:
    from tutelage.strategies.learner import StudentModule
    from tutelage.strategies.stage_context import Length, StageContext
    from tutelage.strategies.stages import (
        NO_RESULTS,
        SCRATCH,
        PseudoLabelStage,
        Results,
        Stage,
        TeacherSpec,
        TrainStage,
        check_stage_list,
    )

_STAGES = {
    "NO_RESULTS",
    "SCRATCH",
    "PseudoLabelStage",
    "Results",
    "Stage",
    "TeacherSpec",
    "TrainStage",
    "check_stage_list",
}
_CONTEXT = {"Length", "StageContext"}

__all__ = [
    "NO_RESULTS",
    "SCRATCH",
    "Length",
    "PseudoLabelStage",
    "Results",
    "Stage",
    "StageContext",
    "Strategy",
    "StudentModule",
    "TeacherSpec",
    "TrainStage",
    "check_stage_list",
]


def __getattr__(name: str) -> Any:
    """Import stages when they are asked for: a strategy's config needs no torch."""
    if name in _STAGES:
        from tutelage.strategies import stages

        return getattr(stages, name)
    if name in _CONTEXT:
        from tutelage.strategies import stage_context

        return getattr(stage_context, name)
    if name == "StudentModule":
        from tutelage.strategies.learner import StudentModule

        return StudentModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
