"""FixMatch (Sohn et al. 2020, "FixMatch: simplifying semi-supervised learning with consistency and confidence").

One network predicts the class of a weak view of a pool image; where it is confident, this class is the label of a
strong view of the same image.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from tutelage.data import StreamBatch
from tutelage.models import ImageClassifier, accuracy
from tutelage.strategies.fixmatch.config import FixMatchStrategy
from tutelage.strategies.learner import StudentModule
from tutelage.strategies.stage_context import StageContext
from tutelage.strategies.stages import Stage


class FixMatch(StudentModule):
    """A network that learns from labels, and from its own confident predictions for weak views of the pool.

    Labelled images and both views of the pool's images go through one concatenated forward pass, so that batch
    normalisation sees them together.
    """

    def __init__(self, student: ImageClassifier, config: FixMatchStrategy, labelled_views: int = 1) -> None:
        """Keep the threshold tau, the weight lambda_u, and the number of views of a labelled image in a batch.

        Of two views the first, weak one is used.
        """
        super().__init__(student)
        self._config = config
        self._labelled_views = labelled_views

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss l_s + lambda_u l_u (section 2.2 of the paper), its parts, and rates of the predictions.

        The pool's batch is all weak views, then all strong ones. ``mask_rate`` is the fraction of pool images whose
        confidence reaches the threshold; the others have loss 0, and the mean is still over all.
        """
        labelled, targets = (part.chunk(self._labelled_views)[0] for part in batch["labelled"][:2])
        pool = batch["pool"].images
        logits = self.student(torch.cat([labelled, pool]))
        count = len(pool) // 2
        labelled_logits, weak_logits, strong_logits = logits.split([len(labelled), count, count])
        confidence, pseudo_labels = weak_logits.detach().float().softmax(dim=1).max(dim=1)
        mask = (confidence >= self._config.threshold).float()
        loss_labelled = self.student.label_loss(labelled_logits, targets)  # equation 3
        loss_pool = (mask * functional.cross_entropy(strong_logits, pseudo_labels, reduction="none")).mean()  # eq. 4
        return {
            "loss": loss_labelled + self._config.weight * loss_pool,
            "loss_labelled": loss_labelled.detach(),
            "loss_pool": loss_pool.detach(),
            "mask_rate": mask.mean(),
            "agreement": accuracy(strong_logits.detach(), pseudo_labels),
            "accuracy": accuracy(labelled_logits.detach(), targets),
        }


def stages(strategy: FixMatchStrategy, context: StageContext) -> Sequence[Stage]:
    """Return FixMatch, then the control: the same network on the labels alone, for as many steps.

    The weak and the strong view are those of ``augmentation.transforms`` and ``.strong``. Without ``.strong``, the weak
    view is the image as it is and the strong one that of ``.transforms``.

    Raises:
        UserError: there is no pool.
    """
    labelled, has_strong = context.labelled, bool(context.config.augmentation.strong)
    pool = context.unlabelled_stream(context.pool_batch_size(strategy.unlabelled_ratio), "" if has_strong else "plain")
    length = context.length(1.0, labelled, pool)
    fixmatch = context.supervised_stage(
        "fixmatch",
        length,
        labelled,
        pool,
        images_per_step=labelled.batch_size + 2 * pool.batch_size,
        module=partial(FixMatch, config=strategy, labelled_views=2 if has_strong else 1),
    )
    return [fixmatch, context.control(length)] if strategy.control else [fixmatch]
