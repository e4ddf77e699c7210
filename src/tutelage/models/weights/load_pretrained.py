"""How a network starts from another's weights: which tensor is copied to which, and how shapes are adapted.

Beside timm's and torchvision's own loading (``create_model(pretrained=True)``): they load weights into their networks
alone; here the same weights, or any file, fill a network of ours, with another head, size or number of channels.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tutelage.errors import UserError
from tutelage.models.base import ImageClassifier
from tutelage.models.weights.sources import COUNTERS, Pretrained, read_pretrained

MAX_PREFIXES = 3  # modules of ours around another library's network
MAX_NAMED = 3  # tensors in an error
MAX_PREFIX_TOKENS = 8  # beside a transformer's patches: classes, distillation, registers
POSITIONS = ("pos_embed", "pos_embedding", "position_embedding")
CONVOLUTION_AXES = 4
GREY, RGB = 1, 3


class FittedTensor(NamedTuple):
    """A tensor of the shape that a network needs, and a sentence on how it was adapted."""

    tensor: Tensor
    note: str = ""


def load_pretrained(network: ImageClassifier, source: Path | str) -> str:
    """Copy weights into ``network`` and return a sentence on what was done.

    Tensors are matched by their names, without the prefixes of our own modules; else by their order, where the shapes
    of all tensors of the backbone agree. A head of other shapes, or known to be for other classes, keeps its random
    weights. The network then normalises images as the weights' own network did, where that is known.

    Args:
        network: on any device; on the meta device the fit is checked and nothing copied.
        source: see ``read_pretrained``.

    Raises:
        UserError: the weights cannot be read, or do not fit.
    """
    weights = read_pretrained(source)
    tensors = weights.tensors
    state = {n: t for n, t in network.state_dict().items() if not n.endswith(COUNTERS)}
    backbone = [name for name in state if name.startswith("backbone.")]
    head = [name for name in state if name.startswith("head.")]
    first = next((name for name in backbone if state[name].ndim == CONVOLUTION_AXES), "")
    by_order = {} if weights.unordered else dict(zip(backbone, tensors, strict=False))
    matches = _match_names(state, tensors, backbone, first) or by_order
    fitted = {n: _fit_tensor(n, state[n], tensors[other], n == first) for n, other in matches.items()}
    if misfits := [name for name in backbone if fitted.get(name) is None]:
        raise UserError(_describe_misfits(weights, state, matches, misfits))
    copied = {name: entry.tensor for name, entry in fitted.items() if entry is not None}
    if weights.classes is None or weights.classes == network.spec.classes:
        unused = [name for name in tensors if name not in set(matches.values())]
        copied |= {name: tensors[other] for name, other in _match_head(state, tensors, head, unused).items()}
    if not any(tensor.is_meta for tensor in state.values()):
        network.load_state_dict(copied, strict=False)
    notes = [f"init_from: {len(copied)} tensors of {weights.source}"]
    notes += dict.fromkeys(entry.note for entry in fitted.values() if entry is not None and entry.note)
    if head and not set(head) <= set(copied):
        notes.append(f"the head of {len(network.spec.classes)} classes starts anew")
    elif head:
        notes.append(f"the head of {len(network.spec.classes)} classes goes on with theirs")
    return "; ".join([*notes, *_adopt_normalisation(network, weights)])


def _adopt_normalisation(network: ImageClassifier, weights: Pretrained) -> list[str]:
    """Let a network normalise images as the weights' own network did; return the notes on it."""
    channels = network.spec.channels
    mean, std = _adapt_channels(weights.mean, channels), _adapt_channels(weights.std, channels)
    if not mean:
        return ["images are normalised by data.mean and data.std, as nothing is known of these weights'"]
    if (mean, std) == (network.spec.mean, network.spec.std):
        return []
    network.normalise_by(mean, std)
    numbers = ["[" + ", ".join(f"{value:.3g}" for value in values) + "]" for values in (mean, std)]
    return [f"images are normalised as for these weights: mean {numbers[0]}, std {numbers[1]}"]


