"""How each kind of operation changes what the units of a tensor see: one rule a kind, listed in ``RULES``."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map

from tutelage.explain.receptive_field import (
    BOUNDS,
    COLUMNS,
    PLANE,
    ROWS,
    Jump,
    Operation,
    ReceptiveField,
    join_extents,
    join_matrix_product,
    multiply_jump,
    unexpand,
    varies_along,
)


def propagate(operation: Operation) -> Sequence[ReceptiveField]:
    """Return what the units of an operation's results see."""
    if operation.name.startswith("new_") or operation.name.endswith("_like"):  # constants of a tensor's type
        return []
    if any(field.extent is None for field in operation.fields):
        window, jump = _get_window(operation), None if operation.name in REDUCTIONS else operation.jump
        jump = multiply_jump(jump, window.stride) if window else jump
        return [ReceptiveField(None, jump)] * len(operation.outputs)
    return RULES.get(operation.name, _join_operands)(operation)


def _join_operands(operation: Operation) -> Sequence[ReceptiveField]:
    """Join the operands if they broadcast to the result's shape; any other operation may do anything."""
    extents = [field.extent for field in operation.fields if field.extent is not None and field.jump is not None]
    if not all(_broadcasts(extent[0].shape, operation.shape) for extent in extents):
        return _see_whole_image(operation)
    return [ReceptiveField(join_extents(extents, operation.shape), operation.jump)]


def _see_whole_image(operation: Operation) -> Sequence[ReceptiveField]:
    return [ReceptiveField(None, operation.jump)] * len(operation.outputs)


