"""How labels are used: one folder for each method, which is a list of stages. Importing this imports no torch."""

import importlib
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

_STAGES = (
    "NO_RESULTS",
    "SCRATCH",
    "PseudoLabelStage",
    "Results",
    "Stage",
    "TeacherSpec",
    "TrainStage",
    "check_stage_list",
)
_MODULES = {  # which module has a name
    **dict.fromkeys(_STAGES, "stages"),
    **dict.fromkeys(("Length", "StageContext"), "stage_context"),
    "StudentModule": "learner",
}

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
    """Import what needs torch when it is asked for: a strategy's config needs none."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"tutelage.strategies.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
