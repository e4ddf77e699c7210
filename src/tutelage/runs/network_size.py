"""The size of a network: operations, parameters and what a forward computes, counted on the meta device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tutelage.errors import UserError, quote_error
from tutelage.models import ImageSpec, make_classifier


@dataclass(frozen=True)
class ForwardSize:
    """What the forward of one image computes.

    Attributes:
        flops: floating-point operations; a multiply-add is two.
        elements: elements of all tensors that are computed on the way, which memory has to take.
        operators: calls of torch's operators, each of which costs time of its own.
    """

    flops: float
    elements: int
    operators: int


@dataclass(frozen=True)
class NetworkSize:
    """The size of a network: what a forward computes, and its parameters, of which some are the head's."""

    forward: ForwardSize
    parameters: int
    head_parameters: int


class _OutputCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that are called, and the elements of what they return."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators = 0
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call an operator and count it."""
        output = func(*args, **(kwargs or {}))
        self.operators += 1
        outputs = output if isinstance(output, tuple | list) else (output,)
        self.elements += sum(each.numel() for each in outputs if isinstance(each, Tensor))
        return output


def measure_network(model: dict[str, Any], spec: ImageSpec) -> NetworkSize:
    """Return the size of a network, from the forward of one image on the meta device.

    Raises:
        UserError: the network cannot be built, or does not take images of this size.
    """
    with torch.device("meta"), torch.inference_mode():
        network = make_classifier(model, spec).eval()
        try:
            logits, forward = _run_forward(network, spec)
        except (RuntimeError, AssertionError, AttributeError, ValueError, TypeError, LookupError) as error:
            reason = quote_error(error)
            name = model.get("name", model["_target_"])
            raise UserError(f"model {name} does not take data.image_size={spec.image_size}: {reason}") from None
    if logits.shape != (1, len(spec.classes)):
        raise UserError(
            f"model {model.get('name', model['_target_'])} gives {tuple(logits.shape)} for one image; logits are "
            f"(1, {len(spec.classes)}), one for each class in spec.classes"
        )
    return NetworkSize(forward, _count_parameters(network), _count_parameters(network.head))


def measure_forward(forward: Callable[[Tensor], Tensor], spec: ImageSpec) -> ForwardSize:
    """Return what the forward of one image computes, through networks on the meta device."""
    with torch.device("meta"):
        return _run_forward(forward, spec)[1]


def _run_forward(forward: Callable[[Tensor], Tensor], spec: ImageSpec) -> tuple[Tensor, ForwardSize]:
    """Return the output of the forward of one image, and what it computes."""
    image = torch.empty(1, spec.channels, spec.image_size, spec.image_size, dtype=torch.uint8)
    with FlopCounterMode(display=False) as flops, _OutputCounter() as outputs:
        logits = forward(image)
    return logits, ForwardSize(float(flops.get_total_flops()), outputs.elements, outputs.operators)


def _count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
