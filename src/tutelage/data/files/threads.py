"""Reading of many files in threads, with progress, and with an end as soon as it is not wanted any more."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TypeVar

from tutelage.data.loading.shared_memory import count_cores

FILES_A_TASK = 64
SECONDS_BETWEEN_REPORTS = 0.1  # of progress, while no task finishes

Tick = Callable[[int], None]  # to be called with the number of bytes that were read; raises to stop
Result = TypeVar("Result")


class _Stopped(Exception):  # noqa: N818 - names the event
    """The work is not wanted any more."""


class _Counter:
    """Counts the bytes that threads have read, and stops the threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bytes = 0
        self.is_stopped = False

    def tick(self, count: int) -> None:
        """Count bytes; raise to end a thread whose work is not wanted any more."""
        if self.is_stopped:
            raise _Stopped
        with self._lock:
            self.bytes += count


def read_in_threads(
    read: Callable[[int, Tick], Result], numbers: Sequence[int], on_bytes: Callable[[int], None]
) -> Iterator[list[tuple[int, Result]]]:
    """Yield numbers with what ``read`` returned for them, some at a time, as tasks finish.

    Threads rather than processes: reading, SHA-256 and decoders release the GIL, and nothing has to be imported again.

    Args:
        read: reads a number's file.
        numbers: the numbers.
        on_bytes: called here, not in a thread, with the number of bytes that are read so far; may raise to stop.
    """
    counter, finished = _Counter(), SimpleQueue[Future[list[tuple[int, Result]]]]()

    def read_task(task: Sequence[int]) -> list[tuple[int, Result]]:
        return [(number, read(number, counter.tick)) for number in task]

    tasks = [numbers[start : start + FILES_A_TASK] for start in range(0, len(numbers), FILES_A_TASK)]
    executor = ThreadPoolExecutor(count_cores())
    try:
        for task in tasks:
            executor.submit(read_task, task).add_done_callback(finished.put)
        left = len(tasks)
        while left:
            try:
                results = finished.get(timeout=SECONDS_BETWEEN_REPORTS).result()
                left -= 1
                yield results
            except Empty:
                pass
            on_bytes(counter.bytes)
    finally:
        counter.is_stopped = True
        executor.shutdown(cancel_futures=True)
