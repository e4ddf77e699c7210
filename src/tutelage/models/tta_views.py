"""Test-time views: a network is asked about an image in several ways, and its probabilities are averaged."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

STEPS = 14  # a shift is this part of the side: 16 of 224 pixels, as from 256 to 224 in Krizhevsky 2012, section 4.1
CORNERS = ((-1, -1), (-1, 1), (1, -1), (1, 1))


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Return images (B, C, H, W) moved by some pixels; those at the edge are repeated."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device).sub(down).clamp(0, height - 1)
    columns = torch.arange(width, device=images.device).sub(right).clamp(0, width - 1)
    return images[:, :, rows][:, :, :, columns]


def _one(images: Tensor) -> Iterator[Tensor]:
    yield images


def _mirrored(images: Tensor) -> Iterator[Tensor]:
    yield images
    yield images.flip(-1)


def _shifted(images: Tensor) -> Iterator[Tensor]:
    by = max(1, images.shape[-1] // STEPS)
    yield images
    for down, right in CORNERS:
        yield shifted(images, down * by, right * by)


def _mirrored_shifted(images: Tensor) -> Iterator[Tensor]:
    for view in _shifted(images):
        yield from _mirrored(view)


# The ten of mirrored_shifted are after Krizhevsky 2012, section 4.1: corners, centre and their mirror images; his are
# crops of a larger image, these repeat the edge.
TTA_VIEWS: Mapping[str, Callable[[Tensor], Iterator[Tensor]]] = {
    "one": _one,
    "mirrored": _mirrored,
    "shifted": _shifted,
    "mirrored_shifted": _mirrored_shifted,
}
VIEW_COUNTS = {"one": 1, "mirrored": 2, "shifted": 5, "mirrored_shifted": 10}


def tta_probabilities(network: Callable[[Tensor], Tensor], images: Tensor, views: str) -> Tensor:
    """Return probabilities (B, C) float32 of images (B, C, H, W) uint8: the mean over views of each.

    Args:
        network: returns logits (B, C).
        images: as they are stored.
        views: one, mirrored, shifted or mirrored_shifted.
    """
    found = [network(view).float().softmax(dim=1) for view in TTA_VIEWS[views](images)]
    return found[0] if len(found) == 1 else torch.stack(found).mean(dim=0)
