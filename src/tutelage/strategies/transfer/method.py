"""Transfer: a pretrained backbone and a new head (Oquab et al. 2014, Yosinski et al. 2014).

There are three ways: the backbone is frozen; it is fine-tuned, more slowly than the head; or it is frozen until the
head has learned and fine-tuned then (Howard and Ruder 2018).
"""

from collections.abc import Sequence
from dataclasses import replace

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from tutelage.data import EvalBatch, StreamBatch
from tutelage.models import FineTuning, ImageClassifier, accuracy
from tutelage.strategies.stage_context import Length, StageContext
from tutelage.strategies.stages import SCRATCH, Stage, TeacherSpec, TrainStage
from tutelage.strategies.transfer.config import (
    TransferFinetuneStrategy,
    TransferFrozenStrategy,
    TransferGradualStrategy,
)

FROZEN_BACKBONE = FineTuning(frozen_layers=None)
CONTROL_NOTE = "Control: the same network from random weights, all of it learning, for as many steps."


class HeadOnCachedFeatures(pl.LightningModule):
    """A network whose head learns from cached features of its frozen backbone."""

    def __init__(self, network: ImageClassifier) -> None:
        super().__init__()
        self.network = network

    @property
    def classifier(self) -> ImageClassifier:
        """The network whose weights a stage is to save: backbone and head."""
        return self.network

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss and accuracy on cached features (B, D)."""
        labelled = batch["labelled"]
        logits = self.network.head(labelled.cached)
        return {
            "loss": self.network.label_loss(logits, labelled.targets),
            "accuracy": accuracy(logits.detach(), labelled.targets),
        }

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return the network's logits (B, C) of images and the labels (B,)."""
        return self.network.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the network's optimizer and learning rate schedule."""
        return self.network.configure_optimizers()


def frozen_stages(strategy: TransferFrozenStrategy, context: StageContext) -> Sequence[Stage]:
    """Return training of the head on a frozen backbone, and the control."""
    frozen = train_head(context, "frozen", 1.0)
    return with_control(context, strategy.control, frozen)


def finetune_stages(strategy: TransferFinetuneStrategy, context: StageContext) -> Sequence[Stage]:
    """Return fine-tuning of the whole network, slower in its lower layers, and the control."""
    finetuned = fine_tune(context, "finetuned", 1.0)
    return with_control(context, strategy.control, finetuned)


def gradual_stages(strategy: TransferGradualStrategy, context: StageContext) -> Sequence[Stage]:
    """Return training of the head, then fine-tuning of the whole network, and the control."""
    head = train_head(context, "head", strategy.head_length)
    whole = fine_tune(context, "whole", 1 - strategy.head_length, starts_from=head.name)
    return with_control(context, strategy.control, head, whole)


def train_head(context: StageContext, name: str, fraction: float) -> TrainStage:
    """Return the stage that trains the head alone; where images are not augmented, from cached features."""
    labelled, augmentation = context.labelled, context.config.augmentation
    head = context.supervised_stage(name, context.length(fraction, labelled), labelled, fine_tuning=FROZEN_BACKBONE)
    if augmentation.transforms or augmentation.strong or augmentation.mix:
        return head
    return replace(head, module=HeadOnCachedFeatures, teacher=TeacherSpec(labelled.name, features=True))


def fine_tune(context: StageContext, name: str, fraction: float, starts_from: str | None = None) -> TrainStage:
    """Return the stage that trains the layers that the config does not freeze, each at its own learning rate."""
    length = context.length(fraction, context.labelled)
    return context.supervised_stage(name, length, context.labelled, starts_from=starts_from)


def with_control(context: StageContext, control: bool, *stages: TrainStage) -> Sequence[Stage]:
    """Return stages and, if ``control``, the same network from random weights, for as many steps as all of them."""
    if not control:
        return stages
    length = Length(sum(stage.steps for stage in stages), context.length(1.0, context.labelled).epoch_steps)
    return [*stages, context.control(length, CONTROL_NOTE, starts_from=SCRATCH)]
