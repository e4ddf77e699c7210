"""The memory that threads may take together for files and pictures."""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

UNCOUNTED = 1024
NOTHING = nullcontext()


class MemoryLimit:
    """A number of bytes that the threads of a process share; one that needs more waits until it would be alone.

    Which thread waits changes no result, only the memory and the time that they take together.
    """

    def __init__(self, size: int) -> None:
        """Take the number of bytes."""
        self._size = size
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # a child has none of its parent's threads

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._held = 0

    def hold(self, size: int) -> AbstractContextManager[None]:
        """Hold some bytes while a block runs, once they fit beside those of others; more than all fit alone.

        Less than a part in ``UNCOUNTED`` of all is not counted: a scan asks for each of its small files.
        """
        return NOTHING if size * UNCOUNTED < self._size else self._hold(size)

    @contextmanager
    def _hold(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + size <= self._size)
            self._held += size
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()


# A thread that holds decoded pictures holds the content of its file already, never the other way round.
DECODED = MemoryLimit(1 << 30)  # of pictures while they are decoded
CONTENTS = MemoryLimit(1 << 29)  # of files while they are examined
