"""The part of the image that a unit of any layer sees, found by following a forward pass operation by operation.

Formulas over kernels and strides need a list of layers; this follows the operations that are really done, attention
included.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from tutelage.explain.receptive_field import BOUNDS, PLANE, Operation, ReceptiveField
from tutelage.explain.receptive_field_rules import list_tensors, propagate


class ReceptiveFieldTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode under which ``get_field(tensor)`` returns what the units of a tensor computed from ``image`` see.

    The image is (B, C, H, W). Every unit carries the first and the last row and column that it depends on. A
    convolution or pooling joins those of its window, arithmetic those of its operands, a matrix product, a softmax or a
    mean those that it sums over; views, slices and concatenations move them. Units that have joined everything that was
    left see the whole image, and so do the results of operations that have no rule here. Normalisations are assumed not
    to widen what is seen.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        height, width = image.shape[-PLANE:]
        rows = torch.arange(height, dtype=torch.float32, device="cpu").view(height, 1).expand(image.shape)
        columns = torch.arange(width, dtype=torch.float32, device="cpu").expand(image.shape)
        self._image_bounds = (0, height - 1, 0, width - 1)
        self._fields = WeakTensorKeyDictionary()
        self._fields[image] = ReceptiveField((-rows, rows, -columns, columns), (1, 1))

    def get_field(self, tensor: Tensor) -> ReceptiveField:
        """Return what the units of ``tensor`` see."""
        nothing = (torch.full((), -math.inf, device="cpu").expand(tensor.shape),) * len(BOUNDS)
        field: ReceptiveField = self._fields[tensor] if tensor in self._fields else ReceptiveField(nothing, None)
        return field

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and store what the units of its results see."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs, outputs = list_tensors((args, kwargs)), list_tensors(result)
        if outputs and any(tensor in self._fields for tensor in inputs):
            fields = [self.get_field(tensor) for tensor in inputs]
            operation = Operation(func, args, kwargs, inputs, fields, outputs, self._image_bounds)
            for output, field in zip(outputs, propagate(operation), strict=False):
                self._fields[output] = field
        return result
