"""The schema of ``conf/``: each key, its type and its range. Data, models and strategies have files of their own."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from tutelage.config.data import DataConfig
from tutelage.config.losses import PLAIN_CROSS_ENTROPY, LossConfig
from tutelage.config.models import ModelConfig, NearestNeighboursConfig
from tutelage.config.recipe import Recipe
from tutelage.config.section import (
    INIT_FROM_FORMS,
    Fraction,
    PartOf,
    PathText,
    Positive,
    Section,
    Targeted,
    describe_too_small_image,
)
from tutelage.config.strategy import AnyStrategy
from tutelage.config.targets import failures_as_user_errors

Alpha = Annotated[float, Field(ge=0, le=100)]  # both parameters of a beta distribution; 0 turns it off
Shift = Literal["brightness", "crop", "rotate", "translate"]
SHIFTS: tuple[Shift, ...] = get_args(Shift)
Monitor = Literal["val/accuracy", "val/balanced_accuracy", "val/f1"]
MONITORS: tuple[Monitor, ...] = get_args(Monitor)  # the default first


class MixConfig(Section):
    """Mixing of the images and labels within a batch: CutMix, MixUp, or one of the two drawn at random."""

    cutmix: Alpha = 0.0
    mixup: Alpha = 0.0
    probability: Fraction = 1.0
    switch: Fraction = 0.5
    per: Literal["batch", "sample"] = "batch"

    @model_validator(mode="after")
    def _check_mix(self) -> Self:
        if not (self.cutmix or self.mixup):
            raise ValueError("cutmix=0 and mixup=0 mix nothing: set one of them above 0, or augmentation.mix=null")
        return self


class AugmentationConfig(Section):
    """Albumentations transforms, further ones that make a second view, and mixing within whole batches."""

    transforms: list[dict[str, Any]] = Field(default_factory=list)
    strong: list[dict[str, Any]] = Field(default_factory=list)
    mix: MixConfig | None = None

    @field_validator("transforms", "strong")
    @classmethod
    def _check_transforms(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        _check_targets(value, "albumentations.HorizontalFlip")
        return value


class OptimizerConfig(Section):
    """The optimizer and its settings.

    Attributes:
        backbone_lr_scale: the learning rate of the backbone's highest layer as a fraction of ``lr``, in every stage
            that starts from trained weights.
        layer_decay: the learning rate of each layer of the backbone as a fraction of the one above it, in these stages.
    """

    name: Literal["sgd", "adam", "adamw"]
    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: PartOf = 0.0
    nesterov: bool = False
    ema_decay: PartOf = 0.0
    clip_norm: Annotated[float, Field(ge=0)] | None = None
    backbone_lr_scale: Fraction = 1.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0

    @field_validator("clip_norm")
    @classmethod
    def _clip_nothing_at_zero(cls, value: float | None) -> float | None:
        return value or None  # as in Lightning; both ways to say so are one run

    @model_validator(mode="after")
    def _check_momentum(self) -> Self:
        if self.name != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(f"optimizer.momentum and optimizer.nesterov belong to sgd, not to {self.name}")
        if self.nesterov and not self.momentum:
            raise ValueError("optimizer.nesterov needs optimizer.momentum above 0")
        return self


class SchedulerConfig(Section):
    """The learning rate over the steps of a stage."""

    name: Literal["constant", "cosine", "step"]
    warmup: PartOf = 0.0
    milestones: list[Fraction] = Field(default_factory=list)
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1


class ScheduleConfig(Section):
    """How long a stage trains: epochs, and so many optimizer steps at least; or a number of steps."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    min_steps: Annotated[int, Field(ge=0)] = 0
    steps: Positive | None = None

    def count_steps(self, pass_steps: float) -> float:
        """Return the steps of the whole schedule, where a pass over the images takes ``pass_steps``."""
        return self.steps or max((self.epochs or 1) * pass_steps, self.min_steps)

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                "set exactly one of schedule.epochs and schedule.steps, the other one to null (schedule.epochs=null)"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _ignore_min_steps(cls, values: Any) -> Any:
        """Leave ``min_steps`` out where ``steps`` is set: it is for epochs, and both ways to say so are one run."""
        return values | {"min_steps": 0} if isinstance(values, dict) and values.get("steps") else values


