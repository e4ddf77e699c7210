"""The base class of all architectures, the description of their images and classes, loss and accuracy.

The accuracy of one batch, of class indices or of probabilities, stands beside torchmetrics: its classes take class
indices alone, while targets of mixed images are probabilities.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from tutelage.config import Targeted, describe_too_small_image
from tutelage.data import EvalBatch, StreamBatch
from tutelage.errors import UserError
from tutelage.models.label_loss import CrossEntropy, LabelLoss, make_loss
from tutelage.models.optimization import OptimizationConfig, lr_factor, make_optimizer
from tutelage.models.parameter_groups import freeze, frozen_modules

PIXEL_MAX = 255.0
COUNT = ":count"  # ends the name of the number of images that a sum in a step's outputs is over


@dataclass(frozen=True)
class ImageSpec:
    """The images and classes of a network: plain values, stored with its weights.

    Attributes:
        channels: channels of an image.
        image_size: height and width in pixels.
        classes: names of the classes, in the order of the logits.
        mean: mean of each channel, on a scale from 0 to 1.
        std: standard deviation of each channel, on the same scale.
        tasks: the class indices of each task, where each task has a head of its own (see ``Heads``).
        added: how many classes, the first ones, were added without training (see ``ImprintedHead``).
    """

    channels: int
    image_size: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tasks: tuple[tuple[int, ...], ...] = ()
    added: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the values in containers that torch's safe loader accepts."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {**values, "tasks": [list(task) for task in self.tasks]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the spec that ``to_dict`` turned into ``values``; older files lack ``tasks`` or ``added``."""
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**{**fields, "tasks": tuple(map(tuple, values.get("tasks", ())))})


def check_image_size(spec: ImageSpec, config_class: type[Targeted]) -> None:
    """Check that images are as large as an architecture needs; for a whole config this was checked before.

    Raises:
        UserError: the images are smaller than ``config_class.smallest``.
    """
    if spec.image_size < config_class.smallest:
        name = config_class.__name__.removesuffix("Config")
        raise UserError(describe_too_small_image(name, config_class.smallest, spec.image_size))


def normalise(images: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return images (B, C, H, W), from 0 to 255, as float32 less the mean times the scale, (1, C, 1, 1) each."""
    return (images.contiguous().float() - mean) * scale  # images come with channels last in memory


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over the batch of the target's weight on the predicted class, that of the largest logit.

    For classes (B,) int64 that is the fraction of correct predictions. For weights (B, C) a prediction is correct in
    part: the prediction "cat", for an image that is three quarters cat, by three quarters.
    """
    predictions = logits.argmax(dim=1)
    if targets.ndim == 1:
        return (predictions == targets).float().mean()
    return targets.gather(1, predictions[:, None]).mean()


class ImageClassifier(pl.LightningModule):
    """An architecture: ``backbone`` (images to features (B, D)) and ``head`` (features to logits (B, C)).

    ``forward`` takes uint8 images (B, C, H, W) and normalises them on their device by the mean and deviation that the
    network was trained with, so that a network gives the same logits wherever it is used.
    """

    backbone: nn.Module
    head: nn.Module
    mean: Tensor
    scale: Tensor
    class_weights: Tensor | None
    loss_function: LabelLoss
    model_config: dict[str, Any]  # that it was built from; set by ``make_classifier``

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        self.spec = spec
        self.optimization: OptimizationConfig | None = None
        self.register_buffer("class_weights", None, persistent=False)
        self.loss_function = CrossEntropy()
        self.normalise_by(spec.mean, spec.std)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: Lightning's reader knows neither the architecture nor the images and classes of a run's files.

        Raises:
            UserError: always; it names the function that reads them.
        """
        raise UserError(
            f"{checkpoint_path}: load_from_checkpoint does not read a run's files; tutelage.load(RUN or FILE) does: "
            "its .predict takes pictures, and its .network is an nn.Module"
        )

    @property
    def classifier(self) -> "ImageClassifier":
        """The network whose weights a stage is to save, which is this one."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of uint8 images (B, C, H, W)."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Return the backbone's features (B, D) of uint8 images (B, C, H, W)."""
        features: Tensor = self.backbone(normalise(images, self.mean, self.scale))
        return features

    def normalise_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and deviation of each channel, on a scale from 0 to 1, that images are normalised by."""
        self.spec = replace(self.spec, mean=tuple(mean), std=tuple(std))
        shape = (1, self.spec.channels, 1, 1)
        self.register_buffer("mean", torch.tensor(self.spec.mean).mul(PIXEL_MAX).view(shape), persistent=False)
        scale = torch.tensor(self.spec.std).mul(PIXEL_MAX).reciprocal()
        self.register_buffer("scale", scale.view(shape), persistent=False)

    def configure_training(self, optimization: OptimizationConfig) -> None:
        """Set how the network is trained, and freeze the layers that are not to learn.

        Raises:
            UserError: more layers are to be frozen than there are, or the loss cannot be built.
        """
        self.optimization = optimization
        weights = optimization.class_weights
        self.class_weights = None if weights is None else torch.tensor(weights)
        self.loss_function = make_loss(optimization.loss.arguments())
        freeze(self.backbone, optimization.fine_tuning)
        self.train(self.training)  # puts frozen modules into eval mode: Lightning leaves the modes as they are

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, but keep frozen modules in eval mode."""
        super().train(mode)
        for module in frozen_modules(self) if mode else ():
            module.eval()
        return self

    def attach(self, folder: Path) -> None:
        """Open the files beside the checkpoint that hold a part of the network; most networks have none."""

    def label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the config's ``loss``, with class weights, of logits (B, C) and classes (B,) or probabilities (B, C).

        Strategies call it for labels alone; targets that another network gave have plain cross-entropy.
        """
        loss: Tensor = self.loss_function(logits, targets, self.class_weights)
        return loss

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss and the accuracy of the labelled batch."""
        images, targets = batch["labelled"][:2]
        logits = self(images)
        return {
            "loss": self.label_loss(logits, targets),
            "accuracy": accuracy(logits.detach(), targets),
        }

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return logits (B, C) and labels (B,) of un-augmented images."""
        return {"logits": self(batch.images), "labels": batch.labels}

    def configure_optimizers(self, *extra_modules: nn.Module) -> OptimizerLRScheduler:
        """Return the optimizer and its learning rate schedule, which is updated at every step.

        Args:
            extra_modules: modules that are trained with the network, at the learning rate of its head.
        """
        optimization = self.optimization
        if optimization is None:
            raise RuntimeError("call configure_training(OptimizationConfig(...)) before the network is trained")
        optimizer = make_optimizer(self, optimization.optimizer, optimization.fine_tuning, *extra_modules)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, optimization))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
