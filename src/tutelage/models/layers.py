"""Layers and initial weights that several architectures share."""

from torch import Tensor, nn


class Mean(nn.Module):
    """The mean over the image, (B, C, H, W) to (B, C); unlike adaptive pooling, deterministic on CUDA too."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over height and width."""
        return x.mean(dim=(2, 3))


def initialise(network: nn.Module) -> None:
    """Draw weights as in He et al. 2015: normal, of variance 2 / fan-in; biases 0, norms 1.

    With torch's default (variance 1 / (3 fan-in)) a rectified layer passes on a sixth of its input's variance, so that
    deep plain networks do not start to learn.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