class TrainerConfig(Section):
    """Where a run is computed, on how many devices and in which precision.

    Each process drives one device; ``devices`` counts those of one machine, and all ``nodes`` have the same number.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    threads: Positive | None = None
    devices: int | Literal["auto"] = 1
    nodes: Positive = 1
    parallel: Literal["none", "ddp", "fsdp"] = "none"
    accumulate: Positive = 1
    sync_batchnorm: bool = False

    @field_validator("devices", mode="before")
    @classmethod
    def _check_devices(cls, value: Any) -> Any:
        if value == "auto" or (type(value) is int and value >= 1):
            return value
        raise ValueError("allowed are auto (all GPUs of the machine) and whole numbers from 1")

    @model_validator(mode="after")
    def _check_trainer(self) -> Self:
        if self.accelerator == "cpu" and self.precision == "16-mixed":
            raise ValueError("trainer.precision=16-mixed needs a GPU: on the CPU use 32-true or bf16-mixed")
        if self.parallel == "none":
            self._check_one_process()
        if self.accelerator == "cpu":
            self._check_cpu()
        return self

    def _check_one_process(self) -> None:
        for key, value in (("devices", self.devices), ("nodes", self.nodes)):
            if value != 1:
                raise ValueError(
                    f"trainer.{key}={value} needs trainer.parallel=ddp or fsdp: choose trainer=ddp, ddp_cpu or fsdp, "
                    f"or trainer.{key}=1"
                )
        if self.sync_batchnorm:
            raise ValueError(
                "trainer.sync_batchnorm=true needs several processes, whose batch norms it joins: set it to false, or "
                "choose trainer=ddp"
            )

    def _check_cpu(self) -> None:
        if self.devices == "auto":
            raise ValueError("trainer.devices=auto counts GPUs: on the CPU give a number, such as trainer.devices=2")
        if self.sync_batchnorm:
            raise ValueError("trainer.sync_batchnorm=true needs GPUs (torch has it for no CPU): set it to false")


def _check_targets(entries: Iterable[Mapping[str, Any]], example: str) -> None:
    """Raise a ValueError unless each entry names a class."""
    if not all(isinstance(entry.get("_target_"), str) for entry in entries):
        raise ValueError(f"each entry needs a _target_, such as {example}")


class CallbacksConfig(Section):
    """What selects the best weights, checkpoints, display, report, shifts to test under, and callbacks of one's own."""

    monitor: Monitor = MONITORS[0]
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 5.0
    display: bool = True
    report: bool = True
    shifts: list[Shift] = Field(default_factory=list)
    extra: list[dict[str, Any]] = Field(default_factory=list)

    @field_validator("extra")
    @classmethod
    def _check_extra(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        _check_targets(value, "pytorch_lightning.callbacks.LearningRateMonitor")
        return value


class PathsConfig(Section):
    """The folder of the results."""

    outputs: PathText = "outputs"


class Config(Section):
    """The config of a whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "runs"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    attempt: Positive = 1
    debug: Literal["tiny"] | None = None
    init_from: PathText | None = None
    evaluate_test: bool = True
    paths: PathsConfig = Field(default_factory=PathsConfig)
    data: DataConfig
    model: ModelConfig
    augmentation: AugmentationConfig
    strategy: AnyStrategy
    loss: LossConfig = PLAIN_CROSS_ENTROPY
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    schedule: ScheduleConfig
    trainer: TrainerConfig
    logger: dict[str, dict[str, Any]]  # in addition to metrics.csv, which is always written
    callbacks: CallbacksConfig
    recipe: Recipe | None = None

    @field_validator("logger")
    @classmethod
    def _check_logger(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        _check_targets(value.values(), "pytorch_lightning.loggers.CometLogger")
        return value

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        self.check_image_size(self.model)
        if isinstance(self.model, NearestNeighboursConfig) and self.data.balance != "none":
            raise ValueError(f"data.balance={self.data.balance} does nothing for nearest neighbours; set it to none")
        if isinstance(self.model, NearestNeighboursConfig) and self.callbacks.monitor != MONITORS[0]:
            raise ValueError(
                f"callbacks.monitor={self.callbacks.monitor} does nothing for nearest neighbours, which learn in one "
                f"pass; set it to {MONITORS[0]}"
            )
        if isinstance(self.model, NearestNeighboursConfig) and not self.strategy.takes_one_pass:
            raise ValueError(
                "model=nearest_neighbours learns from labelled images in one pass, which does not go with "
                f"strategy={self.strategy.name}: leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _check_loss(self) -> Self:
        """Check the loss against the other groups."""
        if isinstance(self.model, NearestNeighboursConfig) and self.loss != PLAIN_CROSS_ENTROPY:
            raise ValueError(
                "loss does nothing for nearest neighbours; set loss=cross_entropy and loss.label_smoothing=0"
            )
        return self

    @model_validator(mode="after")
    def _check_strategy(self) -> Self:
        """Check the strategy against the other groups."""
        strategy = self.strategy
        with failures_as_user_errors(type(strategy), f"strategy={strategy.name}: check()", expected=(ValueError,)):
            strategy.check(self)
            if strategy.takes_one_class:
                self.data.take_one_class()
        return self

    @model_validator(mode="after")
    def _check_initial_weights(self) -> Self:
        """Check that layers that are to learn more slowly than the head, or not at all, start from trained weights."""
        if self.init_from is not None:
            return self
        for key, value, neutral in (
            ("optimizer.backbone_lr_scale", self.optimizer.backbone_lr_scale, 1),
            ("optimizer.layer_decay", self.optimizer.layer_decay, 1),
            ("model.frozen_layers", self.model.frozen_layers, 0),
        ):
            if value != neutral:
                raise ValueError(
                    f"{key}={value} is for trained weights, and random ones learn at one rate: give {INIT_FROM_FORMS}, "
                    f"or {key}={neutral}"
                )
        return self

    def check_image_size(self, model: Targeted, prefix: str = "") -> None:
        """Check that images are as large as a model needs.

        Args:
            model: the model.
            prefix: of the message: the model's key, where that is not ``model``.

        Raises:
            ValueError: they are smaller.
        """
        if self.data.image_size < model.smallest:
            name = model.target.rpartition(".")[2]
            raise ValueError(prefix + describe_too_small_image(name, model.smallest, self.data.image_size))
