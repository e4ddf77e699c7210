"""VGG's idea for small images: blocks of two 3x3 convolutions and a pooling, here three of them."""

from torch import nn

from tutelage.config import SmallVGGConfig
from tutelage.models.base import ImageClassifier, ImageSpec, check_size
from tutelage.models.layers import Mean, initialise

CHANNELS = (32, 64, 128)
CONVOLUTIONS = 2  # of each block


class SmallVGG(ImageClassifier):
    """32, 64 and 128 channels with batch norm, then the mean over the maps: 288,170 weights (grey, 10 classes).

    ``width`` multiplies the channels of every layer.
    """

    def __init__(self, spec: ImageSpec, *, width: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__(spec)
        check_size(spec, SmallVGGConfig)
        layers: list[nn.Module] = []
        inputs = spec.channels
        for channels in CHANNELS:
            outputs = max(1, round(width * channels))
            for _ in range(CONVOLUTIONS):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.backbone = nn.Sequential(*layers, Mean(), nn.Dropout(dropout))
        self.head = nn.Linear(inputs, len(spec.classes))
        initialise(self)