@dataclass(frozen=True)
class _Window:
    """A window that slides over an image: pairs for rows and columns; ``padding`` is that before the first."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


def _get_window(operation: Operation) -> _Window | None:
    """Return the window of a convolution, pooling or padding of images; None for any other operation."""
    if operation.name in PADS and len(operation.args[1]) == 2 * PLANE:
        left, _, top, _ = operation.args[1]
        return _Window((1, 1), (1, 1), (top, left), (1, 1))
    if operation.name in POOLS:
        kernel = operation.argument("kernel_size")
        stride = operation.argument("stride") or kernel
    elif operation.name == "convolution" and not operation.argument("transposed"):
        kernel, stride = operation.argument("weight").shape[2:], operation.argument("stride")
        if len(kernel) != PLANE:
            return None
    else:
        return None
    dilation = operation.argument("dilation", [1])
    return _Window(_pair(kernel), _pair(stride), _pair(operation.argument("padding", [0])), _pair(dilation))


def _slide_window(operation: Operation) -> Sequence[ReceptiveField]:
    """Join what the units in a window see, over all channels."""
    window, field = _get_window(operation), operation.fields[0]
    if window is None:
        return _move_values(operation) if operation.name == "constant_pad_nd" else _see_whole_image(operation)
    planes = [unexpand(bound).flatten(0, -PLANE - 1).amax(0) for bound in field.extent or ()]
    jump = _measure_jump(planes, field.jump or (1, 1))
    size = operation.shape[-PLANE:]
    padded = [_pad(plane, bound, jump, window, size) for plane, bound in zip(planes, BOUNDS, strict=True)]
    joined = [
        functional.max_pool2d(plane[None], window.kernel, window.stride, dilation=window.dilation) for plane in padded
    ]
    extent = tuple(bound.expand(operation.shape) for bound in joined)
    return [ReceptiveField(extent, multiply_jump(jump, window.stride))]


def _measure_jump(planes: Sequence[Tensor], jump: Jump) -> Jump:
    """Return the distance between neighbours where it is the same all over the image, otherwise ``jump``."""
    distances = [planes[2 * axis + 1].diff(dim=axis) for axis in (ROWS, COLUMNS)]
    even = [d.numel() > 0 and bool(d.min() == d.max()) and float(d.max()) > 0 for d in distances]
    rows, columns = (int(d.max()) if e else j for d, e, j in zip(distances, even, jump, strict=True))
    return rows, columns


def _pad(plane: Tensor, bound: tuple[int, int], jump: Jump, window: _Window, size: Sequence[int]) -> Tensor:
    """Return one bound (H, W) of an extent with the padding at which a window gives ``size`` results."""
    axis, sign = bound
    indices = [
        torch.arange(-pad, (count - 1) * stride + (kernel - 1) * dilation + 1 - pad, device="cpu")
        for count, kernel, stride, pad, dilation in zip(
            size, window.kernel, window.stride, window.padding, window.dilation, strict=True
        )
    ]
    inside = [index.clamp(0, length - 1) for index, length in zip(indices, plane.shape, strict=True)]
    beyond = sign * jump[axis] * (indices[axis] - inside[axis])
    return plane[inside[ROWS]][:, inside[COLUMNS]] + (beyond[:, None] if axis == ROWS else beyond)


def _move_values(operation: Operation) -> Sequence[ReceptiveField]:
    """Move, select or join bounds exactly as the operation does with the values."""
    args, kwargs = operation.args, operation.kwargs
    if operation.name == "constant_pad_nd":
        args, kwargs = (*args[:2], -math.inf), {}
    moved = []
    for bounds in zip(*operation.extents, strict=True):
        swap = partial(_swap_tensor, {id(tensor): b for tensor, b in zip(operation.inputs, bounds, strict=True)})
        moved.append(list_tensors(operation.func(*tree_map(swap, args), **tree_map(swap, kwargs))))
    jump, step = operation.jump, operation.argument("step", 1)
    if operation.name == "slice" and step > 1:
        dim = operation.argument("dim", 0)
        rows, columns = (varies_along(operation.extents[0], axis, dim) for axis in (ROWS, COLUMNS))
        jump = multiply_jump(jump, (step if rows else 1, step if columns else 1))
    return [ReceptiveField(extent, jump) for extent in zip(*moved, strict=True)]


def _swap_tensor(bounds: dict[int, Tensor], value: Any) -> Any:
    return bounds.get(id(value), value)


def _reshape(operation: Operation) -> Sequence[ReceptiveField]:
    (extent,) = operation.extents
    return [ReceptiveField(tuple(bound.reshape(operation.shape) for bound in extent), operation.jump)]


def _roll(operation: Operation) -> Sequence[ReceptiveField]:
    """Roll, as if the image continued beyond its edge: attention in shifted windows is masked there."""
    (field,) = _move_values(operation)
    (extent_before,) = operation.extents
    extent = [bound.clone() for bound in field.extent or ()]
    for shift, dim in zip(operation.args[1], operation.argument("dims", []), strict=True):
        length = operation.shape[dim]
        for bound, (axis, sign) in zip(extent, BOUNDS, strict=True):
            if varies_along(extent_before, axis, dim):
                edge = bound.narrow(dim, 0, shift) if shift > 0 else bound.narrow(dim, length + shift, -shift)
                edge -= sign * math.copysign(length * (field.jump or (1, 1))[axis], shift)
    return [ReceptiveField(tuple(extent), field.jump)]


def _reduce(operation: Operation) -> Sequence[ReceptiveField]:
    """Join along the dimensions that are summed over or searched."""
    (extent,), dims = operation.extents, operation.argument("dim")
    keep = bool(operation.argument("keepdim", False))
    joined = [bound.amax(() if dims is None else dims, keepdim=keep) for bound in extent]
    return _detect_whole_image(operation, joined, None)


def _join_along_dim(operation: Operation) -> Sequence[ReceptiveField]:
    """Join along a dimension that the result still has."""
    (extent,) = operation.extents
    joined = [bound.amax(operation.argument("dim", -1), keepdim=True) for bound in extent]
    return _detect_whole_image(operation, joined, operation.jump)


def _multiply_matrices(operation: Operation) -> Sequence[ReceptiveField]:
    """Join a row of the left and a column of the right matrix, and a matrix that is added to the product."""
    *added, left, right = operation.extents
    product = tuple(join_matrix_product(a, b) for a, b in zip(left, right, strict=True))
    return _detect_whole_image(operation, join_extents([product, *added], operation.shape), operation.jump)


def _attend(operation: Operation) -> Sequence[ReceptiveField]:
    """Join a query with all keys and values."""
    query, key, value = operation.extents[:3]
    joined = [join_matrix_product(join_matrix_product(q, k.mT), v) for q, k, v in zip(query, key, value, strict=True)]
    return _detect_whole_image(operation, joined, operation.jump)


def _pool_adaptively(operation: Operation) -> Sequence[ReceptiveField]:
    """Join the windows of adaptive pooling; maximum and mean have the same windows."""
    (extent,), size = operation.extents, operation.shape[-PLANE:]
    rows, columns = (max(1, old // new) for old, new in zip(extent[0].shape[-PLANE:], size, strict=True))
    joined = [functional.adaptive_max_pool2d(bound, size) for bound in extent]
    (field,) = _detect_whole_image(operation, joined, operation.jump)
    return [ReceptiveField(field.extent, multiply_jump(field.jump, (rows, columns)))]


def _detect_whole_image(operation: Operation, joined: Sequence[Tensor], jump: Jump | None) -> Sequence[ReceptiveField]:
    """Return the whole image, with ``jump``, if every unit has joined all of it or all that the inputs still see."""
    largest = [
        torch.stack([unexpand(bound).max() for bound in bounds]).max()
        for bounds in zip(*operation.extents, strict=True)
    ]
    limits = [torch.clamp(bound, max=edge) for bound, edge in zip(largest, operation.image_bounds, strict=True)]
    if all(bool(((bound >= limit) | bound.isinf()).all()) for bound, limit in zip(joined, limits, strict=True)):
        return [ReceptiveField(None, jump)] * len(operation.outputs)
    extent = tuple(bound.expand(operation.shape) for bound in joined)
    return [ReceptiveField(extent, operation.jump)] * len(operation.outputs)


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return len(shape) <= len(to) and all(a in {1, b} for a, b in zip(reversed(shape), reversed(to), strict=False))


def _pair(values: Sequence[int]) -> tuple[int, int]:
    """Return the values for rows and columns from a list of one, two or (with a depth before them) three."""
    return values[-1] if len(values) == 1 else values[-PLANE], values[-1]


def list_tensors(tree: Any) -> list[Tensor]:
    """Return all tensors in nested lists, tuples and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


