"""Transfer: a backbone that learned elsewhere, and a new head (Oquab et al. 2014, Yosinski et al. 2014).

Three ways with the backbone: it stays as it is; it learns, slower than the head; or it stays until the head has learned
and then learns too (Howard and Ruder 2018).
"""

from collections.abc import Sequence
from dataclasses import replace

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from tutelage.config import Config, TransferFinetuneConfig, TransferFrozenConfig, TransferGradualConfig
from tutelage.data import EvalBatch, Source, Splits, StreamBatch
from tutelage.models import FineTuning, ImageClassifier, accuracy, cross_entropy
from tutelage.strategies.stages import SCRATCH, Stage, TeacherSpec, TrainStage, labelled_stream, length, supervised_on

FROZEN = FineTuning(frozen_layers=None)
CONTROL = "Control: the same network from random weights, all of it learning, for as many steps."


class HeadOnCachedFeatures(pl.LightningModule):
    """A network whose head learns from features of its frozen backbone that were computed before."""

    def __init__(self, network: ImageClassifier) -> None:
        super().__init__()
        self.network = network

    @property
    def classifier(self) -> ImageClassifier:
        """The whole network."""
        return self.network

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss and accuracy on features (B, D), which come as the stream's answers."""
        shown = batch["labelled"]
        logits = self.network.head(shown.answers)
        return {
            "loss": cross_entropy(logits, shown.targets, self.network.class_weights),
            "accuracy": accuracy(logits.detach(), shown.targets),
        }

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return the network's logits (B, C) of images and the labels (B,)."""
        return self.network.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the network's optimizer."""
        return self.network.configure_optimizers()


def frozen(config: Config, source: Source, splits: Splits) -> Sequence[Stage]:
    """Return a stage in which the head learns on a frozen backbone, and the control."""
    plan = _Plan(config, source, splits)
    return plan.against_scratch(plan.head("frozen", 1.0))


def finetune(config: Config, source: Source, splits: Splits) -> Sequence[Stage]:
    """Return a stage in which all learns, slower below, and the control."""
    plan = _Plan(config, source, splits)
    return plan.against_scratch(plan.whole("finetuned", 1.0))


def gradual(config: Config, source: Source, splits: Splits) -> Sequence[Stage]:
    """Return a stage in which the head learns, one in which all does, and the control."""
    recipe = config.strategy
    assert isinstance(recipe, TransferGradualConfig)  # noqa: S101 - the strategy was chosen by this type
    plan = _Plan(config, source, splits)
    head = plan.head("head", recipe.head_length)
    return plan.against_scratch(head, plan.whole("whole", 1 - recipe.head_length, head))


class _Plan:
    """Makes the stages of a config, all of the same network on the labelled images."""

    def __init__(self, config: Config, source: Source, splits: Splits) -> None:
        self._config = config
        self._stream = labelled_stream(config, source, splits)

    def head(self, name: str, share: float) -> TrainStage:
        """Return a stage in which the head alone learns; where images are not augmented, from features kept."""
        fit, views = replace(self._fit(name, share), tuning=FROZEN), self._config.augmentation
        if views.transforms or views.strong or views.mix:
            return fit
        return replace(fit, module=HeadOnCachedFeatures, teaching=TeacherSpec(self._stream.name, features=True))

    def whole(self, name: str, share: float, after: TrainStage | None = None) -> TrainStage:
        """Return a stage in which the layers that the config does not freeze learn, each at its own rate."""
        recipe = self._config.strategy
        assert isinstance(recipe, TransferFinetuneConfig)  # noqa: S101 - frozen has no such stage
        tuning = FineTuning(recipe.frozen_layers, recipe.backbone_lr_scale, recipe.layer_decay)
        return replace(self._fit(name, share), tuning=tuning, starts_from=after.name if after else None)

    def against_scratch(self, *fits: TrainStage) -> Sequence[Stage]:
        """Return stages with what they are compared with: random weights, all of which learn, for as many steps."""
        recipe = self._config.strategy
        assert isinstance(recipe, TransferFrozenConfig | TransferFinetuneConfig)  # noqa: S101 - as above
        if not recipe.control:
            return fits
        steps = sum(fit.steps for fit in fits)
        control = replace(self._fit("control", 1.0), steps=steps, starts_from=SCRATCH, control=True, told=CONTROL)
        return [*fits, control]

    def _fit(self, name: str, share: float) -> TrainStage:
        """Return plain training on the labelled images for a share of the schedule."""
        stream = self._stream
        extent = length(self._config, share, (stream.length, stream.batch_size))
        return supervised_on(name, self._config.model, extent, stream)
