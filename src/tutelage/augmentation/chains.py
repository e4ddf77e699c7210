"""Chains of operations applied to images, where operations next to each other are merged as far as nothing changes.

Where an operation needs a table, the table is held back, and the following operations that only look up values change
the table, not the pixels. Operations that move pixels are affine maps; maps next to each other are merged where the
image is sampled at the nearest pixel and no pixel that has left the image would come back.
"""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from tutelage.augmentation.geometry import AffineMap, merge_maps
from tutelage.augmentation.operations import (
    EQUALIZE,
    Operation,
    OperationSettings,
    make_equalize_tables,
    make_move,
    make_operation,
)

CACHED_OPERATIONS = 4096

Chain = Sequence[tuple[str, float]]  # the name and the strength of each operation

_DEFAULT = OperationSettings()
_cached_operation = lru_cache(maxsize=CACHED_OPERATIONS)(make_operation)


def apply_chain(image: np.ndarray, chain: Chain, settings: OperationSettings = _DEFAULT) -> np.ndarray:
    """Return an image (H, W, 1 or 3) uint8 after operations in sequence.

    Args:
        image: may be what is returned, but is never written to.
        chain: names of ``OPERATIONS``, each with a strength from 0 to 1, or from -1 to 1 for those in ``SIGNED``.
        settings: of all operations.
    """
    return apply_chains([image], [chain], settings)[0]


def apply_chains(
    images: Sequence[np.ndarray], chains: Sequence[Chain], settings: OperationSettings = _DEFAULT
) -> list[np.ndarray]:
    """Return images of one shape, each after its own chain of operations (see ``apply_chain``).

    An operation that several images have at the same position of their chains is prepared once for all of them.
    """
    shape = images[0].shape
    batch = _BatchInProgress(list(images), settings, shape)
    for position in range(max(map(len, chains))):
        groups: dict[tuple[str, float], list[int]] = {}
        for number, chain in enumerate(chains):
            if position < len(chain):
                groups.setdefault(chain[position], []).append(number)
        for (name, strength), numbers in groups.items():
            batch.apply(_cached_operation(name, strength, settings, *shape), numbers)
    return batch.finish()


@lru_cache(maxsize=CACHED_OPERATIONS)
def _merge_moves(
    first: AffineMap, second: AffineMap, settings: OperationSettings, height: int, width: int
) -> Operation | None:
    """Return two moves as one, or None where the result would differ."""
    if settings.interpolation != "nearest" and not (first.is_whole_pixel_shift and second.is_whole_pixel_shift):
        return None  # an image that is sampled twice is smoother
    merged = merge_maps(first, second, height, width)
    return None if merged is None else make_move(merged, settings, height, width)


class _BatchInProgress:
    """Images between two operations of their chains.

    For each image a table or a move may be pending, until the next operation needs its pixels.
    """

    def __init__(self, images: list[np.ndarray], settings: OperationSettings, shape: tuple[int, ...]) -> None:
        self._images = images
        self._settings = settings
        self._shape = shape
        self._tables: dict[int, np.ndarray] = {}
        self._moves: dict[int, Operation] = {}

    def apply(self, operation: Operation, numbers: list[int]) -> None:
        """Apply an operation to the images with these numbers, at once or by a pending table or move."""
        if self._tables:
            numbers = [n for n in numbers if not self._merge_into_table(n, operation)]
        if operation.affine_map is not None:
            for n in numbers:
                self._moves[n] = self._merge_with_move(n, operation) if n in self._moves else operation
            return
        if self._moves:
            for n in numbers:
                self._apply_move(n)
        images = self._images
        if operation is EQUALIZE and numbers:
            self._tables |= dict(zip(numbers, make_equalize_tables([images[n] for n in numbers]), strict=True))
        else:
            for n in numbers:
                images[n] = operation.apply(images[n])

    def finish(self) -> list[np.ndarray]:
        """Apply all pending tables and moves and return the images."""
        for n in list(self._tables):
            self._apply_table(n)
        for n in list(self._moves):
            self._apply_move(n)
        return self._images

    def _merge_into_table(self, n: int, operation: Operation) -> bool:
        """Apply an operation to the pending table of an image; return whether that was possible.

        A table that the operation cannot be merged into is applied to the pixels.
        """
        if n not in self._tables:
            return False
        if operation.is_lookup:
            self._tables[n] = operation.apply(self._tables[n])
            return True
        self._apply_table(n)
        return False

    def _apply_table(self, n: int) -> None:
        self._images[n] = cv2.LUT(self._images[n], self._tables.pop(n)).reshape(self._shape)

    def _apply_move(self, n: int) -> None:
        if n in self._moves:
            self._images[n] = self._moves.pop(n).apply(self._images[n])

    def _merge_with_move(self, n: int, second: Operation) -> Operation:
        """Return the pending move merged with a second one; where they cannot be merged, apply the first."""
        first = self._moves[n].affine_map or AffineMap()
        merged = _merge_moves(first, second.affine_map or AffineMap(), self._settings, *self._shape[:2])
        if merged is None:
            self._apply_move(n)
        return merged or second
