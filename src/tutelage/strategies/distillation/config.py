"""The config of knowledge distillation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator

from tutelage.config import Section
from tutelage.config.section import Fraction, Ratio, Weight
from tutelage.strategies.frozen_teacher.config import FrozenTeacherStrategy

if TYPE_CHECKING:
    from tutelage.config import Config
    from tutelage.strategies.stage_context import StageContext
    from tutelage.strategies.stages import Stage


class Hints(Section):
    """FitNets: the student's guided layer is first trained to predict the output of the teacher's hint layer.

    Attributes:
        teacher: a module of the teacher, such as backbone.6; None for the middle one.
        student: the same of the student.
        length: the length of this stage, as a ratio to the schedule's.
    """

    teacher: str | None = None
    student: str | None = None
    length: Ratio = 0.5


class Decoupled(Section):
    """DKD: the weights of the two parts of the divergence, of the true class and of the other classes."""

    target: Weight = 1.0
    others: Weight = 8.0


class DistillationStrategy(FrozenTeacherStrategy):
    """Training of a student on labels and on a teacher's softened probabilities.

    Attributes:
        images: the images that the teacher gives targets for: the labelled ones, or the unlabelled ones, too.
    """

    alpha: Fraction
    images: Literal["labelled", "all"] = "labelled"
    target_type: Literal["soft", "hard"] = "soft"
    decoupled: Decoupled | None = None
    hints: Hints | None = None

    @model_validator(mode="after")
    def _check_target_type(self) -> Self:
        if self.target_type == "hard" and self.decoupled is not None:
            raise ValueError("strategy.decoupled weighs soft targets: set it to null, or strategy.target_type=soft")
        return self

    def identity(self, config: "Config") -> dict[str, Any]:
        """Return the keys that are not at their default, without those that have no effect beside the others."""
        unused = {"temperature"} if self.target_type == "hard" else set[str]()
        return {key: value for key, value in super().identity(config).items() if key not in unused}

    def stages(self, context: "StageContext") -> "Sequence[Stage]":
        """Return the stages (see ``method.stages``)."""
        from tutelage.strategies.distillation.method import stages

        return stages(self, context)
