"""The weights of a perceptron as images."""

import numpy as np
from torch import nn

from tutelage.models import ImageClassifier, Perceptron
from tutelage.report.templating import Tile, encode_image

NOTE = (
    "The perceptron's weights as images, one per class. Bright pixels raise the class's score where the weight is red "
    "and lower it where it is blue; white is zero."
)
QUANTILE = 0.99  # of the absolute weights: sets the colour range, so that single pixels do not fade the rest
RED, BLUE = np.array([178, 24, 43]), np.array([33, 102, 172])  # ColorBrewer's RdBu


def make_weight_tiles(network: ImageClassifier) -> list[Tile]:
    """Return an image for each class of a perceptron; none for other networks."""
    if not isinstance(network, Perceptron) or not isinstance(network.head, nn.Linear):
        return []
    spec = network.spec
    weights = network.head.weight.detach().reshape(-1, spec.channels, spec.image_size, spec.image_size).mean(dim=1)
    return [
        Tile(encode_image(image), [name], is_small=True)
        for image, name in zip(color_weights(weights.numpy()), spec.classes, strict=True)
    ]


def color_weights(weights: np.ndarray) -> np.ndarray:
    """Return weights (C, H, W) as colours (C, H, W, 3) uint8: from blue over white, which is zero, to red."""
    limit = float(np.quantile(np.abs(weights), QUANTILE)) or 1.0
    strength = np.clip(np.abs(weights) / limit, 0, 1)[..., None]
    colour = np.where(weights[..., None] > 0, RED, BLUE)
    pixels: np.ndarray = np.round(255 + strength * (colour - 255)).astype(np.uint8)
    return pixels
