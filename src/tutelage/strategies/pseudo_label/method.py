"""Pseudo-labels (Lee 2013, "Pseudo-Label: the simple and efficient semi-supervised learning method for deep networks").

One network learns from the labelled images and, with a weight that grows, from its own predictions for the pool.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from tutelage.data import StreamBatch
from tutelage.models import ImageClassifier, accuracy
from tutelage.strategies.learner import StudentModule
from tutelage.strategies.pseudo_label.config import PseudoLabelStrategy
from tutelage.strategies.stage_context import StageContext
from tutelage.strategies.stages import Stage


def pseudo_label_weight(step: int, steps: int, config: PseudoLabelStrategy) -> float:
    """Return alpha(t), the weight of the pool's loss at ``step`` (from 0) of ``steps``: equation 16 of the paper.

    It is 0 before T1, grows linearly from there, and is ``final_weight`` from T2 on.
    """
    begin, end = config.ramp_begins * steps, config.ramp_ends * steps
    if step < begin:
        return 0.0
    return config.final_weight * ((step - begin) / (end - begin) if step < end else 1.0)


class PseudoLabel(StudentModule):
    """A network that is its own teacher.

    Labelled and pool images go through one concatenated forward pass, so that batch normalisation sees them together.
    The most likely class of a pool image is its label in that very step.
    """

    def __init__(self, student: ImageClassifier, config: PseudoLabelStrategy, steps: int) -> None:
        super().__init__(student)
        self._config = config
        self._steps = steps

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss (equation 15 of the paper), its parts, the accuracy and the mask rate.

        ``mask_rate`` is the fraction of pool images whose confidence reaches the threshold; the others have loss 0, and
        the mean is still over all.
        """
        labelled, pool = batch["labelled"], batch["pool"]
        logits = self.student(torch.cat([labelled.images, pool.images]))
        labelled_logits, pool_logits = logits.split([len(labelled.images), len(pool.images)])
        confidence, pseudo_labels = pool_logits.detach().float().softmax(dim=1).max(dim=1)
        mask = (confidence >= self._config.threshold).float()
        loss_labelled = self.student.label_loss(labelled_logits, labelled.targets)
        loss_pool = (mask * functional.cross_entropy(pool_logits, pseudo_labels, reduction="none")).mean()
        weight = pseudo_label_weight(self.global_step, self._steps, self._config)
        return {
            "loss": loss_labelled + weight * loss_pool,
            "loss_labelled": loss_labelled.detach(),
            "loss_pool": loss_pool.detach(),
            "weight": torch.tensor(weight),
            "mask_rate": mask.mean(),
            "accuracy": accuracy(labelled_logits.detach(), labelled.targets),
        }


def stages(strategy: PseudoLabelStrategy, context: StageContext) -> Sequence[Stage]:
    """Return training with pseudo-labels, then the control: the same network on the labels alone, for as many steps.

    Raises:
        UserError: there is no pool.
    """
    pool = context.unlabelled_stream(context.pool_batch_size(strategy.unlabelled_ratio))
    length = context.length(1.0, context.labelled, pool)
    pseudo_label = context.supervised_stage(
        "pseudo_label",
        length,
        context.labelled,
        pool,
        module=partial(PseudoLabel, config=strategy, steps=length.steps),
    )
    return [pseudo_label, context.control(length)] if strategy.control else [pseudo_label]
