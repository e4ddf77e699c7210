"""Layers and initial weights that several architectures use."""

from torch import Tensor, nn


class Mean(nn.Module):
    """Global average pooling, (B, C, H, W) to (B, C); torch's adaptive pooling is not deterministic on CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over height and width."""
        return x.mean(dim=(2, 3))


def initialise_weights(network: nn.Module) -> None:
    """Draw weights as in He et al. 2015: normal, of variance 2 / fan-in; biases are 0, norms' scales 1.

    With torch's default (variance 1 / (3 fan-in)) the output of a layer with ReLU has a sixth of its input's variance,
    so that deep networks without norms do not start to learn.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
