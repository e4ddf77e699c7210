"""LeNet-5 (LeCun et al. 1998)."""

from typing import Any

from torch import nn

from tutelage.config import LeNet5Config
from tutelage.models.base import ImageClassifier, ImageSpec, check_image_size

KERNEL = 5
PAPER_SIZE = 32  # the paper pads MNIST's 28 pixels to 32


class LeNet5(ImageClassifier):
    """LeNet-5 with the paper's layer sizes, ReLUs and max pooling: 61,706 parameters for 10 classes at 1x32x32.

    ``width`` multiplies the channels of every layer; images of 28 pixels are padded to 32 as in the paper. Arguments:
    ``LeNet5Config``.
    """

    def __init__(self, spec: ImageSpec, **arguments: Any) -> None:
        super().__init__(spec)
        config = LeNet5Config.from_arguments(arguments)
        check_image_size(spec, LeNet5Config)
        padding = 2 if spec.image_size < PAPER_SIZE else 0
        size = spec.image_size + 2 * padding
        c1, c3, c5, f6 = (max(1, round(config.width * channels)) for channels in (6, 16, 120, 84))
        side = ((size - KERNEL + 1) // 2 - KERNEL + 1) // 2
        self.backbone = nn.Sequential(
            nn.Conv2d(spec.channels, c1, KERNEL, padding=padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(c1, c3, KERNEL),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(config.dropout),
            nn.Linear(c3 * side * side, c5),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(c5, f6),
            nn.ReLU(),
        )
        self.head = nn.Linear(f6, len(spec.classes))
