"""A network without the framework around it: a plain ``nn.Module`` that trace, export and compile take."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.models import ImageClassifier, ImageSpec
from tutelage.models.base import normalise


class PlainNetwork(nn.Module):
    """``backbone`` and ``head`` of an architecture, with the normalisation inside.

    Attributes:
        spec: the images that it takes and its classes.
    """

    mean: Tensor
    scale: Tensor
    columns: Tensor | None

    def __init__(
        self, backbone: nn.Module, head: nn.Module, spec: ImageSpec, mean: Tensor, scale: Tensor, columns: Tensor | None
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.spec = backbone, head, spec
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.register_buffer("columns", columns)

    @classmethod
    def of(cls, network: ImageClassifier, columns: Sequence[int] | None = None) -> Self:
        """Return a network's parts as a plain module, in eval mode; the weights are shared with it.

        Args:
            network: an architecture.
            columns: the columns of its logits that are wanted; None for all.

        Raises:
            UserError: the architecture does more than its backbone and its head.
        """
        kind = type(network)
        if kind.forward is not ImageClassifier.forward or kind.features is not ImageClassifier.features:
            raise UserError(
                f"{kind.__name__}: it is more than a backbone and a head (the labelled pictures of nearest neighbours "
                "are its model), so it cannot be taken away; tutelage predict uses it where its run lies"
            )
        chosen = None if columns is None else torch.tensor(columns, device=network.mean.device)
        return cls(network.backbone, network.head, network.spec, network.mean, network.scale, chosen).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of uint8 images (B, C', S, S).

        Raises:
            TypeError: the images are not uint8. Floats are refused, as nothing says on which scale they are.
        """
        logits: Tensor = self.head(self.features(images))
        return logits if self.columns is None else logits[:, self.columns]

    def features(self, images: Tensor) -> Tensor:
        """Return features (B, D) of uint8 images (B, C', S, S).

        Raises:
            TypeError: as in ``forward``.
        """
        if images.dtype != torch.uint8:
            raise TypeError(
                f"images are uint8, from 0 to 255, not {images.dtype}: the network normalises them itself. Of floats "
                "from 0 to 1 they are images.mul(255).round().to(torch.uint8)"
            )
        features: Tensor = self.backbone(normalise(images, self.mean, self.scale))
        return features
