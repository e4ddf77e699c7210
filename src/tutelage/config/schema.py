"""The schema of ``conf/``: each key, its type and its range. Models and strategies have files of their own."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from tutelage.config.losses import PLAIN_CROSS_ENTROPY, LossConfig
from tutelage.config.models import ModelConfig, NearestNeighboursConfig
from tutelage.config.section import (
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
RGB = 3
PERCENT = 100.0
SHARE = re.compile(r"[0-9]+(\.[0-9]+)?%")
MAX_WORKERS = 256
WHOLE_RANGE = 65535  # the largest value of 16 bits
FILE_DATASETS = {"ImageFolder": "image_folder", "ImageNet": "imagenet", "Table": "table"}  # their options of data
FOLDER_DATASETS = ("ImageFolder", "ImageNet")


class DataConfig(Section):
    """A dataset, its label budget, and how its images are read and given to the network."""

    target: str = Field(alias="_target_")
    image_size: Annotated[int, Field(ge=1, le=4096)]
    channels: Literal[1, 3]
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]
    mirror: PartOf = 0.0
    root: PathText | None = None
    labels_per_class: Positive | None = None
    labels: int | str | None = None
    split_seed: int = 0
    group: PathText | None = None
    validation: str = "auto"
    folds: Annotated[int, Field(ge=2)] | None = None
    fold: Annotated[int, Field(ge=0)] | None = None
    limit: Positive | None = None
    balance: Literal["none", "weights", "sampling"] = "none"
    unlabelled: PathText | None = None
    fit: Literal["crop", "pad", "stretch"] = "crop"
    background: list[Annotated[int, Field(ge=0, le=255)]] = Field(default_factory=lambda: [255, 255, 255])
    max_pixels: Positive = 178_956_970
    on_bad_image: Literal["stop", "skip"] = "stop"
    layout: Literal["auto", "classes", "splits"] = "auto"
    batch_size: Positive
    pack: bool = False
    white: Annotated[int, Field(ge=1, le=WHOLE_RANGE)] | None = None
    duplicates: Literal["report", "drop", "stop"] = "report"
    num_workers: int | Literal["auto"] = 0

    @field_validator("num_workers", mode="before")
    @classmethod
    def _check_num_workers(cls, value: Any) -> Any:
        if value == "auto" or (type(value) is int and 0 <= value <= MAX_WORKERS):
            return value
        raise ValueError(f"allowed are auto and numbers from 0 to {MAX_WORKERS}")

    @field_validator("labels", mode="before")
    @classmethod
    def _check_labels(cls, value: Any) -> Any:
        if value is None or (type(value) is int and value > 0):
            return value
        if isinstance(value, str) and SHARE.fullmatch(value) and 0 < float(value[:-1]) <= PERCENT:
            return f"{float(value[:-1]):.12g}%"
        raise ValueError("type a share of all labels as 10%, or a number of labels as a whole number from 1")

    @field_validator("white")
    @classmethod
    def _leave_out_whole_range(cls, value: int | None) -> int | None:
        return None if value == WHOLE_RANGE else value  # both ways to say so are one run

    @field_validator("validation")
    @classmethod
    def _check_validation(cls, value: str) -> str:
        kind, _, count = value.partition(":")
        if value in {"auto", "none", "inside"} or (kind == "outside" and count.isdigit() and int(count) > 0):
            return value
        raise ValueError("allowed are auto, none, inside and outside:N (N images beside the label budget)")

    @property
    def is_ours(self) -> bool:
        """Whether the class that reads it is one of Tutelage's."""
        return self.target.startswith("tutelage.data.")

    @property
    def labels_share(self) -> float | None:
        """The label budget as a share of all labels, above 0 and up to 1; None where ``labels`` is no share."""
        return float(self.labels[:-1]) / PERCENT if isinstance(self.labels, str) else None

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        if self.labels is not None and self.labels_per_class is not None:
            raise ValueError("data.labels and data.labels_per_class exclude each other: set one of them to null")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            grey = ", such as data.mean=[0.449] data.std=[0.226]" if self.channels == 1 else ""
            raise ValueError(f"data.mean and data.std need one value for each of the {self.channels} channels{grey}")
        is_fixed = self.is_ours and self.target.rpartition(".")[2] not in FILE_DATASETS
        if self.unlabelled is not None and is_fixed:
            raise ValueError(
                f"data.unlabelled goes with data={', '.join(FILE_DATASETS.values())}, not with {self.target}"
            )
        if self.pack and self.target not in {f"tutelage.data.{name}" for name in FILE_DATASETS}:
            allowed = ", ".join(FILE_DATASETS.values())
            raise ValueError(f"data.pack=true goes with data={allowed}, not with {self.target}: set it to false")
        if self.layout != "auto" and self.target not in {f"tutelage.data.{name}" for name in FOLDER_DATASETS}:
            raise ValueError(
                f"data.layout={self.layout} goes with data=image_folder and imagenet, not with {self.target}: "
                "set it to auto"
            )
        if self.fit != "crop" and self.target not in {
            f"tutelage.data.{name}" for name in (*FILE_DATASETS, "HuggingFace")
        }:
            allowed = ", ".join([*FILE_DATASETS.values(), "huggingface"])
            raise ValueError(f"data.fit={self.fit} goes with data={allowed}, not with {self.target}: set it to crop")
        if len(self.background) != RGB:
            raise ValueError("data.background needs three values, red, green and blue, such as [255,255,255]")
        return self

    @model_validator(mode="after")
    def _check_group(self) -> Self:
        if self.group is None:
            return self
        name = self.target.rpartition(".")[2]
        if self.is_ours and name not in FILE_DATASETS:
            raise ValueError(f"data.group goes with data={', '.join(FILE_DATASETS.values())}, not with {self.target}")
        if self.is_ours and name != "Table":  # of a table it may be a column's name
            try:
                re.compile(self.group)
            except re.error as error:
                raise ValueError(f"data.group={self.group}: no regular expression ({error}); correct it") from None
        return self

    @model_validator(mode="after")
    def _check_folds(self) -> Self:
        if (self.folds is None) != (self.fold is None):
            raise ValueError(
                f"data.folds={_as_typed(self.folds)} and data.fold={_as_typed(self.fold)}: give both, as in "
                "-m data.folds=5 'data.fold=range(5)', or neither"
            )
        if self.folds is not None and self.fold is not None and self.fold >= self.folds:
            raise ValueError(
                f"data.fold={self.fold}: with data.folds={self.folds}, folds are numbered from 0 to {self.folds - 1}"
            )
        return self


def _as_typed(value: int | None) -> str:
    return "null" if value is None else str(value)


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
    """The optimizer and its settings."""

    name: Literal["sgd", "adam", "adamw"]
    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: PartOf = 0.0
    nesterov: bool = False
    ema_decay: PartOf = 0.0
    clip_norm: Annotated[float, Field(ge=0)] | None = None

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
    """How long a stage trains: epochs or optimizer steps."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: Positive | None = None

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                "set exactly one of schedule.epochs and schedule.steps, the other one to null (schedule.epochs=null)"
            )
        return self


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
    """Checkpoints, the live display, the report, the shifts that a run is tested under, and callbacks of one's own."""

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
