"""Mean teacher (Tarvainen and Valpola 2017, "Mean teachers are better role models").

A student agrees, on labelled and pool images alike, with a teacher whose weights are the average of its own past ones.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tutelage.config import Config, MeanTeacherConfig
from tutelage.data import Source, Splits, StreamBatch
from tutelage.models import ImageClassifier, accuracy, cross_entropy
from tutelage.strategies.learner import StudentModule
from tutelage.strategies.stages import (
    CONTROL,
    Stage,
    labelled_stream,
    length,
    pool_batch,
    supervised_on,
    unknown_stream,
)

RAMP_SHARPNESS = 5.0  # appendix B.1: w(t) = exp(-5 (1 - t)^2), as in Laine and Aila 2017


def weight_at(step: int, steps: int, config: MeanTeacherConfig) -> float:
    """Return what the consistency cost weighs at ``step`` (from 0) of ``steps``: appendix B.1 of the paper."""
    ramp = config.ramp_up * steps
    done = min(1.0, step / ramp) if ramp else 1.0
    return config.weight * math.exp(-RAMP_SHARPNESS * (1 - done) ** 2)


def decay_at(step: int, config: MeanTeacherConfig) -> float:
    """Return alpha, what the teacher keeps of itself after ``step`` (from 0).

    The mean over the first steps, as in the paper's own code, becomes the running average as soon as that is longer.
    """
    return min(config.decay, 1 - 1 / (step + 2))


class MeanTeacher(StudentModule):
    """A student and its teacher, the average of its weights, which is the network that is kept and measured.

    The teacher has no gradient. It is noised as the student is: it drops out, and its batch norms see the batch, in
    each forward of its own (section 2 of the paper: eta and eta').
    """

    def __init__(self, student: ImageClassifier, config: MeanTeacherConfig, steps: int) -> None:
        super().__init__(student)
        self.teacher = copy.deepcopy(student)  # its parameters stay such that learn, or its dropout would stand still
        self._config = config
        self._steps = steps

    @property
    def classifier(self) -> ImageClassifier:
        """The teacher."""
        return self.teacher

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss, its parts, how right the student is, and how often teacher and student answer alike.

        Each stream's batch is all views for the teacher, then all views of the same images for the student. The
        classification cost is the student's on labelled images; the consistency cost (equation 1) the mean squared
        difference of probabilities, over all images and classes.
        """
        labelled, pool = (batch[name].images.chunk(2) for name in ("labelled", "pool"))
        targets = batch["labelled"].targets.chunk(2)[1]
        logits = self.student(torch.cat([labelled[1], pool[1]]))
        with torch.no_grad():
            theirs = self.teacher(torch.cat([labelled[0], pool[0]])).float()
        on_labelled = logits[: len(targets)]
        classification = cross_entropy(on_labelled, targets, self.student.class_weights)
        consistency = functional.mse_loss(logits.float().softmax(dim=1), theirs.softmax(dim=1))
        weight = weight_at(self.global_step, self._steps, self._config)
        return {
            "loss": classification + weight * consistency,
            "loss_labelled": classification.detach(),
            "loss_pool": consistency.detach(),
            "weight": torch.tensor(weight),
            "agreement": (logits.detach().argmax(dim=1) == theirs.argmax(dim=1)).float().mean(),
            "accuracy": accuracy(on_labelled.detach(), targets),
        }

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], object] | None = None,
    ) -> None:
        """Let the student take a step and the teacher follow (equation 2), before a checkpoint sees either."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.follow(decay_at(self.global_step, self._config))

    def follow(self, decay: float) -> None:
        """Make the teacher's weights ``decay`` of themselves and the rest of the student's."""
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average([*self.teacher.parameters()], [*self.student.parameters()], None)


def stages(config: Config, source: Source, splits: Splits) -> Sequence[Stage]:
    """Return the one stage, then the control: the same network on the labels alone, for as many steps.

    Teacher and student see two draws of ``augmentation.transforms``; where ``augmentation.strong`` makes a second view,
    the teacher sees the first and the student the second.

    Raises:
        UserError: there is no pool.
    """
    recipe, beside = config.strategy, "" if config.augmentation.strong else "twin"
    assert isinstance(recipe, MeanTeacherConfig)  # noqa: S101 - the strategy was chosen by this type
    labelled = labelled_stream(config, source, splits)
    pool = unknown_stream(splits, pool_batch(config, splits, recipe.unlabelled_ratio), beside)
    extent = length(config, 1.0, (labelled.length, labelled.batch_size), (pool.length, pool.batch_size))

    taught = replace(
        supervised_on("mean_teacher", config.model, extent, replace(labelled, beside=beside), pool),
        images_per_step=2 * (labelled.batch_size + pool.batch_size),
        module=partial(MeanTeacher, config=recipe, steps=extent.steps),
        averages=True,
    )
    control = replace(supervised_on("control", config.model, extent, labelled), control=True, told=CONTROL)
    return [taught, control] if recipe.control else [taught]
