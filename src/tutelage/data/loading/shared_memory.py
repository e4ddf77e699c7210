"""Arrays and lists of texts that all workers of a loader share without copies, however they were started.

``torch.Tensor.share_memory_`` serves arrays in memory; a memory-mapped array is sent as the name of its file instead.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tutelage.data.loading.workers import shared_memory_errors


def count_cores() -> int:
    """Return the number of cores that this process may use, by its affinity and its container's quota."""
    import joblib

    return int(joblib.cpu_count())


class SharedArray:
    """An array that processes share.

    A forked worker has the parent's array. A worker that is started anew (spawn, forkserver) gets a handle: the name of
    the file that the array maps, or shared memory, to which the array moves when the first worker is started.

    Attributes:
        array: the array; read only.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self._tensor: Any = None  # torch's, in shared memory

    def __getstate__(self) -> dict[str, Any]:
        file_view = _describe_file_view(self.array)
        if file_view is not None:
            return {"file_view": file_view}
        if self._tensor is None:
            import torch

            dtype = torch.from_numpy(np.empty(0, self.array.dtype)).dtype
            with shared_memory_errors():
                self._tensor = torch.empty(self.array.shape, dtype=dtype).share_memory_()  # type: ignore[no-untyped-call]
            self._tensor.numpy()[...] = self.array
            self.array = self._tensor.numpy()
        return {"tensor": self._tensor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._tensor = state.get("tensor")
        self.array = _open_file_view(*state["file_view"]) if self._tensor is None else self._tensor.numpy()


def _describe_file_view(array: np.ndarray) -> tuple[Any, ...] | None:
    """Return the arguments with which ``_open_file_view`` opens the same view; None where the array maps no file."""
    if not isinstance(array, np.memmap) or array.filename is None or not array.size:
        return None
    whole = array
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    start = array.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return array.filename, array.mode, whole.offset, whole.nbytes, start, array.dtype, array.shape, array.strides


def _open_file_view(
    file: Any, mode: Any, offset: int, size: int, start: int, dtype: Any, shape: Sequence[int], strides: Sequence[int]
) -> np.ndarray:
    """Return an array over the bytes of a file that begin at ``offset`` + ``start``."""
    whole = np.memmap(file, dtype=np.uint8, mode=mode, offset=offset, shape=(size,))
    return np.ndarray(tuple(shape), dtype, buffer=whole.data, offset=start, strides=tuple(strides))


class SharedTexts(Sequence[str]):
    """Many texts in one piece of memory.

    Reading an element of a list writes to its reference count, so that each forked worker ends with a copy of the list;
    for the paths of a million images that is 100 MB. No list of them is made while they are gathered, either.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        joined, ends = bytearray(), array("q", [0])
        for text in texts:
            joined += text.encode(errors="surrogateescape")
            ends.append(len(joined))
        self._bytes = SharedArray(np.frombuffer(joined, dtype=np.uint8))
        self._ends = SharedArray(np.frombuffer(ends, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ends.array) - 1

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        start, end = self._ends.array[number : number + 2]
        return self._bytes.array[start:end].tobytes().decode(errors="surrogateescape")
