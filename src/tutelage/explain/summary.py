"""A network's layers: the output shape, the receptive field and the cost of each.

This replaces torchinfo's table, which has no receptive fields. torch's FlopCounterMode counts the operations.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tutelage.config import DataConfig
from tutelage.data import data_module
from tutelage.explain.receptive_field_tracker import ReceptiveFieldTracker
from tutelage.models import ImageClassifier, make_classifier
from tutelage.runs.context import make_image_spec
from tutelage.runs.network_size import measure_network

HEADER = ("layer", "kind", "output", "sees", "stride", "multiply-adds", "parameters")
TEXT_COLUMNS = 2  # the other columns hold numbers
WIDTH = 100  # characters, where there is no terminal
WHOLE_IMAGE = "whole image"


@dataclass(frozen=True)
class Layer:
    """One call of one layer, for one image.

    Attributes:
        name: path in the network.
        kind: name of the layer's class.
        output: shape of the output, (C, H, W) or (D,).
        receptive_field: side in pixels of the square that a unit sees (the largest, where units differ), which may lie
            partly outside the image; None is the whole image.
        stride: pixels from one unit to the next; None where units have no position in the image any more.
        multiply_adds: number of them, in convolutions and matrix products.
        parameters: number of them; 0 where the layer was called before.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    receptive_field: int | None
    stride: int | None
    multiply_adds: int
    parameters: int


@dataclass
class _Call:
    """A module's call that has not ended yet."""

    flops_before: int  # counted when it began
    flops_of_children: int = 0  # counted within the modules that it called
    children: int = 0  # modules that it called


def build_meta_network(
    model: dict[str, Any], data: DataConfig, classes: Sequence[str] | None = None
) -> ImageClassifier:
    """Return a network on the meta device.

    Args:
        model: config of the network.
        data: config of its images.
        classes: names of the classes; None for those of the data.

    Raises:
        UserError: the network cannot be built or does not take images of this size, or the data is missing.
    """
    spec = make_image_spec(data, data_module(data).classes if classes is None else classes)
    measure_network(model, spec)
    with torch.device("meta"):
        return make_classifier(model, spec)


def summarize_layers(network: ImageClassifier) -> list[Layer]:
    """Return the layers in the order in which their calls end, from a forward pass of one image on the meta device.

    There is one row for each call of a module that calls no other module, and of any other module that multiplies or
    has parameters itself. The sums over the rows are the network's.
    """
    rows: list[tuple[Layer, bool]] = []  # with whether the module calls no other
    image = make_meta_image(network)
    counter, tracker = FlopCounterMode(display=False), ReceptiveFieldTracker(image)
    with _record_calls(network, counter, tracker, rows):
        forward_on_meta(network, image, tracker, counter)  # the counter does not count the arithmetic of ``tracker``
    counts = _count_parameters(network, {layer.name for layer, _ in rows})
    layers = []
    for layer, leaf in rows:
        parameters = counts.pop(layer.name, 0)
        if leaf or parameters or layer.multiply_adds:
            layers.append(replace(layer, parameters=parameters))
    return layers


def make_meta_image(network: ImageClassifier) -> Tensor:
    """Return an image (1, C, S, S) uint8 as a network sees it, on the meta device."""
    size = (1, network.spec.channels, network.spec.image_size, network.spec.image_size)
    return torch.empty(size, dtype=torch.uint8, device="meta")


def forward_on_meta(network: ImageClassifier, image: Tensor, *modes: AbstractContextManager[Any]) -> None:
    """Do a forward pass of an image on the meta device, in eval mode, under modes; the last one is the innermost."""
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    meta_state = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    with _in_eval_mode(network), torch.device("meta"), torch.no_grad(), ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        functional_call(network, meta_state, (image,))


@contextmanager
def _in_eval_mode(network: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _record_calls(
    network: nn.Module, counter: FlopCounterMode, tracker: ReceptiveFieldTracker, rows: list[tuple[Layer, bool]]
) -> Iterator[None]:
    """Append a row for each call of a module that ends within this context."""
    open_calls: list[_Call] = []
    names = {module: name for name, module in network.named_modules()}

    def begin(module: nn.Module, inputs: Any) -> None:
        open_calls.append(_Call(counter.get_total_flops()))

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        call = open_calls.pop()
        flops = counter.get_total_flops() - call.flops_before
        if open_calls:
            open_calls[-1].flops_of_children += flops
            open_calls[-1].children += 1
        tensor = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
        if tensor is None:
            return
        field = tracker.get_field(tensor)
        stride = max(field.jump) if field.jump and tensor.ndim > 2 else None  # noqa: PLR2004 - (B, D) has no positions
        multiply_adds = (flops - call.flops_of_children) // 2
        row = Layer(names[module], type(module).__name__, tuple(tensor.shape[1:]), field.side, stride, multiply_adds, 0)
        rows.append((row, not call.children))

    handles = [module.register_forward_pre_hook(begin) for module in names]
    handles += [module.register_forward_hook(end) for module in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _count_parameters(network: nn.Module, called: set[str]) -> dict[str, int]:
    """Return the number of parameters by module; those of a module never called count for its nearest called parent."""
    counts: dict[str, int] = {}
    for path, parameter in network.named_parameters():
        owner = path.rpartition(".")[0]
        while owner and owner not in called:
            owner = owner.rpartition(".")[0]
        counts[owner] = counts.get(owner, 0) + parameter.numel()
    return counts


def print_summary(network: ImageClassifier) -> None:
    """Print the layers as a table."""
    from rich.console import Console
    from rich.table import Table

    layers = summarize_layers(network)
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for number, name in enumerate(HEADER):
        is_text = number < TEXT_COLUMNS
        table.add_column(name, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for layer in layers:
        table.add_row(*format_cells(layer))
    total = (sum(layer.multiply_adds for layer in layers), sum(layer.parameters for layer in layers))
    table.add_row("total", "", "", "", "", *(f"{number:,}" for number in total), style="bold")
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(table, highlight=False)


def format_cells(layer: Layer) -> tuple[str, ...]:
    """Return the cells of a layer's row, in the order of ``HEADER``."""
    side = layer.receptive_field
    return (
        layer.name.removeprefix("backbone."),
        layer.kind,
        " x ".join(str(size) for size in layer.output),
        WHOLE_IMAGE if side is None else f"{side} x {side}",
        "" if layer.stride is None else str(layer.stride),
        f"{layer.multiply_adds:,}" if layer.multiply_adds else "",
        f"{layer.parameters:,}" if layer.parameters else "",
    )
