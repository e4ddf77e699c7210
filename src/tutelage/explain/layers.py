"""The layers of a network whose outputs are maps of the image: of convolutional networks and of transformers."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from tutelage.models import ImageClassifier

MAP_AXES, TOKEN_AXES = 4, 3  # of an output (B, C, H, W) or (B, H, W, C), and of tokens (B, N, D)
MAX_PREFIX = 5  # tokens before those of the patches: a class token, and up to four registers
ATTENTION, POOLING = "Attention", "Pool"  # in the names of classes: what lets places see each other, what joins them

PASSING_ON = (nn.Dropout, nn.Identity, nn.Sequential)  # modules whose output is that of another

Layout = Literal["channels first", "channels last", "tokens"]


@dataclass(frozen=True)
class MapLayer:
    """A layer whose output has places in the image.

    Attributes:
        name: its path in the network.
        kind: the name of its class; of a convolution and what follows it, of both.
        layout: of its output.
        channels: of its output.
        side: places along the image's height and width.
        prefix: tokens before those of the places.
        has_attention: its units see other places by attention.
    """

    name: str
    kind: str
    layout: Layout
    channels: int
    side: int
    prefix: int = 0
    has_attention: bool = False

    @property
    def title(self) -> str:
        """Its name as people read it: without what all names begin with, unless only a number is left."""
        short = self.name.removeprefix("backbone.").removeprefix("0.")
        return self.name if short.isdecimal() else short

    def to_maps(self, output: Tensor) -> Tensor:
        """Return an output of the layer as maps (B, C, H, W)."""
        if self.layout == "channels first":
            return output
        if self.layout == "channels last":
            return output.permute(0, 3, 1, 2)
        places = output[:, self.prefix :].transpose(1, 2)
        return places.reshape(*places.shape[:2], self.side, self.side)

    def from_maps(self, maps: Tensor, output: Tensor) -> Tensor:
        """Return the output whose maps are ``maps``; tokens before those of the places are those of ``output``."""
        if self.layout == "channels first":
            return maps
        if self.layout == "channels last":
            return maps.permute(0, 2, 3, 1)
        return torch.cat([output[:, : self.prefix], maps.flatten(2).transpose(1, 2)], dim=1)


@dataclass(frozen=True)
class _Call:
    """A call of a module that gave maps."""

    layer: MapLayer
    is_convolution: bool
    is_block: bool  # one of several in a row that let places see each other by attention

    @property
    def is_pooling(self) -> bool:
        return POOLING in self.layer.kind

    @property
    def shape(self) -> tuple[str, int, int]:
        return self.layer.layout, self.layer.channels, self.layer.side


def find_map_layers(network: ImageClassifier) -> list[MapLayer]:
    """Return the layers whose outputs are shown, from the image on.

    Those are, for each convolution, the last layer of the same shape before the next one (its activation, or the
    residual block that it ends), then the pooling behind it; and the blocks of a transformer. A network without places
    has none.
    """
    layers: list[MapLayer] = []
    for first, *others in _group(_record_calls(network)):
        layers.append(_end_of(first, others))
        layers += [call.layer for call in others if call.is_pooling and call.shape != first.shape][-1:]
    return list({layer.name: layer for layer in layers}.values())


def find_last_map(network: ImageClassifier) -> MapLayer | None:
    """Return the last layer with maps that decide the class, for Grad-CAM; None where there is none.

    Of a convolutional network that is the last convolution, with its activation, or the residual block that it ends. Of
    a transformer it is the first layer of its last block: behind it the class token alone may count.
    """
    groups = _group(_record_calls(network))
    if not groups:
        return None
    first, *others = groups[-1]
    last = _end_of(first, others)
    if not last.prefix:
        return last
    inside = [call.layer for group in groups for call in group if call.layer.name.startswith(f"{last.name}.")]
    return next((layer for layer in inside if layer.prefix), last)


def _group(calls: Sequence[_Call]) -> list[list[_Call]]:
    """Return the calls in groups: each begins with a convolution or a block of a transformer."""
    groups: list[list[_Call]] = []
    for call in calls:
        if call.is_convolution or call.is_block:
            groups.append([])
        if groups:
            groups[-1].append(call)
    return groups


def _end_of(first: _Call, others: Sequence[_Call]) -> MapLayer:
    """Return the last layer of the shape of a group's first call."""
    same = [call.layer for call in others if call.shape == first.shape]
    if first.is_block or not same:
        return first.layer
    is_block = first.layer.name.startswith(f"{same[-1].name}.")
    return same[-1] if is_block else replace(same[-1], kind=f"{first.layer.kind}, {same[-1].kind}")


