"""Pseudo-labels (Lee 2013, "Pseudo-Label: the simple and efficient semi-supervised learning method for deep networks").

One network learns from the labelled images and, more and more as it goes, from its own answers to the pool.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from tutelage.config import Config, PseudoLabelConfig
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


def weight_at(step: int, steps: int, config: PseudoLabelConfig) -> float:
    """Return alpha(t), what pseudo-labels weigh at ``step`` (from 0) of ``steps``: equation 16 of the paper.

    Nothing before T1, linearly more from there, and ``final_weight`` from T2 on.
    """
    begins, ends = config.ramp_begins * steps, config.ramp_ends * steps
    if step < begins:
        return 0.0
    return config.final_weight * ((step - begins) / (ends - begins) if step < ends else 1.0)


class PseudoLabel(StudentModule):
    """A network that is its own teacher.

    Labelled and pool images go through one concatenated forward, so that batch normalisation sees them together. The
    class that an answer to a pool image holds most likely is the image's label in that very step.
    """

    def __init__(self, student: ImageClassifier, config: PseudoLabelConfig, steps: int) -> None:
        super().__init__(student)
        self._config = config
        self._steps = steps

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss (equation 15 of the paper), its parts, and how right and how sure the answers are.

        ``sure`` is the share of pool images whose answer reaches the threshold; the others count nothing, and the mean
        is still over all.
        """
        labelled, pool = batch["labelled"], batch["pool"]
        logits = self.student(torch.cat([labelled.images, pool.images]))
        on_labelled, on_pool = logits.split([len(labelled.images), len(pool.images)])
        certainty, answers = on_pool.detach().float().softmax(dim=1).max(dim=1)
        sure = (certainty >= self._config.threshold).float()
        loss_labelled = cross_entropy(on_labelled, labelled.targets, self.student.class_weights)
        loss_pool = (sure * functional.cross_entropy(on_pool, answers, reduction="none")).mean()
        weight = weight_at(self.global_step, self._steps, self._config)
        return {
            "loss": loss_labelled + weight * loss_pool,
            "loss_labelled": loss_labelled.detach(),
            "loss_pool": loss_pool.detach(),
            "weight": torch.tensor(weight),
            "mask_rate": sure.mean(),
            "accuracy": accuracy(on_labelled.detach(), labelled.targets),
        }


def stages(config: Config, source: Source, splits: Splits) -> Sequence[Stage]:
    """Return the one stage, then the control: the same network on the labels alone, for as many steps.

    Raises:
        UserError: there is no pool.
    """
    recipe = config.strategy
    assert isinstance(recipe, PseudoLabelConfig)  # noqa: S101 - the strategy was chosen by this type
    labelled = labelled_stream(config, source, splits)
    pool = unknown_stream(splits, pool_batch(config, splits, recipe.unlabelled_ratio))
    extent = length(config, 1.0, (labelled.length, labelled.batch_size), (pool.length, pool.batch_size))

    taught = replace(
        supervised_on("pseudo_label", config.model, extent, labelled, pool),
        module=partial(PseudoLabel, config=recipe, steps=extent.steps),
    )
    control = replace(supervised_on("control", config.model, extent, labelled), control=True, told=CONTROL)
    return [taught, control] if recipe.control else [taught]
