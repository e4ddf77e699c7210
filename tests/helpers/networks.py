"""Image specs for networks, and the number of their weights."""

from torch import nn

from tutelage.models import ImageSpec


def make_spec(channels: int = 1, size: int = 28, classes: int = 10) -> ImageSpec:
    """Return the spec of square images whose channels have mean 0.3 and standard deviation 0.2."""
    return ImageSpec(channels, size, tuple(map(str, range(classes))), (0.3,) * channels, (0.2,) * channels)


def count_parameters(network: nn.Module) -> int:
    """Return the number of a network's weights, frozen ones included."""
    return sum(p.numel() for p in network.parameters())
