"""VGG (Simonyan and Zisserman 2015)."""

from typing import Any

from torch import nn

from tutelage.config import VGGConfig
from tutelage.models.base import ImageClassifier, ImageSpec, check_image_size
from tutelage.models.layers import Mean, initialise_weights

CHANNELS = (64, 128, 256, 512, 512)
HIDDEN = 4096
CONVOLUTIONS = {  # in each block: table 1's configurations A, B, D, E
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(ImageClassifier):
    """VGG: five blocks of 3x3 convolutions, each followed by a pooling that halves height and width.

    ``depth=16`` has 138,357,544 parameters for 1000 classes at 3x224x224. The state dict's tensors are in torchvision's
    order. ``pool=average`` takes the mean over the last feature maps in place of all their pixels, and ``width``
    multiplies the channels and hidden units. Arguments: ``VGGConfig``.
    """

    def __init__(self, spec: ImageSpec, **arguments: Any) -> None:
        super().__init__(spec)
        config = VGGConfig.from_arguments(arguments)
        check_image_size(spec, VGGConfig)
        layers: list[nn.Module] = []
        inputs = spec.channels
        for channels, convolutions in zip(CHANNELS, CONVOLUTIONS[config.depth], strict=True):
            outputs = max(1, round(config.width * channels))
            for _ in range(convolutions):
                layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
                if config.batch_norm:
                    layers.append(nn.BatchNorm2d(outputs))
                layers.append(nn.ReLU())
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        pixels = 1 if config.pool == "average" else (spec.image_size // VGGConfig.smallest) ** 2
        hidden = max(1, round(config.width * HIDDEN))
        self.backbone = nn.Sequential(
            *layers,
            Mean() if config.pool == "average" else nn.Flatten(),
            nn.Linear(inputs * pixels, hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
        )
        self.head = nn.Linear(hidden, len(spec.classes))
        initialise_weights(self)
