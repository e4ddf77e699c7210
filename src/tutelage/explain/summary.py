"""A network's layers: what comes out of each, what it sees of the image, and what it costs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tutelage.config import DataConfig
from tutelage.data import data_module
from tutelage.explain.receptive_field import ReceptiveFields
from tutelage.models import ImageClassifier, make_classifier
from tutelage.runs.context import spec_of
from tutelage.runs.cost import size_of

HEADER = ("layer", "kind", "output", "sees", "stride", "multiply-adds", "parameters")
TEXTS = 2  # columns of text; the others hold numbers
WIDTH = 100  # where there is no terminal
WHOLE = "whole image"


@dataclass(frozen=True)
class Layer:
    """One call of one layer, for one image.

    Attributes:
        name: path in the network.
        kind: name of the layer's class.
        output: shape of what comes out, (C, H, W) or (D,).
        receptive_field: side in pixels of the square that a unit sees (the largest, where units differ), which may lie
            partly outside the image; None is the whole image.
        stride: pixels from one unit to the next; None where units have no place any more.
        multiply_adds: of convolutions and matrix products.
        parameters: those of the layer; 0 where it was called before.
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

    before: int  # operations counted when it began
    inside: int = 0  # those counted by the modules that it called
    calls: int = 0


def network_of(model: dict[str, Any], data: DataConfig, classes: Sequence[str] | None = None) -> ImageClassifier:
    """Return a network on the meta device.

    Args:
        model: its config.
        data: what it sees.
        classes: what it tells apart; None: those of the data.

    Raises:
        UserError: it cannot be built, or does not take images of this size; or its data is not there.
    """
    spec = spec_of(data, data_module(data).classes if classes is None else classes)
    size_of(model, spec)
    with torch.device("meta"):
        return make_classifier(model, spec)


def summary(network: ImageClassifier) -> list[Layer]:
    """Return the layers in the order in which they end, from one image's way through the network on the meta device.

    There is a row a call of each module that calls no other, and of those others that multiply or own parameters
    themselves. The sums over the rows are the network's.
    """
    size = (1, network.spec.channels, network.spec.image_size, network.spec.image_size)
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    bare = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    rows: list[tuple[Layer, bool]] = []  # and whether the module calls no other
    image = torch.empty(size, dtype=torch.uint8, device="meta")
    counter, fields = FlopCounterMode(display=False), ReceptiveFields(image)
    with (
        _in_eval_mode(network),
        _watched(network, counter, fields, rows),
        torch.device("meta"),
        torch.no_grad(),
        fields,
        counter,  # sees operations first, so that it does not look into the arithmetic of ``fields``
    ):
        functional_call(network, bare, (image,))
    owned = _owned(network, {layer.name for layer, _ in rows})
    layers = []
    for layer, leaf in rows:
        parameters = owned.pop(layer.name, 0)
        if leaf or parameters or layer.multiply_adds:
            layers.append(replace(layer, parameters=parameters))
    return layers


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
def _watched(
    network: nn.Module, counter: FlopCounterMode, fields: ReceptiveFields, rows: list[tuple[Layer, bool]]
) -> Iterator[None]:
    """Append a row for each call of a module that ends in here."""
    open_calls: list[_Call] = []
    names = {module: name for name, module in network.named_modules()}

    def begin(module: nn.Module, inputs: Any) -> None:
        open_calls.append(_Call(counter.get_total_flops()))

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        call, now = open_calls.pop(), counter.get_total_flops()
        if open_calls:
            open_calls[-1].inside += now - call.before
            open_calls[-1].calls += 1
        tensor = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
        if tensor is None:
            return
        sight = fields.sight(tensor)
        stride = max(sight.jump) if sight.jump and tensor.ndim > 2 else None  # noqa: PLR2004 - (B, D) has no places
        multiply_adds = (now - call.before - call.inside) // 2
        row = Layer(names[module], type(module).__name__, tuple(tensor.shape[1:]), sight.side, stride, multiply_adds, 0)
        rows.append((row, not call.calls))

    handles = [module.register_forward_pre_hook(begin) for module in names]
    handles += [module.register_forward_hook(end) for module in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _owned(network: nn.Module, called: set[str]) -> dict[str, int]:
    """Return the parameters of each module, those of modules never called with the nearest one around them."""
    owned: dict[str, int] = {}
    for path, parameter in network.named_parameters():
        owner = path.rpartition(".")[0]
        while owner and owner not in called:
            owner = owner.rpartition(".")[0]
        owned[owner] = owned.get(owner, 0) + parameter.numel()
    return owned


def print_summary(network: ImageClassifier) -> None:
    """Print the layers as a table."""
    from rich.console import Console
    from rich.table import Table

    layers = summary(network)
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for number, name in enumerate(HEADER):
        text = number < TEXTS
        table.add_column(name, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for layer in layers:
        table.add_row(*_cells(layer))
    total = (sum(layer.multiply_adds for layer in layers), sum(layer.parameters for layer in layers))
    table.add_row("total", "", "", "", "", *(f"{number:,}" for number in total), style="bold")
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(table, highlight=False)


def _cells(layer: Layer) -> tuple[str, ...]:
    side = layer.receptive_field
    return (
        layer.name.removeprefix("backbone."),
        layer.kind,
        " x ".join(str(size) for size in layer.output),
        WHOLE if side is None else f"{side} x {side}",
        "" if layer.stride is None else str(layer.stride),
        f"{layer.multiply_adds:,}" if layer.multiply_adds else "",
        f"{layer.parameters:,}" if layer.parameters else "",
    )
