"""How a network starts from another's weights: which tensor fills which, and what is adapted on the way."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tutelage.errors import UserError
from tutelage.models.base import ImageClassifier
from tutelage.models.weights.sources import COUNTERS, Pretrained, pretrained

MOST_PREFIXES = 3  # modules of ours around another library's network
MOST_NAMED = 3
MOST_PREFIX_TOKENS = 8  # beside a transformer's patches: classes, distillation, registers
POSITIONS = ("pos_embed", "pos_embedding", "position_embedding")
CONVOLUTION_AXES = 4
GREY, RGB = 1, 3


class Fitted(NamedTuple):
    """A tensor of the shape that a network needs, and what was done to it, in words."""

    tensor: Tensor
    told: str = ""


def load_pretrained(network: ImageClassifier, given: Path | str) -> str:
    """Copy weights into ``network`` and return what was done, as a sentence.

    Tensors are matched by their names, less what our own modules put before them; else by their order, where all the
    backbone's shapes agree. A head of other shapes, or known to be for other classes, starts anew. The network then
    normalises images as the weights' own did, where that is known.

    Args:
        network: on any device; on the meta device the fit is checked and nothing copied.
        given: see ``pretrained``.

    Raises:
        UserError: the weights cannot be had, or do not fit.
    """
    theirs = pretrained(given)
    tensors = theirs.tensors
    own = {n: t for n, t in network.state_dict().items() if not n.endswith(COUNTERS)}
    backbone = [name for name in own if name.startswith("backbone.")]
    head = [name for name in own if name.startswith("head.")]
    first = next((name for name in backbone if own[name].ndim == CONVOLUTION_AXES), "")
    in_order = {} if theirs.unordered else dict(zip(backbone, tensors, strict=False))
    source = _by_name(own, tensors, backbone, first) or in_order
    fitted = {n: _fitted(n, own[n], tensors[other], n == first) for n, other in source.items()}
    if wrong := [name for name in backbone if fitted.get(name) is None]:
        raise UserError(_refusal(theirs, own, source, wrong))
    copied = {name: one.tensor for name, one in fitted.items() if one is not None}
    if theirs.classes is None or theirs.classes == network.spec.classes:
        left = [name for name in tensors if name not in set(source.values())]
        copied |= {name: tensors[other] for name, other in _head(own, tensors, head, left).items()}
    if not any(tensor.is_meta for tensor in own.values()):
        network.load_state_dict(copied, strict=False)
    told = [f"init_from: {len(copied)} tensors of {theirs.where}"]
    told += dict.fromkeys(one.told for one in fitted.values() if one is not None and one.told)
    if head and not set(head) <= set(copied):
        told.append(f"the head of {len(network.spec.classes)} classes starts anew")
    elif head:
        told.append(f"the head of {len(network.spec.classes)} classes goes on with theirs")
    return "; ".join([*told, *_normalise_alike(network, theirs)])


def _normalise_alike(network: ImageClassifier, theirs: Pretrained) -> list[str]:
    """Let a network normalise images as others did; return what is to be said of it."""
    channels = network.spec.channels
    mean, std = _of_channels(theirs.mean, channels), _of_channels(theirs.std, channels)
    if not mean:
        return ["images are normalised by data.mean and data.std, as nothing is known of these weights'"]
    if (mean, std) == (network.spec.mean, network.spec.std):
        return []
    network.normalise_by(mean, std)
    numbers = ["[" + ", ".join(f"{value:.3g}" for value in values) + "]" for values in (mean, std)]
    return [f"images are normalised as for these weights: mean {numbers[0]}, std {numbers[1]}"]


def _of_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return a value for each channel: for grey the mean over the colours, for colours that of grey."""
    if len(values) == channels or not values:
        return values
    return (sum(values) / len(values),) * channels


def _by_name(
    own: dict[str, Tensor], given: Mapping[str, Tensor], backbone: Sequence[str], first: str
) -> dict[str, str]:
    """Return the given name for each of the backbone's tensors; empty where names do not agree."""
    for dropped in range(MOST_PREFIXES + 1):
        names = {name: ".".join(name.split(".")[dropped:]) for name in backbone}
        if all(o in given and _fitted(n, own[n], given[o], n == first) for n, o in names.items()):
            return names
    return {}


def _fitted(name: str, own: Tensor, given: Tensor, first: bool) -> Fitted | None:
    """Return ``given`` in the shape of ``own``; None where it cannot be brought to it.

    Args:
        name: the tensor's.
        own: gives the shape.
        given: what is to fit.
        first: it is the first convolution, which sees the image's channels.
    """
    if own.shape == given.shape:
        return Fitted(given)
    if first and own.ndim == given.ndim and (own.shape[0], *own.shape[2:]) == (given.shape[0], *given.shape[2:]):
        channels = (given.shape[1], own.shape[1])
        if channels == (RGB, GREY):  # what three equal channels would give; timm's adapt_input_conv does so too
            return Fitted(given.sum(dim=1, keepdim=True), "its first convolution is summed over the colours for grey")
        if channels == (GREY, RGB):
            return Fitted(given.repeat(1, RGB, 1, 1) / RGB, "its first convolution is repeated for the colours")
    if name.endswith(POSITIONS) and own.ndim == given.ndim == 3 and own.shape[2] == given.shape[2]:  # noqa: PLR2004
        return _resampled(own, given)
    return None


def _resampled(own: Tensor, given: Tensor) -> Fitted | None:
    """Return the position embeddings (1, P + n * n, D) for another number of patches; P tokens are no patches."""
    sizes = own.shape[1], given.shape[1]
    for prefix in range(MOST_PREFIX_TOKENS):
        new, old = (math.isqrt(max(0, size - prefix)) for size in sizes)
        if (new**2 + prefix, old**2 + prefix) == sizes and new and old:
            from timm.layers.pos_embed import resample_abs_pos_embed

            made = resample_abs_pos_embed(given, [new, new], [old, old], num_prefix_tokens=prefix)
            return Fitted(made, f"its position embeddings are resampled from {old}x{old} to {new}x{new} patches")
    return None


def _head(own: dict[str, Tensor], given: Mapping[str, Tensor], head: list[str], left: list[str]) -> dict[str, str]:
    """Return which of the tensors left over fill the head, the last ones that fit; empty where one is missing."""
    free, found = list(left), {}
    for name in reversed(head):
        match = next((other for other in reversed(free) if given[other].shape == own[name].shape), None)
        if match is None:
            return {}
        free.remove(match)
        found[name] = match
    return found


def _refusal(theirs: Pretrained, own: dict[str, Tensor], source: dict[str, str], wrong: list[str]) -> str:
    """Return why weights do not fit: the first tensors that differ, and how many more do."""
    given = theirs.tensors
    named = [
        f"{name} {_shape(own[name])} against {source.get(name, 'nothing')} {_shape(given.get(source.get(name, '')))}"
        for name in wrong[:MOST_NAMED]
    ]
    more = f" and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
    unordered = " (a .safetensors file has no order: its names must agree)" if theirs.unordered else ""
    return (
        f"init_from={theirs.where}: {len(given)} tensors that do not fit the network's {len(own)}: "
        f"{'; '.join(named)}{more}; model, data.channels, data.image_size are to be theirs{unordered}"
    )


def _shape(tensor: Tensor | None) -> str:
    return "" if tensor is None else "x".join(map(str, tensor.shape)) or "scalar"
