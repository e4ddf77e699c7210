"""The schema of ``conf/strategy/``."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from tutelage.config.models import ModelConfig
from tutelage.config.section import Fraction, PartOf, Positive, Ratio, Section

Temperature = Annotated[float, Field(gt=0, le=1000)]
Weight = Annotated[float, Field(ge=0, le=1000)]


class SupervisedConfig(Section):
    """Cross-entropy on the labelled images."""

    name: Literal["supervised"]


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
        frozen_layers: the number of the lowest layers that are not trained.
    """

    image_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    length: Ratio
    lr_scale: Annotated[float, Field(gt=0, le=1)]
    frozen_layers: Annotated[int, Field(ge=0)] = 0


class NoisyStudentConfig(Section):
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

    name: Literal["noisy_student"]
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


class TransferFrozenConfig(Section):
    """A new head on a frozen backbone."""

    name: Literal["transfer_frozen"]
    control: bool = True


class TransferFinetuneConfig(Section):
    """Training of the whole network, with smaller learning rates for its lower layers than for its head."""

    name: Literal["transfer_finetune"]
    backbone_lr_scale: Fraction = 1.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    frozen_layers: Annotated[int, Field(ge=0)] = 0
    control: bool = True


class TransferGradualConfig(TransferFinetuneConfig):
    """Training of the head alone, then of the whole network."""

    name: Literal["transfer_gradual"]  # type: ignore[assignment]
    head_length: Annotated[float, Field(gt=0, lt=1)] = 0.5


class FrozenTeacherConfig(Section):
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
    teachers: list[str] = Field(default_factory=list)
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


class TeacherStudentConfig(FrozenTeacherConfig):
    """Training of a student on a teacher's probabilities for images without labels."""

    name: Literal["teacher_student"]


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


class DistillationConfig(FrozenTeacherConfig):
    """Training of a student on labels and on a teacher's softened probabilities.

    Attributes:
        images: the images that the teacher gives targets for: the labelled ones, or the unlabelled ones, too.
    """

    name: Literal["distillation"]
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


class PseudoLabelConfig(Section):
    """Pseudo-labels (Lee 2013): the network's own predictions on the pool, computed anew at every step.

    Attributes:
        ramp_begins: the fraction of the steps up to which the pool's loss has no weight.
        ramp_ends: the fraction of the steps from which it has ``final_weight``; it rises linearly in between.
        threshold: the confidence below which a prediction has no weight.
    """

    name: Literal["pseudo_label"]
    unlabelled_ratio: Ratio = 1.0
    ramp_begins: Fraction
    ramp_ends: Fraction
    final_weight: Weight
    threshold: PartOf = 0.0
    control: bool = True

    @model_validator(mode="after")
    def _check_ramp(self) -> Self:
        if self.ramp_begins > self.ramp_ends:
            raise ValueError("strategy.ramp_begins must not be greater than strategy.ramp_ends")
        return self


class FixMatchConfig(Section):
    """FixMatch (Sohn et al. 2020): a confident prediction for the weak view is the target for the strong view.

    Attributes:
        unlabelled_ratio: the size of the pool's batch as a ratio to the labelled one's, mu.
        threshold: the confidence that a prediction needs, tau.
        weight: the weight of the pool's loss, lambda_u.
    """

    name: Literal["fixmatch"]
    unlabelled_ratio: Ratio = 1.0
    threshold: PartOf
    weight: Weight
    control: bool = True


class MeanTeacherConfig(Section):
    """Mean teacher (Tarvainen and Valpola 2017): the teacher is the average of the student's past weights.

    Attributes:
        weight: the weight of the consistency loss after the ramp.
        ramp_up: the fraction of the steps over which it grows to ``weight``.
        decay: the decay of the average, alpha.
    """

    name: Literal["mean_teacher"]
    unlabelled_ratio: Ratio = 1.0
    weight: Weight
    ramp_up: Fraction
    decay: PartOf
    control: bool = True


class LwFConfig(Section):
    """Learning without forgetting: new tasks are learned while the predictions for the old ones are kept close."""

    name: Literal["lwf"]
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
        return value


StrategyConfig = Annotated[
    SupervisedConfig
    | NoisyStudentConfig
    | TransferFrozenConfig
    | TransferFinetuneConfig
    | TransferGradualConfig
    | TeacherStudentConfig
    | DistillationConfig
    | PseudoLabelConfig
    | FixMatchConfig
    | MeanTeacherConfig
    | LwFConfig,
    Field(discriminator="name"),
]

STRATEGIES = frozenset(
    get_args(strategy.model_fields["name"].annotation)[0] for strategy in get_args(get_args(StrategyConfig)[0])
)
