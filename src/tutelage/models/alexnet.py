"""AlexNet (Krizhevsky et al. 2012)."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from tutelage.config import AlexNetConfig
from tutelage.models.base import ImageClassifier, ImageSpec, check_size
from tutelage.models.layers import Mean, initialise

GROUPS = 2  # the paper's two GPUs


class ResponseNorm(nn.Module):
    """Section 3.3: ``x / (k + alpha * squares of the n neighbouring channels) ** beta``.

    torch's ``LocalResponseNorm`` (alpha there is n times the paper's) has no deterministic backward on CUDA.
    """

    n, k, alpha, beta = 5, 2.0, 1e-4, 0.75

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised image (B, C, H, W)."""
        channels, reach = x.shape[1], self.n // 2
        padded = functional.pad(x.square(), (0, 0, 0, 0, reach, reach))
        squares = padded[:, :channels]
        for shift in range(1, self.n):
            squares = squares + padded[:, shift : shift + channels]
        return x / (self.k + self.alpha * squares) ** self.beta


class AlexNet(ImageClassifier):
    """The paper's layers in their two groups: 60,965,224 parameters for 1000 classes at 3x227x227.

    ``norm=batch`` normalises every convolution's batch in place of the two response norms, ``pool=average`` takes the
    mean over the last maps in place of all their pixels, and ``width`` multiplies the channels and hidden units.
    """

    def __init__(
        self,
        spec: ImageSpec,
        *,
        width: float = 1.0,
        norm: Literal["lrn", "batch", "none"] = "lrn",
        pool: Literal["flatten", "average"] = "flatten",
        dropout: float = 0.5,
    ) -> None:
        super().__init__(spec)
        check_size(spec, AlexNetConfig)
        c1, c2, c3, c4, c5 = (GROUPS * max(1, round(width * c / GROUPS)) for c in (96, 256, 384, 384, 256))
        hidden = max(1, round(width * 4096))
        side = (spec.image_size - 11) // 4 + 1
        for _ in range(3):
            side = (side - 3) // 2 + 1

        def rectified(convolution: nn.Conv2d, *, respond: bool = False) -> list[nn.Module]:
            layers: list[nn.Module] = [convolution]
            if norm == "batch":
                layers.append(nn.BatchNorm2d(convolution.out_channels))
            layers.append(nn.ReLU())
            if norm == "lrn" and respond:
                layers.append(ResponseNorm())
            return layers

        self.backbone = nn.Sequential(
            *rectified(nn.Conv2d(spec.channels, c1, 11, stride=4), respond=True),
            nn.MaxPool2d(3, stride=2),
            *rectified(nn.Conv2d(c1, c2, 5, padding=2, groups=GROUPS), respond=True),
            nn.MaxPool2d(3, stride=2),
            *rectified(nn.Conv2d(c2, c3, 3, padding=1)),
            *rectified(nn.Conv2d(c3, c4, 3, padding=1, groups=GROUPS)),
            *rectified(nn.Conv2d(c4, c5, 3, padding=1, groups=GROUPS)),
            nn.MaxPool2d(3, stride=2),
            Mean() if pool == "average" else nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(c5 if pool == "average" else c5 * side * side, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
        )
        self.head = nn.Linear(hidden, len(spec.classes))
        initialise(self)
