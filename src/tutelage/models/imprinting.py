"""One more class without training: weight imprinting.

Qi, Brown and Lowe 2018, "Low-Shot Learning with Imprinted Weights". The new class is the mean direction of its
pictures' features (section 3.2), and features are compared by their cosine, with it and with the weights of the old
classes. The paper's head is trained for cosines from the start; here the old head stays as it is, and how much nearer
the new class must be than all others is learned from its own pictures.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from tutelage.data import EvalBatch
from tutelage.errors import UserError
from tutelage.models.base import ImageClassifier, ImageSpec
from tutelage.models.heads import check_images, copy_backbone

MISSED = 0.1  # the part of its own pictures that a new class may miss: those least like the others
TYPICAL_CONFIDENCE = 0.9  # in the new class, of a picture that is like the others as half of them are
SMALLEST_SPREAD = 0.01  # of cosines: within so much the confidence falls, at least, where the pictures are all alike


class ImprintedHead(nn.Module):
    """A linear head whose logits stay as they are, and before them a logit for each class that was added.

    The logit of an added class is ``logsumexp(old logits) + sharpness * (margin - threshold)``. The margin is the
    cosine of a picture's features and the class's direction, less the largest one with the weights of an old class. So
    a softmax gives a single added class the probability ``sigmoid(sharpness * (margin - threshold))``, and leaves the
    ratios of all other classes as they were. Several added classes are each weighed against the old ones: the order in
    which they came has no effect.

    Args:
        old: the head of the classes that the network was trained on.
        added: number of added classes, the newest first.
    """

    directions: Tensor
    thresholds: Tensor
    sharpness: Tensor

    def __init__(self, old: nn.Linear, added: int) -> None:
        super().__init__()
        self.old = old
        self.register_buffer("directions", torch.zeros(added, old.in_features))
        self.register_buffer("thresholds", torch.zeros(added))
        self.register_buffer("sharpness", torch.zeros(added))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, C) of features (B, D): of the added classes, then of the old ones."""
        old: Tensor = self.old(features)
        cosines = functional.normalize(features, dim=1) @ self.directions.T
        odds = self.sharpness * (cosines - self._nearest_old(features) - self.thresholds)  # as logarithms
        return torch.cat([old.logsumexp(dim=1, keepdim=True) + odds, old], dim=1)

    def _nearest_old(self, features: Tensor) -> Tensor:
        """Return the largest cosine (B, 1) of features (B, D) with the weights of an old class."""
        weights = functional.normalize(self.old.weight.to(features.dtype), dim=1)
        return (functional.normalize(features, dim=1) @ weights.T).amax(dim=1, keepdim=True)

    def imprint(self, features: Tensor) -> None:
        """Set the newest class by the features (N, D) of its pictures, two or more.

        Its direction is the mean of the features, each at length 1. For the margins each picture is compared with the
        mean of the others, as a new one will be. The threshold is their ``MISSED`` quantile, and the sharpness gives
        their median ``TYPICAL_CONFIDENCE``: from there the confidence falls to one half over the distance by which the
        class's own pictures differ from one another, whatever the scale of cosines in this network.
        """
        with torch.no_grad():
            rows = functional.normalize(features.double(), dim=1)
            total = rows.sum(dim=0)
            cosines = functional.cosine_similarity(rows, total - rows)
            margins = cosines - self._nearest_old(rows)[:, 0]
            threshold, median = torch.quantile(margins, margins.new_tensor([MISSED, 0.5])).tolist()
        self.directions[0] = functional.normalize(total, dim=0)
        self.thresholds[0] = threshold
        log_odds = math.log(TYPICAL_CONFIDENCE / (1 - TYPICAL_CONFIDENCE))
        self.sharpness[0] = log_odds / max(median - threshold, SMALLEST_SPREAD)


def imprint(
    network: ImageClassifier, batches: Iterable[EvalBatch], after_batch: Callable[[int], None] = lambda images: None
) -> None:
    """Let a network with an ``ImprintedHead`` know its newest class, in one pass over its pictures.

    Args:
        network: has all other weights.
        batches: the labelled images, un-augmented.
        after_batch: called with the number of images of each batch; may raise to stop.
    """
    if not isinstance(network.head, ImprintedHead):
        raise TypeError(f"{type(network).__name__}: its head has no place for one more class")
    features: list[Tensor] = []
    network.eval()
    with torch.no_grad():
        for batch in batches:
            features.append(network.features(batch.images.to(network.device)))
            after_batch(len(batch.images))
    network.head.imprint(torch.cat(features))


def with_added_class(spec: ImageSpec, old: ImageSpec) -> ImageSpec:
    """Return the spec of a network that knows the ``old`` classes and is to know the one of ``spec`` too.

    The new class comes first, so that its label, 0, is right as a column number without a change.

    Raises:
        UserError: the new images differ from the old network's in channels or size, its classes are in several tasks,
            or it knows the class already.
    """
    check_images(spec, old)
    (name,) = spec.classes
    if old.tasks:
        raise UserError(
            f"init_from: the old network has {len(old.tasks)} tasks, and one more class needs a single answer; begin "
            "from a run that has learned all old classes as one task, or give the new class a second one beside it"
        )
    if name in old.classes:
        raise UserError(
            f"init_from: the old network knows class {name!r} already; more pictures of it go with those of the other "
            "classes, by strategy=supervised"
        )
    return replace(old, classes=(name, *old.classes), added=old.added + 1)


def load_old_classes(network: ImageClassifier, old: ImageClassifier) -> str:
    """Copy the old network's weights into a network whose spec is ``with_added_class``; return a sentence on it.

    Args:
        network: gets the weights; on the meta device only the fit is checked.
        old: its head becomes the part that stays as it is.

    Raises:
        UserError: the networks differ.
    """
    head = network.head
    if not isinstance(head, ImprintedHead):
        raise TypeError(f"{type(network).__name__}: its head has no place for one more class")
    if copy_backbone(network, old):
        if isinstance(old.head, ImprintedHead):
            for name in ("directions", "thresholds", "sharpness"):
                getattr(head, name)[1:] = getattr(old.head, name)
        linear = old.head.old if isinstance(old.head, ImprintedHead) else old.head
        head.old.load_state_dict(linear.state_dict())
    name = network.spec.classes[0]
    return f"init_from: the old network's {len(old.spec.classes)} classes stay as they are, and {name!r} comes to them"
