"""CutMix (Yun et al. 2019) and MixUp (Zhang et al. 2018): a batch's images and labels mixed with their neighbours'.

What is mixed how is drawn on the CPU, by the key of the stream and the step; the pixels are mixed on the device where
the batch is. An image's partner is the next one of the batch, the last one's is the first: batches are shuffled.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tutelage.config import MixConfig
from tutelage.randomness import Key

BLEND_STEPS = 2**16  # shares are multiples of 1/65536: a blended pixel is exact in float32, the same on every device

Array = np.ndarray | Tensor


class Mixing(NamedTuple):
    """How a batch of B images is mixed: arrays as they were drawn, or tensors on their way to a device.

    Attributes:
        own: (B,) float32, what an image's own label weighs, exact for the pixels that are its own; 1 where not mixed.
        blend: (B,) float32, the share of an image's own pixels where they are blended (MixUp); 1 for none.
        boxes: (B, 4) int64, top, left, bottom and right (both exclusive) of what is pasted from the partner (CutMix);
            an empty box for none.
    """

    own: Array
    blend: Array
    boxes: Array

    def tensors(self) -> "Mixing":
        """Return the same as tensors on the CPU."""
        return Mixing(*map(torch.as_tensor, self))


def plan(config: MixConfig, key: Key, step: int, count: int, height: int, width: int) -> Mixing:
    """Return how the batch of an optimizer step is mixed.

    A function of its arguments alone: which process asks, and what it asked before, changes nothing.

    Args:
        config: which of the two, how often and how strong.
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
    share = generator.beta(alpha, alpha)
    boxes = _boxes(np.where(fires & cuts, share, 1.0), generator.random((draws, 2)), height, width)
    pasted = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    blend = np.where(fires & ~cuts, np.round(share * BLEND_STEPS) / BLEND_STEPS, 1.0)
    own = blend - pasted / (height * width)  # one of the two is not used: blend is 1 or nothing is pasted
    each = np.resize(np.arange(draws), count)  # one draw for all images, or one for each
    return Mixing(own[each].astype(np.float32), blend[each].astype(np.float32), boxes[each])


def _boxes(share: np.ndarray, centres: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return boxes (N, 4) int64 that leave about ``share`` (N,) of an image free, before they are clipped to it.

    Equation 2 of CutMix: sides of sqrt(1 - share) of the image's, around ``centres`` (N, 2), shares of its height and
    width; edges to the nearest pixel.
    """
    sides = np.array([height, width, height, width])
    half = np.sqrt(1 - share)[:, None] / 2
    edges = np.concatenate([centres - half, centres + half], axis=1) * sides
    boxes: np.ndarray = np.clip(np.floor(edges + 0.5), 0, sides).astype(np.int64)
    return boxes


def mixed(images: Tensor, targets: Tensor, mixing: Mixing, classes: int) -> tuple[Tensor, Tensor]:
    """Return a batch mixed as it was planned, on its device, without waiting for it.

    Args:
        images: (B, C, H, W) uint8; or (V * B, C, H, W), all first views, then all second ones: each view is mixed with
            the same view of the partner.
        targets: as many classes (int64) or rows of K probabilities (float32).
        mixing: of B images.
        classes: K.

    Returns:
        images of the same shape, type and memory format, pixels to the nearest whole; targets (V * B, K) float32.
    """
    count = len(mixing.own)
    views = len(images) // count
    own, blend, boxes = (torch.cat([torch.as_tensor(part, device=images.device)] * views) for part in mixing)
    top, left, bottom, right = boxes.T[:, :, None]
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    in_rows, in_columns = (top <= rows) & (rows < bottom), (left <= columns) & (columns < right)
    pasted = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    share = blend[:, None, None, None].where(~pasted, 0)
    pixels = _toward_partner(images.float(), _partners(images, count), share).round_().to(torch.uint8)
    if targets.ndim == 1:
        targets = targets[:, None] == torch.arange(classes, device=targets.device)
    weights = targets.to(torch.float32, copy=True)
    return pixels, _toward_partner(weights, _partners(weights, count), own[:, None])


def _partners(values: Tensor, count: int) -> Tensor:
    """Return what belongs to the next image of a batch of ``count``, within each view."""
    return torch.cat([part.roll(-1, 0) for part in torch.split(values, count)])


def _toward_partner(ours: Tensor, theirs: Tensor, share: Tensor) -> Tensor:
    """Return ``share`` of ours and the rest of theirs, in the memory of ours; exactly ours where both are the same."""
    return ours.sub_(theirs).mul_(share).add_(theirs)
