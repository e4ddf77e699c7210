"""How much of the image a unit of any layer sees, found by following a forward pass operation by operation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

PLANE = 2  # dimensions of an image
ROWS, COLUMNS = 0, 1
PARTS = ((ROWS, -1), (ROWS, 1), (COLUMNS, -1), (COLUMNS, 1))  # axis and sign of each part of a reach

Jump = tuple[int, int]


@dataclass(frozen=True)
class Sight:
    """What the units of a tensor see.

    Attributes:
        reach: the first row (negated), last row, first column (negated) and last column that each unit sees, as four
            tensors of the tensor's shape; they go on beyond the image's edge as the layers' padding does, and are
            minus infinity where a value comes from no pixel. None: every unit sees the whole image.
        jump: pixels from one unit to the next, down and across; None where one place is left.
    """

    reach: tuple[Tensor, ...] | None
    jump: Jump | None

    @property
    def side(self) -> int | None:
        """The side in pixels of the largest square that a unit sees; None is the whole image."""
        if self.reach is None:
            return None
        top, bottom, left, right = (_distinct(part) for part in self.reach)
        return max(0, int(torch.maximum(top + bottom, left + right).max().clamp(min=-1)) + 1)


class ReceptiveFields(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Under this mode, ``sight(tensor)`` tells what the units of a tensor made from ``image`` (B, C, H, W) see.

    Every unit carries the first and the last row and column that it depends on. A convolution or pooling joins those of
    its window, arithmetic those of its operands, a matrix product, a softmax or a mean those that it sums over; views,
    slices and concatenations move them. Units that have joined all that was left see the whole image, and so do the
    results of operations that are not known here. Normalisations are taken not to widen what is seen.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        height, width = image.shape[-PLANE:]
        rows = torch.arange(height, dtype=torch.float32, device="cpu").view(height, 1).expand(image.shape)
        columns = torch.arange(width, dtype=torch.float32, device="cpu").expand(image.shape)
        self._edges = (0, height - 1, 0, width - 1)
        self._known = WeakTensorKeyDictionary()
        self._known[image] = Sight((-rows, rows, -columns, columns), (1, 1))

    def sight(self, tensor: Tensor) -> Sight:
        """Return what the units of ``tensor`` see."""
        nowhere = torch.full((), -math.inf, device="cpu").expand(tensor.shape)
        found: Sight = self._known[tensor] if tensor in self._known else Sight((nowhere,) * len(PARTS), None)
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do one operation, and note what the units of its results see."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        if outputs and any(tensor in self._known for tensor in inputs):
            operation = _Operation(
                func, args, kwargs, inputs, [self.sight(each) for each in inputs], outputs, self._edges
            )
            for output, sight in zip(outputs, _follow(operation), strict=False):
                self._known[output] = sight
        return result


@dataclass(frozen=True)
class _Operation:
    """One call of an ATen operator, and what the units of its inputs see."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: Sequence[Tensor]
    sights: Sequence[Sight]
    outputs: Sequence[Tensor]
    edges: Sequence[int]  # the reach of a unit that sees the image from edge to edge

    @property
    def name(self) -> str:
        return str(self.func.overloadpacket.__name__).rstrip("_")

    @property
    def shape(self) -> torch.Size:
        return self.outputs[0].shape

    @property
    def reaches(self) -> list[tuple[Tensor, ...]]:
        return [sight.reach for sight in self.sights if sight.reach is not None]

    @property
    def jump(self) -> Jump | None:
        jumps = [sight.jump for sight in self.sights if sight.jump is not None]
        return (max(j[ROWS] for j in jumps), max(j[COLUMNS] for j in jumps)) if jumps else None

    def given(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the operator's schema."""
        names = [argument.name for argument in self.func._schema.arguments]
        return {**dict(zip(names, self.args, strict=False)), **self.kwargs}.get(name, default)


def _follow(operation: _Operation) -> Sequence[Sight]:
    """Return what the results of an operation see."""
    if operation.name.startswith("new_") or operation.name.endswith("_like"):  # constants of a tensor's type
        return []
    if any(sight.reach is None for sight in operation.sights):
        window, jump = _window_of(operation), None if operation.name in JOINS else operation.jump
        return [Sight(None, _strided(jump, window.stride) if window else jump)] * len(operation.outputs)
    return RULES.get(operation.name, _arithmetic)(operation)


def _arithmetic(operation: _Operation) -> Sequence[Sight]:
    """Join what operands of the result's shape see; any other operation may do anything."""
    seen = [sight.reach for sight in operation.sights if sight.reach is not None and sight.jump is not None]
    if not all(_broadcasts(reach[0].shape, operation.shape) for reach in seen):
        return _unknown(operation)
    return [Sight(_largest(seen, operation.shape), operation.jump)]


def _unknown(operation: _Operation) -> Sequence[Sight]:
    return [Sight(None, operation.jump)] * len(operation.outputs)


@dataclass(frozen=True)
class _Window:
    """What slides over an image: pairs for rows and columns; ``padding`` is that before the first."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


def _window_of(operation: _Operation) -> _Window | None:
    """Return the window of a convolution, pooling or padding of images, None of anything else."""
    if operation.name in PADS and len(operation.args[1]) == 2 * PLANE:
        left, _, top, _ = operation.args[1]
        return _Window((1, 1), (1, 1), (top, left), (1, 1))
    if operation.name in POOLS:
        kernel = operation.given("kernel_size")
        stride = operation.given("stride") or kernel
    elif operation.name == "convolution" and not operation.given("transposed"):
        kernel, stride = operation.given("weight").shape[2:], operation.given("stride")
        if len(kernel) != PLANE:
            return None
    else:
        return None
    dilation = operation.given("dilation", [1])
    return _Window(_pair(kernel), _pair(stride), _pair(operation.given("padding", [0])), _pair(dilation))


def _slide(operation: _Operation) -> Sequence[Sight]:
    """Join what a window's units see, over all channels."""
    window, sight = _window_of(operation), operation.sights[0]
    if window is None:
        return _move(operation) if operation.name == "constant_pad_nd" else _unknown(operation)
    planes = [_distinct(part).flatten(0, -PLANE - 1).amax(0) for part in sight.reach or ()]
    jump = _measured(planes, sight.jump or (1, 1))
    size = operation.shape[-PLANE:]
    wide = [_extend(plane, part, jump, window, size) for plane, part in zip(planes, PARTS, strict=True)]
    reach = [
        functional.max_pool2d(plane[None], window.kernel, window.stride, dilation=window.dilation) for plane in wide
    ]
    return [Sight(tuple(part.expand(operation.shape) for part in reach), _strided(jump, window.stride))]


def _measured(planes: Sequence[Tensor], jump: Jump) -> Jump:
    """Return the distance of neighbours where it is the same all over the image, else ``jump``."""
    found = [planes[2 * axis + 1].diff(dim=axis) for axis in (ROWS, COLUMNS)]
    even = [d.numel() > 0 and bool(d.min() == d.max()) and float(d.max()) > 0 for d in found]
    rows, columns = (int(d.max()) if e else j for d, e, j in zip(found, even, jump, strict=True))
    return rows, columns


def _extend(plane: Tensor, part: tuple[int, int], jump: Jump, window: _Window, size: Sequence[int]) -> Tensor:
    """Return one part of a reach (H, W) with the padding at which a window gives ``size`` results."""
    axis, sign = part
    indices = [
        torch.arange(-pad, (count - 1) * stride + (kernel - 1) * dilation + 1 - pad, device="cpu")
        for count, kernel, stride, pad, dilation in zip(
            size, window.kernel, window.stride, window.padding, window.dilation, strict=True
        )
    ]
    inside = [index.clamp(0, length - 1) for index, length in zip(indices, plane.shape, strict=True)]
    beyond = sign * jump[axis] * (indices[axis] - inside[axis])
    return plane[inside[ROWS]][:, inside[COLUMNS]] + (beyond[:, None] if axis == ROWS else beyond)


def _move(operation: _Operation) -> Sequence[Sight]:
    """Do to what is seen as is done to the values."""
    args, kwargs = operation.args, operation.kwargs
    if operation.name == "constant_pad_nd":
        args, kwargs = (*args[:2], -math.inf), {}
    moved = []
    for parts in zip(*operation.reaches, strict=True):
        swap = partial(_swapped, {id(tensor): part for tensor, part in zip(operation.inputs, parts, strict=True)})
        moved.append(_tensors(operation.func(*tree_map(swap, args), **tree_map(swap, kwargs))))
    jump, step = operation.jump, operation.given("step", 1)
    if operation.name == "slice" and step > 1:
        rows, columns = (_varies(operation.reaches[0], axis, operation.given("dim", 0)) for axis in (ROWS, COLUMNS))
        jump = _strided(jump, (step if rows else 1, step if columns else 1))
    return [Sight(reach, jump) for reach in zip(*moved, strict=True)]


def _swapped(parts: dict[int, Tensor], value: Any) -> Any:
    return parts.get(id(value), value)


def _reshape(operation: _Operation) -> Sequence[Sight]:
    (reach,) = operation.reaches
    return [Sight(tuple(part.reshape(operation.shape) for part in reach), operation.jump)]


def _roll(operation: _Operation) -> Sequence[Sight]:
    """Roll, as if the image went on beyond its edge: attention in shifted windows is masked there."""
    (sight,) = _move(operation)
    (before,) = operation.reaches
    reach = [part.clone() for part in sight.reach or ()]
    for shift, dim in zip(operation.args[1], operation.given("dims", []), strict=True):
        length = operation.shape[dim]
        for part, (axis, sign) in zip(reach, PARTS, strict=True):
            if _varies(before, axis, dim):
                edge = part.narrow(dim, 0, shift) if shift > 0 else part.narrow(dim, length + shift, -shift)
                edge -= sign * math.copysign(length * (sight.jump or (1, 1))[axis], shift)
    return [Sight(tuple(reach), sight.jump)]


def _join(operation: _Operation) -> Sequence[Sight]:
    """Join along the dimensions that are summed over or searched."""
    (reach,), dims = operation.reaches, operation.given("dim")
    keep = bool(operation.given("keepdim", False))
    joined = [part.amax(() if dims is None else dims, keepdim=keep) for part in reach]
    return _settled(operation, joined, None)


def _mix(operation: _Operation) -> Sequence[Sight]:
    """Join along a dimension that stays."""
    (reach,) = operation.reaches
    return _settled(operation, [part.amax(operation.given("dim", -1), keepdim=True) for part in reach], operation.jump)


def _multiply(operation: _Operation) -> Sequence[Sight]:
    """Join a row of the left and a column of the right matrix, and what is added to the product."""
    *added, left, right = operation.reaches
    product = tuple(_product(a, b) for a, b in zip(left, right, strict=True))
    return _settled(operation, _largest([product, *added], operation.shape), operation.jump)


def _attend(operation: _Operation) -> Sequence[Sight]:
    """Join a query with all keys and values."""
    query, key, value = operation.reaches[:3]
    joined = [_product(_product(q, k.mT), v) for q, k, v in zip(query, key, value, strict=True)]
    return _settled(operation, joined, operation.jump)


def _adapt(operation: _Operation) -> Sequence[Sight]:
    """Join the windows of adaptive pooling; maximum and mean share them."""
    (reach,), size = operation.reaches, operation.shape[-PLANE:]
    rows, columns = (max(1, old // new) for old, new in zip(reach[0].shape[-PLANE:], size, strict=True))
    joined = [functional.adaptive_max_pool2d(part, size) for part in reach]
    (sight,) = _settled(operation, joined, operation.jump)
    return [Sight(sight.reach, _strided(sight.jump, (rows, columns)))]


def _settled(operation: _Operation, joined: Sequence[Tensor], jump: Jump | None) -> Sequence[Sight]:
    """Return the whole image, with ``jump``, where every unit has joined all of it or all that was left of it."""
    most = [
        torch.stack([_distinct(part).max() for part in parts]).max() for parts in zip(*operation.reaches, strict=True)
    ]
    enough = [torch.clamp(part, max=edge) for part, edge in zip(most, operation.edges, strict=True)]
    if all(bool(((part >= limit) | part.isinf()).all()) for part, limit in zip(joined, enough, strict=True)):
        return [Sight(None, jump)] * len(operation.outputs)
    return [Sight(tuple(part.expand(operation.shape) for part in joined), operation.jump)] * len(operation.outputs)


def _product(left: Tensor, right: Tensor) -> Tensor:
    return torch.maximum(_distinct(left).amax(-1, keepdim=True), _distinct(right).amax(-2, keepdim=True))


def _largest(reaches: Sequence[Sequence[Tensor]], shape: Sequence[int]) -> tuple[Tensor, ...]:
    return tuple(reduce(torch.maximum, parts).expand(shape) for parts in zip(*reaches, strict=True))


def _varies(reach: Sequence[Tensor], axis: int, dim: int) -> bool:
    """Return whether places along ``dim`` are rows (or columns) of the image."""
    part = reach[2 * axis + 1]
    return bool((part.select(dim, 0) != part.select(dim, -1)).any())


def _strided(jump: Jump | None, stride: tuple[int, int]) -> Jump | None:
    return (jump[ROWS] * stride[ROWS], jump[COLUMNS] * stride[COLUMNS]) if jump else None


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return len(shape) <= len(to) and all(a in {1, b} for a, b in zip(reversed(shape), reversed(to), strict=False))


def _pair(values: Sequence[int]) -> tuple[int, int]:
    """Return rows' and columns' value of a list of one, two or (with a depth before them) three."""
    return values[-1] if len(values) == 1 else values[-PLANE], values[-1]


def _distinct(part: Tensor) -> Tensor:
    """Return a part of a reach without the dimensions along which it was expanded, as it was over channels."""
    return part[tuple(slice(None if stride else 1) for stride in part.stride())]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


SUMS = ["linalg_vector_norm", "logsumexp", "mean", "norm", "prod", "std", "std_mean", "sum", "var", "var_mean"]
EXTREMES = ["all", "amax", "amin", "any", "argmax", "argmin", "max", "min"]
JOINS = frozenset([*SUMS, *EXTREMES])
MIXES = ["_log_softmax", "_safe_softmax", "_softmax", "cummax", "cumprod", "cumsum", "logcumsumexp", "sort"]
POOLS = frozenset(["avg_pool2d", "avg_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices"])
PADS = frozenset(["constant_pad_nd", "reflection_pad2d", "replication_pad2d"])
VIEWS = ["expand", "permute", "select", "slice", "squeeze", "t", "transpose", "unfold", "unsqueeze"]
PIECES = ["cat", "repeat", "split", "split_with_sizes", "stack", "unbind"]
SHUFFLES = ["channel_shuffle", "flip", "pixel_shuffle", "pixel_unshuffle"]
ATTENTION = ["attention_math", "efficient_attention", "flash_attention", "flash_attention_for_cpu", "cudnn_attention"]
RULES: dict[str, Callable[[_Operation], Sequence[Sight]]] = {
    **dict.fromkeys(["convolution", *POOLS, *PADS], _slide),
    **dict.fromkeys([*VIEWS, *PIECES, *SHUFFLES], _move),
    **dict.fromkeys(["view", "_unsafe_view", "reshape", "_reshape_alias"], _reshape),
    **dict.fromkeys(JOINS, _join),
    **dict.fromkeys(MIXES, _mix),
    **dict.fromkeys(["addmm", "baddbmm", "bmm", "mm"], _multiply),
    **dict.fromkeys([f"_scaled_dot_product_{kernel}" for kernel in ATTENTION], _attend),
    "_adaptive_avg_pool2d": _adapt,
    "roll": _roll,
}