def _adapt_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return a value for each channel: for grey the mean over the colours, for colours that of grey."""
    if len(values) == channels or not values:
        return values
    return (sum(values) / len(values),) * channels


def _match_names(
    state: dict[str, Tensor], tensors: Mapping[str, Tensor], backbone: Sequence[str], first: str
) -> dict[str, str]:
    """Return the name in ``tensors`` of each of the backbone's tensors; empty where names do not agree."""
    for dropped in range(MAX_PREFIXES + 1):
        names = {name: ".".join(name.split(".")[dropped:]) for name in backbone}
        if all(o in tensors and _fit_tensor(n, state[n], tensors[o], n == first) for n, o in names.items()):
            return names
    return {}


def _fit_tensor(name: str, target: Tensor, tensor: Tensor, is_first: bool) -> FittedTensor | None:
    """Return ``tensor`` in the shape of ``target``; None where it cannot be adapted.

    Args:
        name: the target's name.
        target: the network's tensor, which has the shape that is needed.
        tensor: the tensor of the weights.
        is_first: whether the target is the first convolution, whose inputs are the image's channels.
    """
    if target.shape == tensor.shape:
        return FittedTensor(tensor)
    if (
        is_first
        and target.ndim == tensor.ndim
        and (target.shape[0], *target.shape[2:]) == (tensor.shape[0], *tensor.shape[2:])
    ):
        channels = (tensor.shape[1], target.shape[1])
        if channels == (RGB, GREY):  # the response to three equal channels; timm's adapt_input_conv does the same
            summed = tensor.sum(dim=1, keepdim=True)
            return FittedTensor(summed, "its first convolution is summed over the colours for grey")
        if channels == (GREY, RGB):
            repeated = tensor.repeat(1, RGB, 1, 1) / RGB
            return FittedTensor(repeated, "its first convolution is repeated for the colours")
    if name.endswith(POSITIONS) and target.ndim == tensor.ndim == 3 and target.shape[2] == tensor.shape[2]:  # noqa: PLR2004
        return _resample_positions(target, tensor)
    return None


def _resample_positions(target: Tensor, tensor: Tensor) -> FittedTensor | None:
    """Return position embeddings (1, P + n * n, D) for another number of patches; P tokens are no patches."""
    sizes = target.shape[1], tensor.shape[1]
    for prefix in range(MAX_PREFIX_TOKENS):
        new, old = (math.isqrt(max(0, size - prefix)) for size in sizes)
        if (new**2 + prefix, old**2 + prefix) == sizes and new and old:
            from timm.layers.pos_embed import resample_abs_pos_embed

            resampled = resample_abs_pos_embed(tensor, [new, new], [old, old], num_prefix_tokens=prefix)
            note = f"its position embeddings are resampled from {old}x{old} to {new}x{new} patches"
            return FittedTensor(resampled, note)
    return None


def _match_head(
    state: dict[str, Tensor], tensors: Mapping[str, Tensor], head: list[str], unused: list[str]
) -> dict[str, str]:
    """Return the name in ``tensors`` of each of the head's tensors; empty where one has no match.

    The last of the ``unused`` tensors that has the right shape is taken.
    """
    free, matches = list(unused), {}
    for name in reversed(head):
        match = next((other for other in reversed(free) if tensors[other].shape == state[name].shape), None)
        if match is None:
            return {}
        free.remove(match)
        matches[name] = match
    return matches


def _describe_misfits(
    weights: Pretrained, state: dict[str, Tensor], matches: dict[str, str], misfits: list[str]
) -> str:
    """Return why weights do not fit: the first tensors that differ, and how many more do."""
    tensors = weights.tensors
    named = [
        f"{name} {_describe_shape(state[name])} against {matches.get(name, 'nothing')} "
        f"{_describe_shape(tensors.get(matches.get(name, '')))}"
        for name in misfits[:MAX_NAMED]
    ]
    more = f" and {len(misfits) - MAX_NAMED} more" if len(misfits) > MAX_NAMED else ""
    unordered = " (a .safetensors file has no order: its names must agree)" if weights.unordered else ""
    return (
        f"init_from={weights.source}: {len(tensors)} tensors that do not fit the network's {len(state)}: "
        f"{'; '.join(named)}{more}; set model, data.channels and data.image_size to those of the weights{unordered}"
    )


def _describe_shape(tensor: Tensor | None) -> str:
    return "" if tensor is None else "x".join(map(str, tensor.shape)) or "scalar"
