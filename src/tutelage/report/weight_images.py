"""Weights of all pixels as images: red where they raise a score, blue where they lower it."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from tutelage.models import ImageClassifier, Perceptron
from tutelage.report.templating import Tile, encode_image

NOTE = (
    "One picture a class: a bright pixel raises the class's score where its weight is red and lowers it where it is "
    "blue; where the page shines through, the pixel does not count. The score is the sum over all pixels, so each "
    "picture is the template that the class is compared with."
)
MAX_CLASSES = 100  # that have a picture
QUANTILE = 0.99  # of the absolute weights: sets the range of colours, so that single pixels do not fade the rest
RED, BLUE = (222, 74, 66), (46, 134, 222)  # seen on white and on black
OPAQUE = 255


def make_weight_tiles(network: ImageClassifier, columns: Sequence[int] | None = None) -> list[Tile]:
    """Return an image for each class of a perceptron, all of one range; of many for the first ones.

    Other networks have none.

    Args:
        network: a perceptron, or another.
        columns: of the classes in its logits; None for all.
    """
    if not isinstance(network, Perceptron) or not isinstance(network.head, nn.Linear):
        return []
    weights, spec = network.head.weight.detach().float().cpu().numpy(), network.spec
    chosen = (range(len(spec.classes)) if columns is None else columns)[:MAX_CLASSES]
    images = np.stack([to_image(weights[column], spec.image_size) for column in chosen])
    limit = find_limit(images)
    return [
        Tile(encode_weights(image, limit), [spec.classes[column]], is_small=True)
        for column, image in zip(chosen, images, strict=True)
    ]


def to_image(row: np.ndarray, size: int) -> np.ndarray:
    """Return the weights (C * S * S,) of all pixels as an image (S, S), the mean over the channels."""
    image: np.ndarray = row.reshape(-1, size, size).mean(axis=0)
    return image


def find_limit(weights: np.ndarray) -> float:
    """Return the absolute weight, of weights of any shape, from which on colours are full."""
    return float(np.quantile(np.abs(weights), QUANTILE)) or 1.0


def encode_weights(weights: np.ndarray, limit: float) -> str:
    """Return weights (H, W) as an image: red raises, blue lowers, and the page shines through where they are zero.

    The colour is full from the absolute weight ``limit`` on.
    """
    pixels = np.empty((*weights.shape, 4), np.uint8)
    pixels[..., :3] = np.where(weights[..., None] > 0, RED, BLUE)
    pixels[..., 3] = np.round(OPAQUE * np.clip(np.abs(weights) / limit, 0, 1))
    return encode_image(pixels)
