"""What stages cost, for the estimate of the time left."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tutelage.errors import UserError
from tutelage.models import ImageSpec, make_classifier

LOADING_FLOPS = 1.5e7  # what reading and augmenting an image weighs beside arithmetic, measured on small images
FORWARD_SHARE = 1 / 3  # of a training step: a backward costs two forwards


@dataclass(frozen=True)
class Size:
    """How large a network is: floating-point operations of an image's forward, and parameters."""

    flops: float
    parameters: int


def size_of(model: dict[str, Any], spec: ImageSpec) -> Size:
    """Return the size of a network, from one image's way through it on the meta device.

    Raises:
        UserError: the network cannot be built, or does not take images of this size.
    """
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network = make_classifier(model, spec).eval()
        try:
            network(torch.empty(1, spec.channels, spec.image_size, spec.image_size, dtype=torch.uint8))
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            name = model.get("name", model["_target_"])
            raise UserError(f"model {name} does not take data.image_size={spec.image_size}: {reason}") from None
    return Size(float(counter.get_total_flops()), sum(p.numel() for p in network.parameters()))


def flops_of(ask: Callable[[Tensor], Tensor], spec: ImageSpec) -> float:
    """Return the operations of asking networks that lie on the meta device about an image."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        ask(torch.empty(1, spec.channels, spec.image_size, spec.image_size, dtype=torch.uint8))
    return float(counter.get_total_flops())


def training(images: int, flops: float) -> float:
    """Return the work of training on ``images`` images."""
    return images * (flops / FORWARD_SHARE + LOADING_FLOPS)


def answering(images: int, flops: float) -> float:
    """Return the work of answering on ``images`` images."""
    return images * flops


def comparing(images: int, spec: ImageSpec) -> float:
    """Return the work of comparing one image with ``images`` others."""
    return 2.0 * images * spec.channels * spec.image_size**2
