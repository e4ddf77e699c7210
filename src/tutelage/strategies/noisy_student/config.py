"""The config of noisy-student self-training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tutelage.config import ArchitectureConfig, Section, Strategy
from tutelage.config.section import INIT_FROM_FORMS, PartOf, Positive, Ratio, Temperature

if TYPE_CHECKING:
    from tutelage.config import Config
    from tutelage.strategies.stage_context import StageContext
    from tutelage.strategies.stages import Stage

NOISE_ARGUMENTS = ("dropout", "stochastic_depth")  # of models; they change the shape of no weight


class StudentConfig(Section):
    """One student: its changes to ``model``, and its length as a ratio to the schedule's."""

    model: dict[str, Any] = Field(default_factory=dict)
    length: Ratio = 1.0


class FinetuneConfig(Section):
    """Further training of the last student, on the labelled images without augmentation, at a higher resolution.

    Attributes:
        image_size: the side of these images in pixels; None for ``data.image_size``.
        length: the number of epochs or steps as a ratio to the schedule's.
        lr_scale: the learning rate as a fraction of ``optimizer.lr``.
        frozen_layers: the number of the lowest layers that are not trained, where ``model.frozen_layers`` is not more.
    """

    image_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    length: Ratio
    lr_scale: Annotated[float, Field(gt=0, le=1)]
    frozen_layers: Annotated[int, Field(ge=0)] = 0


class NoisyStudentStrategy(Strategy):
    """Noisy-student self-training (Xie et al. 2020).

    Attributes:
        students: one after another; the last one is repeated where there are more rounds.
        rounds: the number of students; None for those listed, with ``until=validation`` for no limit.
        until: train all rounds, or stop when validation no longer gains; the student that did not gain is not chosen.
        start: a student's initial weights: random ones (or those of ``init_from``), or its teacher's.
        label_source: ``stored``: the teacher's probabilities for the pool are stored, and pseudo-labels are selected
            from them; ``live``: the teacher computes them in each step.
        tta_views: the test-time views of each image over which stored probabilities are averaged.
        target_type: the teacher's probabilities, or its most likely class.
        per_class: the number of pseudo-labels of each class under ``balance``; None for the mean over the classes.
        temperature: divides the teacher's logits for soft targets.
        finetune: the last stage; None for no such stage.
    """

    students: Annotated[list[StudentConfig], Field(min_length=1)]
    rounds: Positive | None = None
    until: Literal["rounds", "validation"] = "rounds"
    start: Literal["scratch", "teacher"] = "scratch"
    teacher_length: Ratio = 1.0
    unlabelled_ratio: Ratio = 1.0
    label_source: Literal["stored", "live"] = "stored"
    tta_views: Literal["one", "mirrored", "shifted", "mirrored_shifted"] = "one"
    confidence: PartOf = 0.0
    balance: bool = True
    per_class: Positive | None = None
    target_type: Literal["soft", "hard"] = "soft"
    temperature: Temperature = 1.0
    finetune: FinetuneConfig | None = None
    control: bool = True

    @property
    def students_by_round(self) -> list[StudentConfig]:
        """The students of all rounds; of those listed, where the number of rounds is not limited."""
        rounds = self.rounds or len(self.students)
        return [self.student_of_round(number) for number in range(1, rounds + 1)]

    def student_of_round(self, number: int) -> StudentConfig:
        """Return the student of round ``number``; the first round is 1."""
        return self.students[min(number, len(self.students)) - 1]

    @model_validator(mode="after")
    def _check_label_source(self) -> Self:
        if self.label_source == "live" and self.balance:
            raise ValueError(
                "strategy.label_source=live labels one batch at a time, and leaves no classes to balance: set "
                "strategy.balance=false, or strategy.label_source=stored"
            )
        if self.label_source == "live" and self.tta_views != "one":
            raise ValueError(
                f"strategy.tta_views={self.tta_views} goes with strategy.label_source=stored; set it to one"
            )
        if self.per_class is not None and not self.balance:
            raise ValueError("strategy.per_class goes with strategy.balance=true; set it to null")
        return self

    def check(self, config: "Config") -> None:
        """Check the students, and what the labels and the last stage ask of data and augmentation.

        Raises:
            ValueError: they do not go together.
        """
        students = [self.student_model(student, config) for student in self.students]
        if self.start == "teacher" and any(
            _list_shape_arguments(student) != _list_shape_arguments(config.model) for student in students
        ):
            raise ValueError(
                "strategy.start=teacher: a student starts from its teacher's weights, whose shapes its own must have: "
                "change only dropout and stochastic_depth in strategy.students, or set strategy.start=scratch"
            )
        frozen = next((student.frozen_layers for student in students if student.frozen_layers), 0)
        if frozen and self.start == "scratch" and config.init_from is None:
            raise ValueError(
                f"strategy.students: model.frozen_layers={frozen} is for a student that starts from trained weights: "
                f"give {INIT_FROM_FORMS}, or strategy.start=teacher"
            )
        if self.until == "validation" and config.data.validation == "none":
            raise ValueError(
                "strategy.until=validation needs validation images: set data.validation=inside or outside:N"
            )
        if self.label_source == "live" and (config.augmentation.strong or config.augmentation.mix is not None):
            raise ValueError(
                "strategy.label_source=live: the teacher sees images without augmentation, and the student one view of "
                "each: set augmentation.strong=[] augmentation.mix=null, or strategy.label_source=stored"
            )
        size = self.finetune.image_size if self.finetune is not None else None
        if size is not None and size < config.data.image_size:
            raise ValueError(
                f"strategy.finetune.image_size={size} is smaller than data.image_size={config.data.image_size}: give "
                "as many pixels or more, or null"
            )

    def student_model(self, student: StudentConfig, config: "Config") -> ArchitectureConfig:
        """Return a student's model: ``model`` with the student's changes, validated as any model is."""
        return type(config.model).model_validate({**config.model.model_dump(), **student.model})

    def identity(self, config: "Config") -> dict[str, Any]:
        """Return the keys that are not at their default and have an effect, with the students written out."""
        students = [
            {
                "model": self.student_model(student, config).model_dump(mode="json", exclude_defaults=True),
                "length": student.length,
            }
            for student in self.students_by_round
        ]
        unused = {"rounds"} if self.until == "rounds" else set[str]()
        if self.target_type == "hard":
            unused.add("temperature")
        values = {key: value for key, value in super().identity(config).items() if key not in unused}
        return {**values, "students": students}

    def stages(self, context: "StageContext") -> "Sequence[Stage]":
        """Return the stages (see ``method.stages``)."""
        from tutelage.strategies.noisy_student.method import stages

        return stages(self, context)


def _list_shape_arguments(model: ArchitectureConfig) -> dict[str, Any]:
    """Return the arguments of a model that determine the shapes of its weights."""
    return {name: value for name, value in model.arguments().items() if name not in NOISE_ARGUMENTS}
