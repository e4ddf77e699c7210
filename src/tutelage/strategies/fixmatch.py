"""FixMatch (Sohn et al. 2020, "FixMatch: simplifying semi-supervised learning with consistency and confidence").

One network answers to a weak view of a pool image; where it is sure, that is the label of a strong view of the same.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from tutelage.config import Config, FixMatchConfig
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


class FixMatch(StudentModule):
    """A network that learns from labels, and from its own sure answers to weak views of the pool.

    Labelled images and both views of the pool's go through one concatenated forward, so that batch normalisation sees
    them together.
    """

    def __init__(self, student: ImageClassifier, config: FixMatchConfig, labelled_views: int = 1) -> None:
        """Take the threshold tau, the weight lambda_u, and how many views of a labelled image a batch holds.

        Of two views the first, weak one counts.
        """
        super().__init__(student)
        self._config = config
        self._labelled_views = labelled_views

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss l_s + lambda_u l_u (section 2.2 of the paper), its parts, and how right and sure answers are.

        The pool's batch is all weak views, then all strong ones. ``sure`` is the share of pool images whose answer
        reaches the threshold; the others count nothing, and the mean is still over all.
        """
        labelled, targets = (part.chunk(self._labelled_views)[0] for part in batch["labelled"][:2])
        pool = batch["pool"].images
        logits = self.student(torch.cat([labelled, pool]))
        half = len(pool) // 2
        on_labelled, on_weak, on_strong = logits.split([len(labelled), half, half])
        certainty, answers = on_weak.detach().float().softmax(dim=1).max(dim=1)
        sure = (certainty >= self._config.threshold).float()
        loss_labelled = cross_entropy(on_labelled, targets, self.student.class_weights)  # equation 3
        loss_pool = (sure * functional.cross_entropy(on_strong, answers, reduction="none")).mean()  # equation 4
        return {
            "loss": loss_labelled + self._config.weight * loss_pool,
            "loss_labelled": loss_labelled.detach(),
            "loss_pool": loss_pool.detach(),
            "mask_rate": sure.mean(),
            "agreement": accuracy(on_strong.detach(), answers),
            "accuracy": accuracy(on_labelled.detach(), targets),
        }


def stages(config: Config, source: Source, splits: Splits) -> Sequence[Stage]:
    """Return the one stage, then the control: the same network on the labels alone, for as many steps.

    The weak and the strong view are those of ``augmentation.transforms`` and ``.strong``. Where there is no second one,
    they are the image as it is and the one view there is.

    Raises:
        UserError: there is no pool.
    """
    recipe, two = config.strategy, bool(config.augmentation.strong)
    assert isinstance(recipe, FixMatchConfig)  # noqa: S101 - the strategy was chosen by this type
    labelled = labelled_stream(config, source, splits)
    pool = unknown_stream(splits, pool_batch(config, splits, recipe.unlabelled_ratio), "" if two else "plain")
    extent = length(config, 1.0, (labelled.length, labelled.batch_size), (pool.length, pool.batch_size))

    matched = replace(
        supervised_on("fixmatch", config.model, extent, labelled, pool),
        images_per_step=labelled.batch_size + 2 * pool.batch_size,
        module=partial(FixMatch, config=recipe, labelled_views=2 if two else 1),
    )
    control = replace(supervised_on("control", config.model, extent, labelled), control=True, told=CONTROL)
    return [matched, control] if recipe.control else [matched]
