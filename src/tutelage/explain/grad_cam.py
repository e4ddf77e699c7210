"""Where a network looks: Grad-CAM (Selvaraju et al. 2017), computed by captum."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tutelage.explain.layers import MapLayer, find_last_map
from tutelage.models import ImageClassifier, NearestNeighbours


class _Maps(nn.Module):
    """Gives maps back as they are: a layer whose output captum finds as (B, C, H, W), whatever the network's is."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps."""
        return maps.clone()


def find_cam_layer(network: ImageClassifier) -> MapLayer | None:
    """Return the layer whose maps Grad-CAM weighs; None for a network without places, or without gradients."""
    return None if isinstance(network, NearestNeighbours) else find_last_map(network)


def compute_grad_cam(network: ImageClassifier, layer: MapLayer, images: Tensor, columns: Tensor) -> np.ndarray:
    """Return for images (B, C', S, S) how much each place speaks for a class, (B, S, S) from 0 to 1.

    Args:
        network: in eval mode.
        layer: whose maps are weighed.
        images: as the network sees them, uint8.
        columns: (B,) int64, the column of each image's class in the logits.
    """
    from captum.attr import LayerGradCam

    maps = _Maps()

    def pass_through(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return layer.from_maps(maps(layer.to_maps(output)), output)

    hook = network.get_submodule(layer.name).register_forward_hook(pass_through)
    pixels = images.to(network.device).float().requires_grad_()
    try:
        with torch.enable_grad():
            weigh = LayerGradCam(network.forward, maps).attribute
            cams = weigh(pixels, columns.to(network.device), relu_attributions=True)
    finally:
        hook.remove()
    cams = functional.interpolate(cams.detach().float(), tuple(images.shape[-2:]), mode="bilinear", align_corners=False)
    heat: np.ndarray = (cams / cams.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)).squeeze(1).cpu().numpy()
    return heat
