"""The labelled training images that look most like others to a network: nearest by its features."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tutelage.data import ImageDataModule
from tutelage.models import ImageClassifier, evaluation_batch
from tutelage.models.nearest_neighbours import comparable_features, find_nearest

MAX_COMPARED = 2000  # labelled images
MAX_SECONDS = 10.0  # of computing features; what is not done by then is not compared
NEIGHBOURS = 3
BATCH = 32  # images, after which the time is looked at


@dataclass(frozen=True)
class Neighbours:
    """The nearest labelled images of some images.

    Attributes:
        indices: (N, K) of the labelled images in the source, nearest first.
        compared: how many labelled images were compared.
        labelled: how many there are.
    """

    indices: np.ndarray
    compared: int
    labelled: int

    def describe(self) -> str:
        """Return a sentence on what is shown."""
        sample = (
            f", among {self.compared:,} of {self.labelled:,} labelled ones" if self.compared < self.labelled else ""
        )
        return f"Below each image are the training images that look most like it to the network{sample}."


@torch.inference_mode()
def find_neighbours(
    network: ImageClassifier,
    data: ImageDataModule,
    indices: Sequence[int],
    device: torch.device,
    max_seconds: float = MAX_SECONDS,
) -> Neighbours | None:
    """Return the nearest labelled images of images by the cosine of features, or by what nearest neighbours compare.

    None where ``max_seconds`` do not suffice for a first batch of labelled images.

    Args:
        network: whose features are compared.
        data: with all images, of the size that the network sees.
        indices: of the images.
        device: where to compute.
        max_seconds: after which no further batch of labelled images is begun.
    """
    network.eval().to(device)
    start, size, labelled = time.monotonic(), min(BATCH, evaluation_batch(network)), data.splits.labelled
    chosen = labelled[np.random.default_rng(0).permutation(len(labelled))[:MAX_COMPARED]]
    queries = _compute_features(network, data, np.array(indices), device)
    parts: list[Tensor] = []
    for first in range(0, len(chosen), size):
        if time.monotonic() - start > max_seconds:
            break
        parts.append(_compute_features(network, data, chosen[first : first + size], device))
    if not parts:
        return None
    bank = torch.cat(parts)
    nearest = find_nearest(queries, bank.numpy(), NEIGHBOURS).numpy()
    return Neighbours(chosen[nearest], len(bank), len(labelled))


def _compute_features(
    network: ImageClassifier, data: ImageDataModule, indices: np.ndarray, device: torch.device
) -> Tensor:
    """Return what the network compares of images (B, D), on the CPU."""
    images = np.stack([data.images[index] for index in indices.tolist()]).transpose(0, 3, 1, 2)
    features = network.features(torch.from_numpy(np.ascontiguousarray(images)).to(device)).cpu()
    return comparable_features(network, features)
