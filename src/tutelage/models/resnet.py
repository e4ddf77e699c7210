"""Residual networks for small images (He et al. 2016, section 4.2), with stochastic depth (Huang et al. 2016)."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from tutelage.config import ResNetConfig
from tutelage.models.base import ImageClassifier, ImageSpec
from tutelage.models.layers import Mean

STAGES = 3


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut; for each image the branch is dropped with probability ``drop``."""

    def __init__(self, inputs: int, outputs: int, stride: int, drop: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.drop = StochasticDepth(drop, mode="row")
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(shortcut + branch)."""
        return functional.relu(self.shortcut(x) + self.drop(self.branch(x)))


class ResNet(ImageClassifier):
    """A residual network: a 3x3 stem, then three stages of ``depth`` blocks.

    The stages have ``width``, 2 ``width`` and 4 ``width`` channels; ``width=16, depth=3`` is the paper's ResNet-20
    (with projection shortcuts). Stochastic depth grows linearly from 0 at the first block to ``stochastic_depth`` at
    the last. Arguments: ``ResNetConfig``.
    """

    def __init__(self, spec: ImageSpec, **arguments: Any) -> None:
        super().__init__(spec)
        config = ResNetConfig.from_arguments(arguments)
        layers: list[nn.Module] = [
            nn.Conv2d(spec.channels, config.width, 3, padding=1, bias=False),
            nn.BatchNorm2d(config.width),
            nn.ReLU(),
        ]
        inputs, blocks = config.width, STAGES * config.depth
        for block in range(blocks):
            stage, first = divmod(block, config.depth)
            outputs = config.width * 2**stage
            drop = config.stochastic_depth * block / max(1, blocks - 1)
            layers.append(Block(inputs, outputs, stride=2 if stage and not first else 1, drop=drop))
            inputs = outputs
        self.backbone = nn.Sequential(*layers, Mean(), nn.Dropout(config.dropout))
        self.head = nn.Linear(inputs, len(spec.classes))
