"""A small VGG for small images: three blocks of two 3x3 convolutions and a pooling."""

from typing import Any

from torch import nn

from tutelage.config import SmallVGGConfig
from tutelage.models.base import ImageClassifier, ImageSpec, check_image_size
from tutelage.models.layers import Mean, initialise_weights

CHANNELS = (32, 64, 128)
CONVOLUTIONS = 2  # of each block


class SmallVGG(ImageClassifier):
    """Blocks of 32, 64 and 128 channels with batch norm, then the mean over the feature maps.

    It has 288,170 parameters for grey images and 10 classes. ``width`` multiplies the channels of every layer.
    Arguments: ``SmallVGGConfig``.
    """

    def __init__(self, spec: ImageSpec, **arguments: Any) -> None:
        super().__init__(spec)
        config = SmallVGGConfig.from_arguments(arguments)
        check_image_size(spec, SmallVGGConfig)
        layers: list[nn.Module] = []
        inputs = spec.channels
        for channels in CHANNELS:
            outputs = max(1, round(config.width * channels))
            for _ in range(CONVOLUTIONS):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.backbone = nn.Sequential(*layers, Mean(), nn.Dropout(config.dropout))
        self.head = nn.Linear(inputs, len(spec.classes))
        initialise_weights(self)
