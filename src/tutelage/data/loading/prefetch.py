"""A loader whose next batch is on its way to the GPU while the current one is computed with."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


class PrefetchLoader(DataLoader[Any]):
    """A DataLoader of pinned batches that gives them on a CUDA device.

    Batches are copied on a stream of their own, one step ahead. Which batches come, in which order, and how many, is
    the DataLoader's own business; the one that was fetched ahead when training stops is made again when it goes on.
    """

    def __init__(self, dataset: Dataset[Any], device: torch.device, **options: Any) -> None:
        super().__init__(dataset, pin_memory=True, **options)
        self._device = device

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        device, copies = self._device, torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        batches = super().__iter__()

        def sent() -> Any:
            batch = next(batches, None)
            with torch.cuda.stream(copies):
                return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))

        coming = sent()
        while coming is not None:
            computes = torch.cuda.current_stream(device)
            computes.wait_stream(copies)  # the batch is whole before it is computed with
            batch = map_tensors(coming, partial(_used_by, computes))
            coming = sent()
            yield batch


def _used_by(stream: torch.cuda.Stream, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose memory is not given to another batch before the stream is done with it."""
    tensor.record_stream(stream)
    return tensor


def map_tensors(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a batch, of dicts and named tuples of tensors, with each tensor changed."""
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {name: map_tensors(part, change) for name, part in batch.items()}
    if isinstance(batch, tuple):
        return type(batch)(*(map_tensors(part, change) for part in batch))
    return batch