SUMS = ["linalg_vector_norm", "logsumexp", "mean", "norm", "prod", "std", "std_mean", "sum", "var", "var_mean"]
EXTREMES = ["all", "amax", "amin", "any", "argmax", "argmin", "max", "min"]
REDUCTIONS = frozenset([*SUMS, *EXTREMES])
SAME_SHAPE = ["_log_softmax", "_safe_softmax", "_softmax", "cummax", "cumprod", "cumsum", "logcumsumexp", "sort"]
POOLS = frozenset(["avg_pool2d", "avg_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices"])
PADS = frozenset(["constant_pad_nd", "reflection_pad2d", "replication_pad2d"])
VIEWS = ["expand", "permute", "select", "slice", "squeeze", "t", "transpose", "unfold", "unsqueeze"]
PIECES = ["cat", "repeat", "split", "split_with_sizes", "stack", "unbind"]
SHUFFLES = ["channel_shuffle", "flip", "pixel_shuffle", "pixel_unshuffle"]
ATTENTION = ["attention_math", "efficient_attention", "flash_attention", "flash_attention_for_cpu", "cudnn_attention"]
RULES: dict[str, Callable[[Operation], Sequence[ReceptiveField]]] = {
    **dict.fromkeys(["convolution", *POOLS, *PADS], _slide_window),
    **dict.fromkeys([*VIEWS, *PIECES, *SHUFFLES], _move_values),
    **dict.fromkeys(["view", "_unsafe_view", "reshape", "_reshape_alias"], _reshape),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(SAME_SHAPE, _join_along_dim),
    **dict.fromkeys(["addmm", "baddbmm", "bmm", "mm"], _multiply_matrices),
    **dict.fromkeys([f"_scaled_dot_product_{kernel}" for kernel in ATTENTION], _attend),
    "_adaptive_avg_pool2d": _pool_adaptively,
    "roll": _roll,
}
