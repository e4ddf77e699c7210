"""Test-time augmentation: the probabilities of several views of an image are averaged.

Beside torchvision's ``ten_crop``: its crops are smaller than the image, while these views have the image's own size.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

SHIFT_DIVISOR = 14  # the side by the shift: 16 of 224 pixels, as from 256 to 224 in Krizhevsky 2012, section 4.1
CORNERS = ((-1, -1), (-1, 1), (1, -1), (1, 1))


def shift_images(images: Tensor, down: int, right: int) -> Tensor:
    """Return images (B, C, H, W) shifted by some pixels; the pixels of the edge are repeated."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device).sub(down).clamp(0, height - 1)
    columns = torch.arange(width, device=images.device).sub(right).clamp(0, width - 1)
    return images[:, :, rows][:, :, :, columns]


def _view_once(images: Tensor) -> Iterator[Tensor]:
    yield images


def _view_mirrored(images: Tensor) -> Iterator[Tensor]:
    yield images
    yield images.flip(-1)


def _view_shifted(images: Tensor) -> Iterator[Tensor]:
    pixels = max(1, images.shape[-1] // SHIFT_DIVISOR)
    yield images
    for down, right in CORNERS:
        yield shift_images(images, down * pixels, right * pixels)


def _view_mirrored_shifted(images: Tensor) -> Iterator[Tensor]:
    for view in _view_shifted(images):
        yield from _view_mirrored(view)


# The ten views of mirrored_shifted follow Krizhevsky 2012, section 4.1: four corners, the centre and their mirror
# images; there they are crops of a larger image, here the edge is repeated.
TTA_VIEWS: Mapping[str, Callable[[Tensor], Iterator[Tensor]]] = {
    "one": _view_once,
    "mirrored": _view_mirrored,
    "shifted": _view_shifted,
    "mirrored_shifted": _view_mirrored_shifted,
}
VIEW_COUNTS = {"one": 1, "mirrored": 2, "shifted": 5, "mirrored_shifted": 10}


def tta_probabilities(network: Callable[[Tensor], Tensor], images: Tensor, views: str) -> Tensor:
    """Return probabilities (B, C) float32 of images (B, C, H, W) uint8: the mean over the views of each image.

    Args:
        network: returns logits (B, C).
        images: as they are stored.
        views: one, mirrored, shifted or mirrored_shifted.
    """
    probabilities = [network(view).float().softmax(dim=1) for view in TTA_VIEWS[views](images)]
    return probabilities[0] if len(probabilities) == 1 else torch.stack(probabilities).mean(dim=0)
