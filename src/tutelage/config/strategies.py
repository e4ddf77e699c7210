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
    """One student: what changes against ``model``, and its share of the schedule."""

    model: dict[str, Any] = Field(default_factory=dict)
    length: Ratio = 1.0


class FinetuneConfig(Section):
    """The last student goes on for a while on the labelled images as they are, at a higher resolution.

    Attributes:
        image_size: the side of these images; None for ``data.image_size``.
        length: its share of the schedule.
        lr_scale: its learning rate as a share of ``optimizer.lr``.
        frozen_layers: so many of the lowest layers stay as they are.
    """

    image_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    length: Ratio
    lr_scale: Annotated[float, Field(gt=0, le=1)]
    frozen_layers: Annotated[int, Field(ge=0)] = 0


class NoisyStudentConfig(Section):
    """Noisy-student self-training (Xie et al. 2020).

    Attributes:
        students: one after another; where there are more rounds, the last one again.
        rounds: how many students; None for those listed, under ``until=validation`` for no limit.
        until: all rounds, or until validation no longer gains; the student that did not gain is not chosen.
        start: a student's weights before it learns: random ones (or those of ``init_from``), or its teacher's.
        label_source: the teacher's answers are stored, and selected among, or given in each step.
        tta_views: test-time views of each image, that a stored answer is the mean over.
        target_type: the teacher's probabilities, or its most likely class.
        per_class: pseudo-labels a class under ``balance``; None for the mean over the classes.
        temperature: divides the logits of soft labels.
        finetune: the stage at the end, where there is one.
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
    def planned(self) -> list[StudentConfig]:
        """The students, one for each round that is asked for."""
        rounds = self.rounds or len(self.students)
        return [self.student(number) for number in range(1, rounds + 1)]

    def student(self, number: int) -> StudentConfig:
        """Return the student of round ``number``, from 1."""
        return self.students[min(number, len(self.students)) - 1]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.label_source == "live" and self.balance:
            raise ValueError(
                "strategy.label_source=live has the teacher's answers to one batch, and no classes to balance: set "
                "strategy.balance=false, or strategy.label_source=stored"
            )
        if self.label_source == "live" and self.tta_views != "one":
            raise ValueError(
                f"strategy.tta_views={self.tta_views} goes with strategy.label_source=stored; live answers have one view"
            )
        if self.per_class is not None and not self.balance:
            raise ValueError("strategy.per_class goes with strategy.balance=true; set it to null")
        return self


class TransferFrozenConfig(Section):
    """A new head on a backbone that stays as it is."""

    name: Literal["transfer_frozen"]
    control: bool = True


class TransferFinetuneConfig(Section):
    """The whole network, slower below than at its head."""

    name: Literal["transfer_finetune"]
    backbone_lr_scale: Fraction = 1.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    frozen_layers: Annotated[int, Field(ge=0)] = 0
    control: bool = True


class TransferGradualConfig(TransferFinetuneConfig):
    """The head first, then the whole network."""

    name: Literal["transfer_gradual"]  # type: ignore[assignment]
    head_length: Annotated[float, Field(gt=0, lt=1)] = 0.5


class FrozenTeacherConfig(Section):
    """What strategies with a frozen teacher share.

    Attributes:
        teacher: the architecture of a teacher that is trained first, where ``teachers`` is empty.
        teacher_length: that teacher's share of the schedule.
        teachers: finished runs, or files of weights with their architecture, whose logits are averaged.
        temperature: divides the logits of both.
        teacher_logits: the teacher's logits are kept for ``cached_views`` views of each image that repeat, or for every pass; live
            ones are computed in each step.
        cached_views: see ``teacher_logits``.
        control: train the student's network without a teacher, for as many steps.
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
    def _composed(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f"a model is composed into a key by model@strategy.teacher={value}")
        return value

    @model_validator(mode="after")
    def _has_a_teacher(self) -> Self:
        if self.teacher is None and not self.teachers:
            raise ValueError("name finished runs by strategy.teachers=[RUN], or a model: model@strategy.teacher=vgg")
        return self


class TeacherStudentConfig(FrozenTeacherConfig):
    """A student learns a teacher's answers on images without labels."""

    name: Literal["teacher_student"]


class Hints(Section):
    """FitNets: the student's guided layer first learns to give what the teacher's hint layer gives."""

    teacher: str | None = None  # a module of the teacher, such as backbone.6; the middle one where there is none
    student: str | None = None
    length: Ratio = 0.5


class Decoupled(Section):
    """DKD: weights of the true class's part of the divergence and of the other classes' part."""

    target: Weight = 1.0
    others: Weight = 8.0


class DistillationConfig(FrozenTeacherConfig):
    """A student learns from labels and from a teacher's softened answers.

    Attributes:
        images: what the teacher answers to: the labelled images, or those without labels too.
    """

    name: Literal["distillation"]
    alpha: Fraction
    images: Literal["labelled", "all"] = "labelled"
    target_type: Literal["soft", "hard"] = "soft"
    decoupled: Decoupled | None = None
    hints: Hints | None = None

    @model_validator(mode="after")
    def _one_loss(self) -> Self:
        if self.target_type == "hard" and self.decoupled is not None:
            raise ValueError("strategy.decoupled weighs soft labels: set it to null, or strategy.target_type=soft")
        return self


class PseudoLabelConfig(Section):
    """Lee 2013: the network's own answers to the pool are labels, renewed at every step, that weigh more and more."""

    name: Literal["pseudo_label"]
    unlabelled_ratio: Ratio = 1.0
    ramp_begins: Fraction
    ramp_ends: Fraction
    final_weight: Weight
    threshold: PartOf = 0.0
    control: bool = True

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.ramp_begins > self.ramp_ends:
            raise ValueError("strategy.ramp_begins comes before strategy.ramp_ends")
        return self


class FixMatchConfig(Section):
    """Sohn et al. 2020: an answer to a weak view that is sure enough is the label of a strong one.

    Attributes:
        unlabelled_ratio: mu.
        threshold: tau.
        weight: of the pool's loss, lambda_u.
    """

    name: Literal["fixmatch"]
    unlabelled_ratio: Ratio = 1.0
    threshold: PartOf
    weight: Weight
    control: bool = True


class MeanTeacherConfig(Section):
    """Tarvainen and Valpola 2017: a network agrees with the average of its own past weights.

    Attributes:
        weight: of the disagreement, once the ramp is over.
        ramp_up: the share of the steps over which it grows to that.
        decay: of the average, alpha.
    """

    name: Literal["mean_teacher"]
    unlabelled_ratio: Ratio = 1.0
    weight: Weight
    ramp_up: Fraction
    decay: PartOf
    control: bool = True


class LwFConfig(Section):
    """Learning without forgetting: new tasks with the old ones' answers kept."""

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
    def _apart(cls, value: list[list[int]]) -> list[list[int]]:
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
