"""What every architecture shares: the base LightningModule, its loss, its optimizer."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional

from tutelage.config import OptimizerConfig, SchedulerConfig, Targeted, describe_too_small_image
from tutelage.data import EvalBatch, StreamBatch
from tutelage.errors import UserError
from tutelage.models.parameter_groups import ALL_ALIKE, FineTuning, freeze, frozen_modules, lr_scales

PIXEL_MAX = 255.0


@dataclass(frozen=True)
class ImageSpec:
    """What a network sees and tells apart: plain values, stored with its weights.

    Attributes:
        channels: of an image.
        image_size: its side in pixels.
        classes: their names, in the order of the logits.
        mean: of each channel, on a scale from 0 to 1.
        std: of each channel.
        tasks: the numbers of each task's classes, where each has a head of its own (see ``Heads``).
    """

    channels: int
    image_size: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tasks: tuple[tuple[int, ...], ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return the same as containers that torch's safe loader accepts."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {**values, "tasks": [list(task) for task in self.tasks]}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Self:
        """Return the spec that ``plain()`` gave."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return cls(**{**values, "tasks": tuple(map(tuple, plain.get("tasks", ())))})


@dataclass(frozen=True)
class Recipe:
    """How a network learns: update rule, learning rate over time, for how many steps, and what each class weighs."""

    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    steps: int
    class_weights: tuple[float, ...] | None = None
    tuning: FineTuning = ALL_ALIKE


def check_size(spec: ImageSpec, model: type[Targeted]) -> None:
    """Raise a UserError unless images are as large as a model needs them; configs are checked before."""
    if spec.image_size < model.smallest:
        raise UserError(
            describe_too_small_image(model.__name__.removesuffix("Config"), model.smallest, spec.image_size)
        )


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of logits (B, C) and classes (B,) int64 or probabilities (B, C).

    With ``weights`` (C,) each class's part counts that many times; it stays a mean over the images.
    """
    if weights is None:
        return functional.cross_entropy(logits, targets)
    return functional.cross_entropy(logits, targets, weights, reduction="sum") / len(logits)


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return what targets weigh on the answers, the classes of the largest logits, as a mean over the batch.

    Of classes (B,) int64 that is the share of right answers. Weights (B, C) make an answer right in part: cat, for an
    image that is three quarters cat, by three quarters.
    """
    answers = logits.argmax(dim=1)
    if targets.ndim == 1:
        return (answers == targets).float().mean()
    return targets.gather(1, answers[:, None]).mean()


class ImageClassifier(pl.LightningModule):
    """An architecture: ``backbone`` (images to features (B, D)) and ``head`` (features to logits (B, C)).

    ``forward`` takes uint8 images (B, C, H, W) and normalises them on their device, as the network was trained, so
    that a network means the same wherever it is used.
    """

    backbone: nn.Module
    head: nn.Module
    mean: Tensor
    scale: Tensor
    class_weights: Tensor | None

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        self.spec = spec
        self.recipe: Recipe | None = None
        self.register_buffer("class_weights", None, persistent=False)
        self.normalise_by(spec.mean, spec.std)

    @property
    def classifier(self) -> "ImageClassifier":
        """The network whose weights a stage is after: this one."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of uint8 images (B, C, H, W)."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Return the backbone's features (B, D) of uint8 images (B, C, H, W)."""
        pixels = images.contiguous().float()  # they come with channels last in memory
        found: Tensor = self.backbone((pixels - self.mean) * self.scale)
        return found

    def normalise_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take up the mean and deviation of each channel, on a scale from 0 to 1, that images are normalised by."""
        self.spec = replace(self.spec, mean=tuple(mean), std=tuple(std))
        shape = (1, self.spec.channels, 1, 1)
        self.register_buffer("mean", torch.tensor(self.spec.mean).mul(PIXEL_MAX).view(shape), persistent=False)
        scale = torch.tensor(self.spec.std).mul(PIXEL_MAX).reciprocal()
        self.register_buffer("scale", scale.view(shape), persistent=False)

    def configure_training(self, recipe: Recipe) -> None:
        """Take up how to learn, and what does not.

        Raises:
            UserError: more layers are to be frozen than there are.
        """
        self.recipe = recipe
        self.class_weights = None if recipe.class_weights is None else torch.tensor(recipe.class_weights)
        freeze(self.backbone, recipe.tuning)
        self.train(self.training)  # what is frozen is still from now on: Lightning leaves the modes as they are

    def train(self, mode: bool = True) -> Self:
        """Switch to training, but for modules that do not learn: what is frozen answers as in evaluation."""
        super().train(mode)
        for module in frozen_modules(self) if mode else ():
            module.eval()
        return self

    def attach(self, folder: Path) -> None:
        """Take up what the network keeps in files beside its checkpoint; most keep nothing there."""

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss and what is shown beside it."""
        images, targets = batch["labelled"][:2]
        logits = self(images)
        return {
            "loss": cross_entropy(logits, targets, self.class_weights),
            "accuracy": accuracy(logits.detach(), targets),
        }

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return logits (B, C) and labels (B,) of un-augmented images."""
        return {"logits": self(batch.images), "labels": batch.labels}

    def configure_optimizers(self, *beside: nn.Module) -> OptimizerLRScheduler:
        """Return the recipe's optimizer, with its learning rate renewed at every step.

        Args:
            beside: modules that learn with the network, as fast as its head.
        """
        recipe = self.recipe
        if recipe is None:
            raise RuntimeError("give the network a Recipe before it trains")
        optimizer = make_optimizer(self, recipe.optimizer, recipe.tuning, *beside)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, recipe))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def make_optimizer(
    network: nn.Module, config: OptimizerConfig, tuning: FineTuning = ALL_ALIKE, *beside: nn.Module
) -> torch.optim.Optimizer:
    """Return the optimizer of the parameters that learn; norms' scales and biases are not decayed.

    There is a group for each learning rate and decay that occurs.
    """
    shares = lr_scales(network, tuning)
    learning = [(parameter, shares[name]) for name, parameter in network.named_parameters()]
    learning += [(parameter, 1.0) for module in beside for parameter in module.parameters()]
    learning = [(parameter, share) for parameter, share in learning if parameter.requires_grad]
    groups = []
    for share in dict.fromkeys(share for _, share in learning):
        alike = [parameter for parameter, its in learning if its == share]
        decayed, plain = [p for p in alike if p.ndim > 1], [p for p in alike if p.ndim <= 1]
        groups += [
            {"params": parameters, "weight_decay": decay, "lr": share * config.lr}
            for parameters, decay in ((decayed, config.weight_decay), (plain, 0.0))
            if parameters
        ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr)


def lr_factor(step: int, recipe: Recipe) -> float:
    """Return the learning rate at ``step`` (from 0) as a share of ``optimizer.lr``: warm-up, then the schedule."""
    config = recipe.scheduler
    warmup = round(config.warmup * recipe.steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, recipe.steps - warmup)
    if config.name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if config.name == "step":
        return float(config.factor ** sum(done >= milestone for milestone in config.milestones))
    return 1.0
