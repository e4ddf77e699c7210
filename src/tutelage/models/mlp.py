"""Fully connected layers."""

from typing import Any

from torch import nn

from tutelage.config import MLPConfig
from tutelage.models.base import ImageClassifier, ImageSpec


class MLP(ImageClassifier):
    """``depth`` hidden layers of ``width`` units with ReLU on all pixels. Arguments: ``MLPConfig``."""

    def __init__(self, spec: ImageSpec, **arguments: Any) -> None:
        super().__init__(spec)
        config = MLPConfig.from_arguments(arguments)
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = spec.channels * spec.image_size**2
        for _ in range(config.depth):
            layers += [nn.Linear(inputs, config.width), nn.ReLU(), nn.Dropout(config.dropout)]
            inputs = config.width
        self.backbone = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, len(spec.classes))
