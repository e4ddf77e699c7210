"""The size of a network: operations and parameters, counted on the meta device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tutelage.errors import UserError
from tutelage.models import ImageSpec, make_classifier


@dataclass(frozen=True)
class NetworkSize:
    """The size of a network: floating-point operations of an image's forward, and parameters."""

    flops: float
    parameters: int


def measure_network(model: dict[str, Any], spec: ImageSpec) -> NetworkSize:
    """Return the size of a network, from the forward of one image on the meta device.

    Raises:
        UserError: the network cannot be built, or does not take images of this size.
    """
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network = make_classifier(model, spec).eval()
        try:
            logits = network(_one_image(spec))
        except (RuntimeError, AssertionError, AttributeError, ValueError, TypeError, LookupError) as error:
            reason = " ".join(str(error).split())[:200]
            name = model.get("name", model["_target_"])
            raise UserError(f"model {name} does not take data.image_size={spec.image_size}: {reason}") from None
    if logits.shape != (1, len(spec.classes)):
        raise UserError(
            f"model {model.get('name', model['_target_'])} gives {tuple(logits.shape)} for one image; logits are "
            f"(1, {len(spec.classes)}), one for each class in spec.classes"
        )
    return NetworkSize(float(counter.get_total_flops()), sum(p.numel() for p in network.parameters()))


def _one_image(spec: ImageSpec) -> Tensor:
    return torch.empty(1, spec.channels, spec.image_size, spec.image_size, dtype=torch.uint8)


def count_flops(forward: Callable[[Tensor], Tensor], spec: ImageSpec) -> float:
    """Return the operations of a forward of one image, through networks on the meta device."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        forward(_one_image(spec))
    return float(counter.get_total_flops())
