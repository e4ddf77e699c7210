"""AlexNet (Krizhevsky et al. 2012)."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from tutelage.config import AlexNetConfig
from tutelage.models.base import ImageClassifier, ImageSpec, check_image_size
from tutelage.models.layers import Mean, initialise_weights

GROUPS = 2  # the paper's two GPUs
CHANNELS = (96, 256, 384, 384, 256)
HIDDEN = 4096


class ResponseNorm(nn.Module):
    """Response normalisation (section 3.3): ``x / (k + alpha * squares of the n neighbouring channels) ** beta``.

    torch's ``LocalResponseNorm`` (alpha there is n times the paper's) has no deterministic backward on CUDA.
    """

    n, k, alpha, beta = 5, 2.0, 1e-4, 0.75

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised image (B, C, H, W)."""
        channels, radius = x.shape[1], self.n // 2
        padded = functional.pad(x.square(), (0, 0, 0, 0, radius, radius))
        squares = padded[:, :channels]
        for shift in range(1, self.n):
            squares = squares + padded[:, shift : shift + channels]
        return x / (self.k + self.alpha * squares) ** self.beta


class AlexNet(ImageClassifier):
    """AlexNet with the paper's layers in two groups: 60,965,224 parameters for 1000 classes at 3x227x227.

    ``norm=batch`` puts a batch norm behind every convolution in place of the two response norms, ``pool=average`` takes
    the mean over the last feature maps in place of all their pixels, and ``width`` multiplies the channels and hidden
    units. Arguments: ``AlexNetConfig``.
    """

    def __init__(self, spec: ImageSpec, **arguments: Any) -> None:
        super().__init__(spec)
        config = AlexNetConfig.from_arguments(arguments)
        check_image_size(spec, AlexNetConfig)
        c1, c2, c3, c4, c5 = (GROUPS * max(1, round(config.width * c / GROUPS)) for c in CHANNELS)
        hidden = max(1, round(config.width * HIDDEN))
        side = (spec.image_size - 11) // 4 + 1
        for _ in range(3):
            side = (side - 3) // 2 + 1

        def activate(convolution: nn.Conv2d, *, response_norm: bool = False) -> list[nn.Module]:
            layers: list[nn.Module] = [convolution]
            if config.norm == "batch":
                layers.append(nn.BatchNorm2d(convolution.out_channels))
            layers.append(nn.ReLU())
            if config.norm == "lrn" and response_norm:
                layers.append(ResponseNorm())
            return layers

        self.backbone = nn.Sequential(
            *activate(nn.Conv2d(spec.channels, c1, 11, stride=4), response_norm=True),
            nn.MaxPool2d(3, stride=2),
            *activate(nn.Conv2d(c1, c2, 5, padding=2, groups=GROUPS), response_norm=True),
            nn.MaxPool2d(3, stride=2),
            *activate(nn.Conv2d(c2, c3, 3, padding=1)),
            *activate(nn.Conv2d(c3, c4, 3, padding=1, groups=GROUPS)),
            *activate(nn.Conv2d(c4, c5, 3, padding=1, groups=GROUPS)),
            nn.MaxPool2d(3, stride=2),
            Mean() if config.pool == "average" else nn.Flatten(),
            nn.Dropout(config.dropout),
            nn.Linear(c5 if config.pool == "average" else c5 * side * side, hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
        )
        self.head = nn.Linear(hidden, len(spec.classes))
        initialise_weights(self)
