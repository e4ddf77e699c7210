"""What all workers of a loader share: arrays and lists of texts that no process copies, however it was started."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def count_cores() -> int:
    """Return how many cores this process may use, by its affinity and the quota of its container."""
    import joblib

    return int(joblib.cpu_count())


class SharedArray:
    """An array that processes share.

    A worker that is forked has it from its parent. One that is started anew (spawn, forkserver) is sent a handle: the
    name of the file that the array maps, or shared memory, to which the array moves when the first worker is started.

    Attributes:
        array: the array; not to be written to.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self._tensor: Any = None  # torch's, in shared memory

    def __getstate__(self) -> dict[str, Any]:
        mapped = _mapping(self.array)
        if mapped is not None:
            return {"mapped": mapped}
        if self._tensor is None:
            import torch

            kind = torch.from_numpy(np.empty(0, self.array.dtype)).dtype
            self._tensor = torch.empty(self.array.shape, dtype=kind).share_memory_()  # type: ignore[no-untyped-call]
            self._tensor.numpy()[...] = self.array
            self.array = self._tensor.numpy()
        return {"tensor": self._tensor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._tensor = state.get("tensor")
        self.array = _mapped(*state["mapped"]) if self._tensor is None else self._tensor.numpy()


def _mapping(array: np.ndarray) -> tuple[Any, ...] | None:
    """Return what ``_mapped`` takes for the same view of the same file; None where the array maps none."""
    if not isinstance(array, np.memmap) or array.filename is None or not array.size:
        return None
    whole = array
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    place = array.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return array.filename, array.mode, whole.offset, whole.nbytes, place, array.dtype, array.shape, array.strides


def _mapped(
    file: Any, mode: Any, offset: int, size: int, place: int, dtype: Any, shape: Sequence[int], strides: Sequence[int]
) -> np.ndarray:
    """Return a view of ``size`` bytes of a file from ``offset`` on."""
    whole = np.memmap(file, dtype=np.uint8, mode=mode, offset=offset, shape=(size,))
    return np.ndarray(tuple(shape), dtype, buffer=whole.data, offset=place, strides=tuple(strides))


class SharedTexts(Sequence[str]):
    """Many texts in one piece of memory.

    Reading an element of a list writes to it (it counts who refers to it), so that each worker ends with a list of its
    own, which for the paths of a million images is 100 MB.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode(errors="surrogateescape") for text in texts]
        self._bytes = SharedArray(np.frombuffer(b"".join(encoded), dtype=np.uint8))
        self._ends = SharedArray(np.cumsum([0, *map(len, encoded)]))

    def __len__(self) -> int:
        return len(self._ends.array) - 1

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]
        start, end = self._ends.array[place : place + 2]
        return self._bytes.array[start:end].tobytes().decode(errors="surrogateescape")
