"""CutMix (Yun et al. 2019) and MixUp (Zhang et al. 2018): each image of a batch, and its label, mixed with the next.

This replaces torchvision.transforms.v2.CutMix and MixUp, which draw from the global generator of one process: here
boxes and weights are drawn once per global batch, on the CPU, by the key of the stream and the step, so that they are
the same on any number of devices and after a resume. The pixels are mixed on the device that holds the batch. An
image's partner is the next one of the batch, and the last one's is the first; batches are shuffled.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tutelage.config import MixConfig
from tutelage.randomness import Key

BLEND_STEPS = 2**16  # weights are multiples of 1/65536: a blended pixel is exact in float32, the same on every device

Array = np.ndarray | Tensor


class Mixing(NamedTuple):
    """How a batch of B images is mixed: numpy arrays as they are drawn, or tensors.

    Attributes:
        label_weights: (B,) float32, the weight of each image's own label, which equals the share of the pixels that are
            its own; 1 where nothing is mixed. The partner's label has the rest.
        pixel_weights: (B,) float32, the weight of an image's own pixels where they are blended (MixUp); 1 for none.
        boxes: (B, 4) int64, top, left, bottom and right (both exclusive) of the part pasted from the partner (CutMix);
            an empty box for none.
    """

    label_weights: Array
    pixel_weights: Array
    boxes: Array

    def tensors(self) -> "Mixing":
        """Return the same values as tensors on the CPU."""
        return Mixing(*map(torch.as_tensor, self))


def draw_mixing(config: MixConfig, key: Key, step: int, count: int, height: int, width: int) -> Mixing:
    """Draw the boxes and weights for mixing the batch of an optimizer step.

    The result depends on the arguments alone, not on the process or on earlier draws.

    Args:
        config: which of the two methods, how often and how strong.
        key: the key of the batch's stream.
        step: the optimizer step, from 0.
        count: images of the batch, on all devices together.
        height: of the images, in pixels.
        width: of the images, in pixels.
    """
    generator = key.generator("mix", index=step)
    draws = 1 if config.per == "batch" else count
    fires = generator.random(draws) < config.probability
    cuts = generator.random(draws) < (config.switch if config.cutmix and config.mixup else float(config.cutmix > 0))
    alpha = np.where(cuts, config.cutmix, config.mixup)
    weights = generator.beta(alpha, alpha)
    boxes = _place_boxes(np.where(fires & cuts, weights, 1.0), generator.random((draws, 2)), height, width)
    pasted = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    pixel_weights = np.where(fires & ~cuts, np.round(weights * BLEND_STEPS) / BLEND_STEPS, 1.0)
    label_weights = pixel_weights - pasted / (height * width)  # either the pixel weight is 1 or nothing is pasted
    draw_of_image = np.resize(np.arange(draws), count)  # one draw for all images, or one for each
    return Mixing(
        label_weights[draw_of_image].astype(np.float32),
        pixel_weights[draw_of_image].astype(np.float32),
        boxes[draw_of_image],
    )


def _place_boxes(share: np.ndarray, centres: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return boxes (N, 4) int64 that leave about ``share`` (N,) of an image free, before they are clipped to it.

    Equation 2 of CutMix: sides of sqrt(1 - share) of the image's, around ``centres`` (N, 2), shares of its height and
    width; edges to the nearest pixel.
    """
    sides = np.array([height, width, height, width])
    half = np.sqrt(1 - share)[:, None] / 2
    edges = np.concatenate([centres - half, centres + half], axis=1) * sides
    boxes: np.ndarray = np.clip(np.floor(edges + 0.5), 0, sides).astype(np.int64)
    return boxes


def mix_batch(images: Tensor, targets: Tensor, mixing: Mixing, classes: int) -> tuple[Tensor, Tensor]:
    """Return a mixed batch, computed on its device without synchronizing with it.

    Args:
        images: (B, C, H, W) uint8; or (V * B, C, H, W), all first views, then all second ones: each view is mixed with
            the same view of the partner.
        targets: as many class indices (int64) or rows of K probabilities (float32).
        mixing: boxes and weights for B images.
        classes: K.

    Returns:
        images of the same shape, type and memory format, pixels rounded to whole values; targets (V * B, K) float32.
    """
    count = len(mixing.boxes)
    views = len(images) // count
    label_weights, pixel_weights, boxes = (
        torch.cat([torch.as_tensor(part, device=images.device)] * views) for part in mixing
    )
    top, left, bottom, right = boxes.T[:, :, None]
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    in_rows, in_columns = (top <= rows) & (rows < bottom), (left <= columns) & (columns < right)
    pasted = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    weights = pixel_weights[:, None, None, None].where(~pasted, 0)
    pixels = _blend_in_place(images.float(), _roll_to_partners(images, count), weights).round_().to(torch.uint8)
    if targets.ndim == 1:
        targets = targets[:, None] == torch.arange(classes, device=targets.device)
    probabilities = targets.to(torch.float32, copy=True)
    return pixels, _blend_in_place(probabilities, _roll_to_partners(probabilities, count), label_weights[:, None])


def _roll_to_partners(values: Tensor, count: int) -> Tensor:
    """Return for each image the values of the next one in its batch of ``count``, within each view."""
    return torch.cat([part.roll(-1, 0) for part in torch.split(values, count)])


def _blend_in_place(values: Tensor, partners: Tensor, weights: Tensor) -> Tensor:
    """Return ``weights`` of values and the rest of partners, in the memory of values; exact where both are equal."""
    return values.sub_(partners).mul_(weights).add_(partners)
