"""An Albumentations pipeline whose every view is a function of its draw."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tutelage.errors import UserError
from tutelage.randomness import Key, Rekeyed
from tutelage.targets import build

CHECKED_DRAWS = 8


class Pipeline:
    """Albumentations transforms that are set to a draw before each image."""

    def __init__(self, transforms: Sequence[Mapping[str, Any]], key: Key) -> None:
        """Build the transforms of an ``augmentation`` config.

        Raises:
            UserError: a transform is unknown or refuses its arguments.
        """
        from tutelage.augmentation.library import albumentations

        self._draw = Rekeyed(key, "augment")
        self._compose = None
        if transforms:
            self._compose = albumentations.Compose(
                [
                    build(transform, albumentations.BasicTransform, f"augmentation.transforms[{place}]")
                    for place, transform in enumerate(transforms)
                ]
            )
            self._compose.set_random_state(self._draw.numpy, self._draw.python)

    def __call__(self, image: np.ndarray, pass_: int, index: int, copy: int = 0) -> np.ndarray:
        """Return the view (H, W, C) uint8 of ``image`` (H, W, C) uint8 at the draw (pass, index, copy)."""
        if self._compose is None:
            return image
        self._draw.at(pass_, index, copy)
        view: np.ndarray = self._compose(image=image)["image"]
        return view.reshape(*view.shape[:2], -1)

    def check(self, image: np.ndarray) -> None:
        """Raise a UserError unless views of ``image`` have its shape and type and follow from their draws alone."""
        view = self(image, 0, 0)
        if view.shape != image.shape or view.dtype != np.uint8:
            raise UserError(
                f"augmentation.transforms: an image {image.shape} uint8 came out as {view.shape} {view.dtype}; "
                "end the list with a transform that gives the size back, such as albumentations.Resize"
            )
        for place, transform in enumerate(self._compose.transforms if self._compose else ()):
            if not self._repeats(transform, image):
                raise UserError(
                    f"augmentation.transforms[{place}]: {type(transform).__name__} draws from a source of its own, so "
                    "that its views cannot be made again; draw from self.py_random or self.random_generator"
                )

    def _repeats(self, transform: Any, image: np.ndarray) -> bool:
        """Return whether a transform gives the same for the same draw, each of a few times."""
        views = []
        for draw in (*range(CHECKED_DRAWS), *range(CHECKED_DRAWS)):
            self._draw.at(0, draw, 0)
            views.append(transform(image=image)["image"])
        return all(np.array_equal(a, b) for a, b in zip(views[:CHECKED_DRAWS], views[CHECKED_DRAWS:], strict=True))
