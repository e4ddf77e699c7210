"""VGG (Simonyan and Zisserman 2015)."""

from typing import Literal

from torch import nn

from tutelage.config import VGGConfig
from tutelage.models.base import ImageClassifier, ImageSpec, check_size
from tutelage.models.layers import Mean, initialise

CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {  # of each block: table 1's configurations A, B, D, E
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(ImageClassifier):
    """3x3 convolutions in five blocks, each halved by pooling; ``depth=16`` has 138,357,544 parameters at 3x224x224.

    The state dict's tensors stand in torchvision's order. ``pool=average`` takes the mean over the last maps in place
    of all their pixels, and ``width`` multiplies the channels and hidden units.
    """

    def __init__(
        self,
        spec: ImageSpec,
        *,
        depth: Literal[11, 13, 16, 19] = 11,
        batch_norm: bool = False,
        width: float = 1.0,
        pool: Literal["flatten", "average"] = "flatten",
        dropout: float = 0.5,
    ) -> None:
        super().__init__(spec)
        check_size(spec, VGGConfig)
        layers: list[nn.Module] = []
        inputs = spec.channels
        for channels, convolutions in zip(CHANNELS, CONVOLUTIONS[depth], strict=True):
            outputs = max(1, round(width * channels))
            for _ in range(convolutions):
                layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(outputs))
                layers.append(nn.ReLU())
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        pixels = 1 if pool == "average" else (spec.image_size // VGGConfig.smallest) ** 2
        hidden = max(1, round(width * 4096))
        self.backbone = nn.Sequential(
            *layers,
            Mean() if pool == "average" else nn.Flatten(),
            nn.Linear(inputs * pixels, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(hidden, len(spec.classes))
        initialise(self)
