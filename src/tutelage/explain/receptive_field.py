"""What the units of a tensor see of the image, and how the parts of an image that two units see are joined."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

PLANE = 2  # dimensions of an image
ROWS, COLUMNS = 0, 1
BOUNDS = ((ROWS, -1), (ROWS, 1), (COLUMNS, -1), (COLUMNS, 1))  # axis and sign of each tensor of an extent

Extent = tuple[Tensor, ...]
Jump = tuple[int, int]


@dataclass(frozen=True)
class ReceptiveField:
    """What the units of a tensor see of the image.

    Attributes:
        extent: the first row (negated), the last row, the first column (negated) and the last column that each unit
            sees, as four tensors of the tensor's shape; they may lie beyond the image's edge, as the layers' padding
            does, and are minus infinity where a value comes from no pixel. None: every unit sees the whole image.
        jump: pixels from one unit to the next, down and across; None where a single position is left.
    """

    extent: Extent | None
    jump: Jump | None

    @property
    def side(self) -> int | None:
        """The side in pixels of the largest square that a unit sees; None is the whole image."""
        if self.extent is None:
            return None
        top, bottom, left, right = (unexpand(bound) for bound in self.extent)
        return max(0, int(torch.maximum(top + bottom, left + right).max().clamp(min=-1)) + 1)


@dataclass(frozen=True)
class Operation:
    """One call of an ATen operator, and what the units of its inputs see."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: Sequence[Tensor]
    fields: Sequence[ReceptiveField]  # of the inputs
    outputs: Sequence[Tensor]
    image_bounds: Sequence[int]  # the extent of a unit that sees the image from edge to edge

    @property
    def name(self) -> str:
        """The operator's name, the same with and without ``_`` at its end."""
        return str(self.func.overloadpacket.__name__).rstrip("_")

    @property
    def shape(self) -> torch.Size:
        """The shape of the first result."""
        return self.outputs[0].shape

    @property
    def extents(self) -> list[Extent]:
        """The extents of the inputs that do not see the whole image."""
        return [field.extent for field in self.fields if field.extent is not None]

    @property
    def jump(self) -> Jump | None:
        """The largest jump of the inputs."""
        jumps = [field.jump for field in self.fields if field.jump is not None]
        return (max(j[ROWS] for j in jumps), max(j[COLUMNS] for j in jumps)) if jumps else None

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the operator's schema."""
        names = [argument.name for argument in self.func._schema.arguments]
        return {**dict(zip(names, self.args, strict=False)), **self.kwargs}.get(name, default)


def unexpand(bound: Tensor) -> Tensor:
    """Return a tensor of an extent without the dimensions along which it was expanded, for example over channels."""
    return bound[tuple(slice(None if stride else 1) for stride in bound.stride())]


def join_extents(extents: Sequence[Sequence[Tensor]], shape: Sequence[int]) -> Extent:
    """Return the smallest extent that contains all ``extents``, element by element, expanded to ``shape``."""
    return tuple(reduce(torch.maximum, bounds).expand(shape) for bounds in zip(*extents, strict=True))


def join_matrix_product(left: Tensor, right: Tensor) -> Tensor:
    """Return one bound of the product of two matrices, each element joined from a row and a column."""
    return torch.maximum(unexpand(left).amax(-1, keepdim=True), unexpand(right).amax(-2, keepdim=True))


def varies_along(extent: Sequence[Tensor], axis: int, dim: int) -> bool:
    """Return whether positions along ``dim`` are rows (or columns) of the image."""
    bound = extent[2 * axis + 1]
    return bool((bound.select(dim, 0) != bound.select(dim, -1)).any())


def multiply_jump(jump: Jump | None, stride: tuple[int, int]) -> Jump | None:
    """Return the jump after a layer with this stride."""
    return (jump[ROWS] * stride[ROWS], jump[COLUMNS] * stride[COLUMNS]) if jump else None