def spread(layers: Sequence[MapLayer], count: int) -> list[MapLayer]:
    """Return up to ``count`` of the layers: the first, the last, and some between them at even distances."""
    if len(layers) <= count:
        return list(layers)
    return [layers[round(number * (len(layers) - 1) / (count - 1))] for number in range(count)]


@contextmanager
def recorded_outputs(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that holds the output of each named layer of the last forward pass within the block."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        outputs[name] = output.clone()  # a layer behind it may overwrite it

    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name in names
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _record_calls(network: ImageClassifier) -> list[_Call]:
    """Return the calls of modules that give maps, in the order in which they end, for one black image."""
    names = {module: name for name, module in network.named_modules()}
    prefix, blocks = _count_prefix(network), _find_blocks(network)
    calls: list[_Call] = []

    def record(module: nn.Module, inputs: object, output: object) -> None:
        name = names[module]
        layer = _describe(name, type(module).__name__, output, prefix, name.startswith(tuple(blocks)))
        if layer is not None and not isinstance(module, PASSING_ON):
            calls.append(_Call(layer, isinstance(module, nn.Conv2d), name in blocks))

    hooks = [module.register_forward_hook(record) for module in names if names[module].startswith("backbone.")]
    spec = network.spec
    shape = (1, spec.channels, spec.image_size, spec.image_size)
    try:
        with torch.no_grad():
            network.features(torch.zeros(shape, dtype=torch.uint8, device=network.device))
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _describe(name: str, kind: str, output: object, prefix: int | None, has_attention: bool) -> MapLayer | None:
    """Return the layer of an output; None for an output without places."""
    if not isinstance(output, Tensor):
        return None
    shape = tuple(output.shape)
    if len(shape) == MAP_AXES and shape[2] == shape[3] > 1:
        return MapLayer(name, kind, "channels first", shape[1], shape[2], has_attention=has_attention)
    if len(shape) == MAP_AXES and shape[1] == shape[2] > 1:
        return MapLayer(name, kind, "channels last", shape[3], shape[1], has_attention=has_attention)
    if len(shape) != TOKEN_AXES:
        return None
    tokens = shape[1]
    side = math.isqrt(tokens - (prefix or 0))
    before = tokens - side**2
    is_map = side > 1 and (before == prefix if prefix is not None else before <= MAX_PREFIX)
    return MapLayer(name, kind, "tokens", shape[2], side, before, has_attention) if is_map else None


def _count_prefix(network: nn.Module) -> int | None:
    """Return how many tokens stand before those of the patches; None where the network does not say it."""
    counts = [getattr(module, "num_prefix_tokens", None) for module in network.modules()]
    return next((count for count in counts if isinstance(count, int)), None)


def _find_blocks(network: nn.Module) -> list[str]:
    """Return the names of the outermost modules in a row that let places see each other by attention."""
    blocks: list[str] = []
    rows = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Sequential)]
    for row, module in rows:
        for child_name, child in module.named_children():
            has_attention = any(ATTENTION in type(each).__name__ for each in child.modules())
            if row != "backbone" and has_attention and not isinstance(child, nn.Sequential):
                blocks.append(f"{row}.{child_name}")
    return [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]
