"""The config of learning without forgetting."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from tutelage.config import CrossEntropyConfig, Strategy
from tutelage.config.section import Positive, Ratio, Temperature, Weight
from tutelage.strategies.config_checks import check_one_view
from tutelage.strategies.frozen_teacher.config import identity_of_cached_logits

if TYPE_CHECKING:
    from tutelage.config import Config
    from tutelage.strategies.stage_context import StageContext
    from tutelage.strategies.stages import Stage


class LwFStrategy(Strategy):
    """Learning without forgetting: new tasks are learned while the predictions for the old ones are kept close."""

    name: ClassVar = "lwf"
    tasks: list[list[Annotated[int, Field(ge=0)]]] = Field(default_factory=list)
    temperature: Temperature
    old_weight: Weight
    warm_up: Ratio
    teacher_logits: Literal["views", "passes"]
    cached_views: Positive
    compare: list[Literal["finetuning", "feature_extraction", "joint"]] = Field(default_factory=list)

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, value: list[list[int]]) -> list[list[int]]:
        classes = [c for task in value for c in task]
        if len(value) == 1 or [] in value or len(classes) != len(set(classes)):
            raise ValueError("two tasks or more are needed, each with classes of its own, such as [[0,1,2],[3,4]]")
        if single := next((task for task in value if len(task) == 1), None):
            raise ValueError(f"a task of one class has nothing to tell it from: give {single} a second class")
        return value

    def check(self, config: "Config") -> None:
        """Check that there is a network to add a task to, the number of views, and the loss.

        Raises:
            ValueError: there is none, images have a strong view, or the loss is not for heads of several tasks.
        """
        if not isinstance(config.loss, CrossEntropyConfig):
            raise ValueError(
                f"strategy=lwf takes cross-entropy within the head of each task, not {config.loss.target}: set "
                "loss=cross_entropy"
            )
        if self.adds_task and config.init_from is None:
            raise ValueError("strategy.tasks=[] adds a task to a trained network: give init_from=RUN")
        check_one_view(self.name, config.augmentation)

    def identity(self, config: "Config") -> dict[str, Any]:
        """Return the keys that are not at their default, without those that have no effect beside the others."""
        return identity_of_cached_logits(super().identity(config), config.augmentation)

    @property
    def task_classes(self) -> Sequence[Sequence[int]]:
        """The classes of each head of the networks."""
        return self.tasks

    @property
    def adds_task(self) -> bool:
        """Whether the network of ``init_from`` keeps its head, and the data's classes get one beside it."""
        return not self.tasks

    @property
    def takes_one_class(self) -> bool:
        """Whether data of a single class are enough: beside a network of ``init_from``, not as one of ``tasks``."""
        return self.adds_task

    def stages(self, context: "StageContext") -> "Sequence[Stage]":
        """Return the stages (see ``method.stages``)."""
        from tutelage.strategies.lwf.method import stages

        return stages(self, context)
