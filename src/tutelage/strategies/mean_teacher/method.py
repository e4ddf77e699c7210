"""Mean teacher (Tarvainen and Valpola 2017, "Mean teachers are better role models").

A student is trained to agree, on labelled and pool images alike, with a teacher whose weights are the average of the
student's past weights. Beside ``optimizer.ema_decay``: there the average takes no part in training.
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

from tutelage.data import StreamBatch
from tutelage.models import ImageClassifier, accuracy
from tutelage.strategies.learner import StudentModule
from tutelage.strategies.mean_teacher.config import MeanTeacherStrategy
from tutelage.strategies.stage_context import StageContext
from tutelage.strategies.stages import Stage

RAMP_SHARPNESS = 5.0  # appendix B.1: w(t) = exp(-5 (1 - t)^2), as in Laine and Aila 2017


def consistency_weight(step: int, steps: int, config: MeanTeacherStrategy) -> float:
    """Return the weight of the consistency cost at ``step`` (from 0) of ``steps``: appendix B.1 of the paper."""
    ramp_steps = config.ramp_up * steps
    progress = min(1.0, step / ramp_steps) if ramp_steps else 1.0
    return config.weight * math.exp(-RAMP_SHARPNESS * (1 - progress) ** 2)


def teacher_decay(step: int, config: MeanTeacherStrategy) -> float:
    """Return alpha, the weight of the teacher's own weights in its update after ``step`` (from 0).

    As in the paper's own code, the teacher is the mean over the first steps, and the running average as soon as that
    covers more steps.
    """
    return min(config.decay, 1 - 1 / (step + 2))


class MeanTeacher(StudentModule):
    """A student and its teacher, the average of its weights, which is the network that is saved and measured.

    The teacher has no gradient. It has noise as the student has: its own dropout, and its own batch statistics, in a
    forward pass of its own (section 2 of the paper: eta and eta').
    """

    def __init__(self, student: ImageClassifier, config: MeanTeacherStrategy, steps: int) -> None:
        super().__init__(student)
        self.teacher = copy.deepcopy(student)  # its parameters are not frozen: frozen modules have no dropout
        self._config = config
        self._steps = steps

    @property
    def classifier(self) -> ImageClassifier:
        """The network whose weights a stage is to save: the teacher."""
        return self.teacher

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss, its parts, the student's accuracy, and how often student and teacher agree.

        Each stream's batch is all views for the teacher, then all views of the same images for the student. The
        classification cost is the student's on labelled images; the consistency cost (equation 1) the mean squared
        difference of probabilities, over all images and classes.
        """
        labelled, pool = (batch[name].images.chunk(2) for name in ("labelled", "pool"))
        targets = batch["labelled"].targets.chunk(2)[1]
        logits = self.student(torch.cat([labelled[1], pool[1]]))
        with torch.no_grad():
            teacher_logits = self.teacher(torch.cat([labelled[0], pool[0]])).float()
        labelled_logits = logits[: len(targets)]
        classification = self.student.label_loss(labelled_logits, targets)
        consistency = functional.mse_loss(logits.float().softmax(dim=1), teacher_logits.softmax(dim=1))
        weight = consistency_weight(self.global_step, self._steps, self._config)
        return {
            "loss": classification + weight * consistency,
            "loss_labelled": classification.detach(),
            "loss_pool": consistency.detach(),
            "weight": torch.tensor(weight),
            "agreement": (logits.detach().argmax(dim=1) == teacher_logits.argmax(dim=1)).float().mean(),
            "accuracy": accuracy(labelled_logits.detach(), targets),
        }

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], object] | None = None,
    ) -> None:
        """Update the student, then the teacher (equation 2), before a checkpoint saves either."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.update_teacher(teacher_decay(self.global_step, self._config))

    def update_teacher(self, decay: float) -> None:
        """Set the teacher's weights to ``decay`` times themselves plus 1 - ``decay`` times the student's."""
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average([*self.teacher.parameters()], [*self.student.parameters()], None)


def stages(strategy: MeanTeacherStrategy, context: StageContext) -> Sequence[Stage]:
    """Return mean teacher, then the control: the same network on the labels alone, for as many steps.

    Teacher and student see two draws of ``augmentation.transforms``; with ``augmentation.strong``, which makes a second
    view, the teacher sees the first and the student the second.

    Raises:
        UserError: there is no pool.
    """
    beside = "" if context.config.augmentation.strong else "twin"
    labelled = replace(context.labelled, beside=beside)
    pool = context.unlabelled_stream(context.pool_batch_size(strategy.unlabelled_ratio), beside)
    length = context.length(1.0, labelled, pool)
    mean_teacher = context.supervised_stage(
        "mean_teacher",
        length,
        labelled,
        pool,
        images_per_step=2 * (labelled.batch_size + pool.batch_size),
        module=partial(MeanTeacher, config=strategy, steps=length.steps),
        averages_weights=True,
    )
    return [mean_teacher, context.control(length)] if strategy.control else [mean_teacher]
