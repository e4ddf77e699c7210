"""The keys of all strategies with a frozen teacher."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tutelage.config import AugmentationConfig, ModelConfig, NearestNeighboursConfig, Strategy
from tutelage.config.section import PathText, Positive, Ratio, Temperature
from tutelage.strategies.config_checks import check_one_view

if TYPE_CHECKING:
    from tutelage.config import Config


class FrozenTeacherStrategy(Strategy):
    """The keys of all strategies with a frozen teacher.

    Attributes:
        teacher: the architecture of a teacher that is trained first, where ``teachers`` is empty.
        teacher_length: the length of that teacher's training, as a ratio to the schedule's.
        teachers: finished runs, or files of weights with their architecture, whose logits are averaged.
        temperature: divides the logits of teacher and student.
        teacher_logits: ``views``: the teacher's logits are cached for ``cached_views`` views of each image, which the
            passes repeat; ``passes``: they are cached for every pass; ``live``: they are computed in each step.
        cached_views: see ``teacher_logits``.
        control: train the student's network also without a teacher, for the same number of steps.
    """

    teacher: ModelConfig | None = None
    teacher_length: Ratio = 1.0
    teachers: list[PathText] = Field(default_factory=list)
    temperature: Temperature
    teacher_logits: Literal["views", "passes", "live"]
    cached_views: Positive
    control: bool = True

    @field_validator("teacher", mode="before")
    @classmethod
    def _refuse_option_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f"a model is composed into a key by model@strategy.teacher={value}")
        return value

    @model_validator(mode="after")
    def _check_teacher(self) -> Self:
        if self.teacher is None and not self.teachers:
            raise ValueError(
                "name finished runs by strategy.teachers=[RUN], or a model to train first by model@strategy.teacher=vgg"
            )
        return self

    def check(self, config: "Config") -> None:
        """Check the teacher that is trained first, and the number of views.

        Raises:
            ValueError: the teacher is no network or takes no images of this size, or images have a strong view.
        """
        if self.teacher is not None and not self.teachers:
            if isinstance(self.teacher, NearestNeighboursConfig):
                raise ValueError(
                    "strategy.teacher: nearest neighbours go with strategy=supervised; name a network, such as "
                    "model@strategy.teacher=small_vgg"
                )
            config.check_image_size(self.teacher, "strategy.teacher: ")
            if self.teacher.frozen_layers:
                raise ValueError(
                    f"strategy.teacher.frozen_layers={self.teacher.frozen_layers}: this teacher starts from random "
                    "weights, all of which learn: set it to 0"
                )
        check_one_view(self.name, config.augmentation)

    def identity(self, config: "Config") -> dict[str, Any]:
        """Return the keys that are not at their default, without those that have no effect beside the others."""
        values = identity_of_cached_logits(super().identity(config), config.augmentation)
        unused = {"teacher", "teacher_length"} if self.teachers else set[str]()
        return {key: value for key, value in values.items() if key not in unused}

    @property
    def given_teachers(self) -> Sequence[str]:
        """Finished runs, and files of weights, that the config names as teachers."""
        return self.teachers


def identity_of_cached_logits(values: dict[str, Any], augmentation: AugmentationConfig) -> dict[str, Any]:
    """Return a strategy's part of the identity with ``teacher_logits`` and ``cached_views`` as far as they matter."""
    if values["teacher_logits"] != "live" and (augmentation.mix is not None or not augmentation.transforms):
        values = {**values, "teacher_logits": "cached"}  # for each step, or of images as they are
    if values["teacher_logits"] != "views":
        values = {key: value for key, value in values.items() if key != "cached_views"}
    return values
