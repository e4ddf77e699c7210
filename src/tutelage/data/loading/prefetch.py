"""A DataLoader that copies the next batch to the GPU while the network computes on the current one.

torch's ``pin_memory=True`` only pins: the copy would start when the batch is needed.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset

from tutelage.data.loading.loader import Loader, map_tensors


class PrefetchLoader(Loader):
    """A loader of pinned batches that yields them on a CUDA device.

    Batches are copied on a CUDA stream of their own, one step ahead. Their order and number are the DataLoader's; the
    batch that was fetched ahead when training stops is made again when it goes on.
    """

    def __init__(self, dataset: Dataset[Any], workers: int, device: torch.device, **options: Any) -> None:
        super().__init__(dataset, workers, pin_memory=True, **options)
        self._device = device

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        device, copy_stream = self._device, torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        batches = super().__iter__()

        def start_copy() -> Any:
            batch = next(batches, None)
            with torch.cuda.stream(copy_stream):
                return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))

        next_batch = start_copy()
        while next_batch is not None:
            compute_stream = torch.cuda.current_stream(device)
            compute_stream.wait_stream(copy_stream)  # the batch is whole before the network reads it
            batch = map_tensors(next_batch, partial(_record_stream, compute_stream))
            next_batch = start_copy()
            yield batch


def _record_stream(stream: torch.cuda.Stream, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose memory no other batch gets before the stream is done with it."""
    tensor.record_stream(stream)
    return tensor
