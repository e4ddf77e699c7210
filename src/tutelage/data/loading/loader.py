"""A DataLoader that never waits for ever: a batch that cannot be sent is an error, and a long wait can be stopped."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from tutelage.data.loading.workers import kill_workers, lost_worker, shared_memory_errors, start_worker
from tutelage.waiting import OnWait, WaitLines

POLL_SECONDS = 1.0  # between two looks whether to go on waiting for a worker's batch
TIMED_OUT = "DataLoader timed out"  # begins torch's message


class Loader(DataLoader[Any]):
    """A DataLoader whose items are whole batches.

    torch moves a worker's batch to shared memory in a thread that drops it where there is no room, and the loader waits
    for it for ever. Here the worker does it itself, so that its error arrives as those of the dataset do.
    """

    def __init__(self, dataset: Dataset[Any], workers: int, on_wait: OnWait | None = None, **options: Any) -> None:
        """Make a loader of a dataset's items.

        Args:
            dataset: its items are batches.
            workers: processes that make them; 0 for this one.
            on_wait: called every second in which no batch comes; may raise to stop.
            options: torch's.
        """
        if workers:
            options |= {"collate_fn": share_batch, "worker_init_fn": start_worker}
        super().__init__(dataset, batch_size=None, num_workers=workers, **options)
        self._on_wait = on_wait or WaitLines()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if self._iterator is not None:
            self._iterator._timeout = 0  # torch could not go on where workers that stay time out as a pass begins
        with shared_memory_errors():
            batches: Any = super().__iter__()
        if not self.num_workers:
            return batches  # type: ignore[no-any-return]
        batches._timeout = POLL_SECONDS
        return self._wait_for_batches(batches)

    def _wait_for_batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield batches as they come; they go on after torch's error of a time-out."""
        since = time.monotonic()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if not str(error).startswith(TIMED_OUT) or _has_lost_thread(batches):
                    raise
                self._wait(time.monotonic() - since)
                continue
            except (ConnectionError, EOFError) as error:  # a batch lies in the memory of a worker that is gone
                kill_workers()
                raise lost_worker(f"{type(error).__name__}: {error}") from error
            yield batch
            since = time.monotonic()

    def _wait(self, seconds: float) -> None:
        try:
            self._on_wait("a batch from the loader's workers, which read and augment images", seconds)
        except BaseException:
            kill_workers()  # torch would wait for each of them
            raise


def _has_lost_thread(batches: Any) -> bool:
    """Return whether torch's thread that pins batches has ended, which torch does not look at before a time-out."""
    thread = getattr(batches, "_pin_memory_thread", None)
    return thread is not None and not thread.is_alive()


def share_batch(batch: Any) -> Any:
    """Return a batch in shared memory.

    Raises:
        UserError: there is no room.
    """
    with shared_memory_errors():
        return map_tensors(batch, _share)


def _share(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.share_memory_() if tensor.untyped_storage().nbytes() else tensor  # type: ignore[no-untyped-call]


def map_tensors(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a batch, made of dicts and named tuples of tensors, with ``change`` applied to each tensor."""
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {name: map_tensors(part, change) for name, part in batch.items()}
    if isinstance(batch, tuple):
        return type(batch)(*(map_tensors(part, change) for part in batch))
    return batch
