"""The base of most strategies' modules: a student that is trained, validated and saved."""

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from tutelage.data import EvalBatch
from tutelage.models import ImageClassifier


class StudentModule(pl.LightningModule):
    """A module around a student; a strategy adds its training step.

    Attributes:
        student: the network that is trained.
    """

    def __init__(self, student: ImageClassifier) -> None:
        super().__init__()
        self.student = student

    @property
    def classifier(self) -> ImageClassifier:
        """The network whose weights a stage is to save, which is the student."""
        return self.student

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return the classifier's logits (B, C) of un-augmented images, and the labels (B,)."""
        return self.classifier.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the student's optimizer and learning rate schedule."""
        return self.student.configure_optimizers()
