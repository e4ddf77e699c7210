"""What every architecture shares: the base LightningModule, its loss, its optimizer."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional

from tutelage.config import OptimizerConfig, SchedulerConfig, Targeted, too_small
from tutelage.data import Plain, Shown
from tutelage.errors import UserError

PIXEL_MAX = 255.0


@dataclass(frozen=True)
class ImageSpec:
    """What a network sees and tells apart: plain values, stored with its weights."""

    channels: int
    image_size: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def plain(self) -> dict[str, Any]:
        """Return the same as containers that torch's safe loader accepts."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Self:
        """Return the spec that ``plain()`` gave."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return cls(**values)


@dataclass(frozen=True)
class Recipe:
    """How a network learns: update rule, learning rate over time, for how many steps, and what each class weighs."""

    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    steps: int
    class_weights: tuple[float, ...] | None = None


def check_size(spec: ImageSpec, model: type[Targeted]) -> None:
    """Raise a UserError unless images are as large as a model needs them; configs are checked before."""
    if spec.image_size < model.smallest:
        raise UserError(too_small(model.__name__.removesuffix("Config"), model.smallest, spec.image_size))


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
        shape = (1, spec.channels, 1, 1)
        self.register_buffer("mean", torch.tensor(spec.mean).mul(PIXEL_MAX).view(shape), persistent=False)
        self.register_buffer("scale", torch.tensor(spec.std).mul(PIXEL_MAX).reciprocal().view(shape), persistent=False)

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

    def learn_by(self, recipe: Recipe) -> None:
        """Take up how to learn."""
        self.recipe = recipe
        self.class_weights = None if recipe.class_weights is None else torch.tensor(recipe.class_weights)

    def attach(self, folder: Path) -> None:
        """Take up what the network keeps in files beside its checkpoint; most keep nothing there."""

    def training_step(self, batch: dict[str, Shown], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss and what is shown beside it."""
        images, targets = batch["labelled"]
        logits = self(images)
        return {
            "loss": cross_entropy(logits, targets, self.class_weights),
            "accuracy": accuracy(logits.detach(), targets),
        }

    def validation_step(self, batch: Plain, batch_idx: int) -> dict[str, Tensor]:
        """Return logits (B, C) and labels (B,) of un-augmented images."""
        return {"logits": self(batch.images), "labels": batch.labels}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the recipe's optimizer, with its learning rate renewed at every step."""
        recipe = self.recipe
        if recipe is None:
            raise RuntimeError("give the network a Recipe before it trains")
        optimizer = make_optimizer(self, recipe.optimizer)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, recipe))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimizer of the parameters that learn; norms' scales and biases are not decayed."""
    decayed = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, config.weight_decay), (plain, 0.0))
        if parameters
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr)


def rate_at(step: int, recipe: Recipe) -> float:
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
