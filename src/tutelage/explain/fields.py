"""The part of the image that the central unit of a layer sees: computed from the operations, measured by gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from tutelage.explain.layers import MapLayer, recorded_outputs
from tutelage.explain.receptive_field_tracker import ReceptiveFieldTracker
from tutelage.explain.summary import forward_on_meta, make_meta_image
from tutelage.models import ImageClassifier, make_classifier
from tutelage.models.base import PIXEL_MAX

SEED = 0  # of the random images and of the sum over channels


@dataclass(frozen=True)
class Box:
    """Rows and columns of an image, the last ones included; they may lie outside it, where a layer has padding."""

    top: int
    bottom: int
    left: int
    right: int

    @classmethod
    def around(cls, marked: np.ndarray) -> Self | None:
        """Return the smallest box around what is marked in (H, W); None where nothing is."""
        rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
        return cls(int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])) if len(rows) else None

    @property
    def side(self) -> int:
        """The longer of its sides in pixels."""
        return max(self.bottom - self.top, self.right - self.left) + 1

    def clip(self, size: int) -> Self:
        """Return the part within an image of ``size`` pixels a side."""
        return type(self)(max(0, self.top), min(size - 1, self.bottom), max(0, self.left), min(size - 1, self.right))


def compute_boxes(network: ImageClassifier, layers: Sequence[MapLayer]) -> dict[str, Box]:
    """Return what the central unit of each layer sees, by the layer's name; it may lie partly outside the image."""
    with torch.device("meta"):
        meta_network = make_classifier(network.model_config, network.spec)
    image, boxes, size = make_meta_image(meta_network), dict[str, Box](), network.spec.image_size
    tracker = ReceptiveFieldTracker(image)

    def note(layer: MapLayer, output: Tensor) -> None:
        extent = tracker.get_field(output).extent
        if extent is None:
            boxes[layer.name] = Box(0, size - 1, 0, size - 1)
            return
        top, bottom, left, right = (int(_find_centre(layer, bound).max()) for bound in extent)
        boxes[layer.name] = Box(-top, bottom, -left, right)

    hooks = [
        meta_network.get_submodule(layer.name).register_forward_hook(lambda _, __, out, layer=layer: note(layer, out))
        for layer in layers
    ]
    try:
        forward_on_meta(meta_network, image, tracker)
    finally:
        for hook in hooks:
            hook.remove()
    return boxes


def measure_influence(network: ImageClassifier, layers: Sequence[MapLayer], images: int) -> dict[str, np.ndarray]:
    """Return how much each pixel (S, S) moves the central unit of each layer, by the layer's name.

    It is the absolute gradient, in eval mode, of a random sum over the unit's channels, added over random images.
    """
    spec, device = network.spec, network.device
    generator = torch.Generator().manual_seed(SEED)
    shape = (images, spec.channels, spec.image_size, spec.image_size)
    pixels = (torch.rand(shape, generator=generator) * PIXEL_MAX).to(device).requires_grad_()
    with recorded_outputs(network, [layer.name for layer in layers]) as outputs, torch.enable_grad():
        network.eval().features(pixels)
    influence = {}
    for layer in layers:
        units = _find_centre(layer, outputs[layer.name])
        signs = torch.randn(units.shape, generator=generator).to(device)
        (gradient,) = torch.autograd.grad((units * signs).sum(), pixels, retain_graph=True)
        influence[layer.name] = gradient.abs().sum(dim=(0, 1)).cpu().numpy()
    return influence


def _find_centre(layer: MapLayer, output: Tensor) -> Tensor:
    """Return the values (B, C) of the central unit."""
    middle = layer.side // 2
    return layer.to_maps(output)[:, :, middle, middle]
