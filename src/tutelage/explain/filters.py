"""The weights that see the pixels: of a perceptron's classes, of the first filters or units of other networks."""

import numpy as np
from torch import nn

from tutelage.explain.heat import encode_filter
from tutelage.explain.section import Section, Strip
from tutelage.explain.subject import Subject
from tutelage.models import ImageClassifier
from tutelage.report.templating import Tile
from tutelage.report.weight_images import NOTE, encode_weights, find_limit, make_weight_tiles, to_image

MAX_FILTERS, MAX_UNITS = 64, 24
FLAT = 2  # dimensions of the weights of a linear layer; a convolution has more


def show_weights(subject: Subject) -> list[Section]:
    """Return the section on the first weights; none for a network that has none of its own."""
    layer, network = find_first_layer(subject.network), subject.network
    if layer is None:
        return []
    if templates := make_weight_tiles(network, subject.columns):
        return [Section("Weight templates", NOTE, [Strip("", templates, are_large=True)])]
    weights = layer.weight.detach().float().cpu().numpy()
    norms = np.linalg.norm(weights.reshape(len(weights), -1), axis=1)
    if weights.ndim == FLAT:
        largest = np.argsort(-norms, kind="stable")[:MAX_UNITS]
        images = [to_image(weights[unit], network.spec.image_size) for unit in largest]
        tiles = [Tile(encode_weights(image, find_limit(image)), [], is_small=True) for image in images]
        reading = (
            f"The {len(tiles)} units of the first layer with the largest weights: bright pixels excite a unit where it "
            "is red and silence it where it is blue. Strokes and blobs mean that it has found shapes; noise alone "
            "means that it has learned little yet."
        )
        return [Section("First units", reading, [Strip("", tiles)])]
    filters = weights[np.argsort(-norms, kind="stable")[:MAX_FILTERS]].transpose(0, 2, 3, 1)
    tiles = [Tile(encode_filter(each), [], is_small=True) for each in filters]
    kernel, stride = weights.shape[2:], layer.stride
    kind = "patch embedding" if stride == kernel and kernel[0] > 1 else "first convolution"
    shown = f"{len(tiles)} of {len(weights)}" if len(tiles) < len(weights) else f"All {len(weights)}"
    reading = (
        f"{shown} filters of the {kind}, {kernel[0]} x {kernel[1]} pixels each, those with the largest weights "
        "first; each is stretched to its own range, and the middle of the range is zero. Edges, spots and colours are "
        "what a filter looks for; noise alone means that it has learned little yet."
    )
    return [Section("First filters", reading, [Strip("", tiles)])]


def find_first_layer(network: ImageClassifier) -> nn.Conv2d | nn.Linear | None:
    """Return the layer that sees the pixels themselves; None where no layer with weights does."""
    spec = network.spec
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            return module if module.weight.shape[1] == spec.channels else None
        if isinstance(module, nn.Linear):
            return module if module.in_features == spec.channels * spec.image_size**2 else None
    return None
