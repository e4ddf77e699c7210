"""Fully connected layers."""

from torch import nn

from tutelage.models.base import ImageClassifier, ImageSpec


class MLP(ImageClassifier):
    """``depth`` hidden layers of ``width`` rectified units on all pixels."""

    def __init__(self, spec: ImageSpec, *, width: int = 800, depth: int = 2, dropout: float = 0.0) -> None:
        super().__init__(spec)
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = spec.channels * spec.image_size**2
        for _ in range(depth):
            layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
            inputs = width
        self.backbone = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, len(spec.classes))
