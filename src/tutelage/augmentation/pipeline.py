"""An Albumentations pipeline in which every view is a function of its draw.

It replaces albumentations.Compose, whose random state depends on the images before: here the generators of each
transform are set to (pass, index, copy) before each image, and the commonest transforms work on a whole batch at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from tutelage.augmentation.chains import apply_chains
from tutelage.augmentation.crop import NUMBERS_PER_CROP, Picture, RandomResizedCrop, crop_and_resize, draw_boxes
from tutelage.augmentation.library import albumentations
from tutelage.augmentation.operations import RGB
from tutelage.augmentation.randaugment import RandAugment, TrivialAugment
from tutelage.config.targets import build
from tutelage.errors import UserError
from tutelage.randomness import Key, Numbers, SeekableGenerators

CHECKED_DRAWS = 8
CHUNK_BYTES = 1 << 19  # of the views that are made together, so that they stay in a core's cache
CROPS = {RandomResizedCrop, albumentations.RandomResizedCrop}


class Pipeline:
    """A list of transforms that makes the views of a whole batch, each a function of its draw.

    Our transforms and the commonest of Albumentations' draw for the whole batch at once and skip the overhead of
    Albumentations' calls, which takes longer than a flip of a small image. Every other transform is called image by
    image, with its own generators set to the image's draw.
    """

    def __init__(
        self, transforms: Sequence[Mapping[str, Any]], key: Key, strong: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Build the transforms of an ``augmentation`` config.

        Args:
            transforms: the transforms of the first view, each with its ``_target_``.
            key: of the draws.
            strong: transforms that make a second view out of the first; none for one view.

        Raises:
            UserError: a transform is unknown or refuses its arguments.
        """
        self._config = (transforms, key, strong)
        self._transforms = [_KeyedTransform(c, key, f"transforms[{n}]") for n, c in enumerate(transforms)]
        self._strong_transforms = [_KeyedTransform(c, key, f"strong[{n}]") for n, c in enumerate(strong)]
        first: Any = self._transforms[0].transform if self._transforms else None
        self.takes_any_size = type(first) in CROPS and first.p == 1
        self._crop = first if self.takes_any_size else None
        self._numbers = Numbers(key, "augment")
        self._number_count = NUMBERS_PER_CROP if self.takes_any_size else 0
        for transform in self._transforms + self._strong_transforms:
            self._number_count = transform.reserve_numbers(self._number_count)
        self.views = 2 if strong else 1

    def fill(self, out: np.ndarray, images: Sequence[np.ndarray | Picture], draws: np.ndarray) -> None:
        """Write the views of a batch into ``out`` (views, B, H, W, C) uint8.

        Args:
            out: the array to fill.
            images: B images (H, W, C) uint8; pictures and images of other sizes only if ``takes_any_size``.
            draws: (B, 3) int64, pass, index and copy of each.
        """
        rows = [list(view) for view in out]
        for part, views in self._make_views(images, draws, max(1, CHUNK_BYTES // rows[0][0].nbytes), rows[0]):
            for images_of_view, rows_of_view in zip(views, rows, strict=True):
                for image, row in zip(images_of_view, rows_of_view[part], strict=True):
                    if image is not row:
                        row[:] = image

    def __call__(self, image: np.ndarray | Picture, pass_: int, index: int, copy: int = 0) -> np.ndarray:
        """Return the first view (H, W, C) uint8 of ``image`` at the draw (pass, index, copy)."""
        ((_, views),) = self._make_views([image], np.array([(pass_, index, copy)]))
        return views[0][0]

    def _make_views(
        self,
        images: Sequence[np.ndarray | Picture],
        draws: np.ndarray,
        chunk: int = 1,
        rows: Sequence[np.ndarray | None] = (None,),
    ) -> Iterator[tuple[slice, list[list[np.ndarray]]]]:
        """Yield the first views, and the second ones where there are any, of ``chunk`` images after another.

        The random choices are made for all images at once. A first view may have been written to its row already.
        """
        numbers = self._numbers.draw(draws, self._number_count)
        if self._crop is not None:
            boxes = draw_boxes(self._crop, [image.shape for image in images], numbers[:, :NUMBERS_PER_CROP])
        transforms_by_view = [self._transforms[self.takes_any_size :], self._strong_transforms][: self.views]
        choices_by_view = [[transform.choose(numbers) for transform in group] for group in transforms_by_view]
        for first in range(0, len(images), chunk):
            part = slice(first, first + chunk)
            if self._crop is not None:
                crops = zip(images[part], boxes[part], rows[part], strict=True)
                views = [crop_and_resize(self._crop, image, box, row) for image, box, row in crops]
            else:
                views = [image if isinstance(image, np.ndarray) else image.read() for image in images[part]]
            all_views = []
            for transforms, choices in zip(transforms_by_view, choices_by_view, strict=True):
                for transform, choice in zip(transforms, choices, strict=True):
                    views = transform(views, choice[part], draws[part])
                all_views.append(views)
            yield part, all_views

    def check(self, image: np.ndarray) -> None:
        """Check that views of ``image`` have its shape and type and are functions of their draws alone.

        Raises:
            UserError: they are not.
        """
        draws = np.array([(0, index, 0) for index in range(CHECKED_DRAWS)])
        ((_, views),) = self._make_views([image], draws[:1])
        for name, (view,) in zip(("transforms", "strong"), views, strict=False):
            if view.dtype != np.uint8:
                raise UserError(
                    f"augmentation.{name}: a uint8 image came out as {view.dtype}; leave out Normalize and "
                    "ToTensorV2, images are normalised on the device"
                )
            if view.shape != image.shape:
                raise UserError(
                    f"augmentation.{name}: an image {image.shape} came out as {tuple(view.shape)}; end the list with a "
                    "transform that restores the size, such as albumentations.Resize"
                )
        rebuilt = Pipeline(*self._config)  # as a worker, or a run that resumes, builds it
        transforms, transforms_again = (p._transforms + p._strong_transforms for p in (self, rebuilt))
        images = [image] * CHECKED_DRAWS
        for transform, again in zip(transforms, transforms_again, strict=True):
            results, results_again = transform.call(images, draws), again.call(images, draws[::-1])
            if not all(map(np.array_equal, results, results_again[::-1])):
                raise UserError(
                    f"augmentation.{transform.path}: {transform.name} draws from a source of its own, so that its "
                    "views cannot be made again; draw from self.py_random or self.random_generator"
                )


class _KeyedTransform:
    """One transform of a pipeline, with generators that can be set to any draw."""

    def __init__(self, config: Mapping[str, Any], key: Key, path: str) -> None:
        self.transform = transform = _build_transform(config, f"augmentation.{path}")
        self._generators = SeekableGenerators(key, f"augment {path}")
        transform.set_random_state(self._generators.numpy, self._generators.python)
        self.path = path  # in the augmentation config
        self.name = type(transform).__name__
        self._flips = type(transform) is albumentations.HorizontalFlip
        self._has_chains = type(transform) in {RandAugment, TrivialAugment}
        self._columns = slice(0, 0)

    def reserve_numbers(self, first: int) -> int:
        """Reserve as many columns of random numbers as the transform needs, from ``first`` on; return the next one."""
        count = 1 + (self.transform.number_count if self._has_chains else 0) if self._flips or self._has_chains else 0
        self._columns = slice(first, first + count)
        return self._columns.stop

    def choose(self, numbers: np.ndarray) -> Sequence[Any]:
        """Return a flip (bool), a chain or None for each image, from the random numbers (B, N) float64 in [0, 1)."""
        numbers = numbers[:, self._columns]
        if not numbers.shape[1]:
            return [None] * len(numbers)
        fires: list[bool] = (numbers[:, 0] < self.transform.p).tolist()
        if self._flips:
            return fires
        return [
            chain if f else [] for f, chain in zip(fires, self.transform.choose_chains(numbers[:, 1:]), strict=True)
        ]

    def __call__(self, images: list[np.ndarray], choices: Sequence[Any], draws: np.ndarray) -> list[np.ndarray]:
        """Return a view of each image, by its choice (see ``choose``) or its draw (pass, index, copy)."""
        if self._flips:
            return [cv2.flip(i, 1).reshape(i.shape) if f else i for i, f in zip(images, choices, strict=True)]
        if self._has_chains and len({image.shape for image in images}) == 1 and images[0].shape[-1] <= RGB:
            return apply_chains(images, choices, self.transform.settings)
        if self._has_chains:
            return [self.transform.apply(image, chain) for image, chain in zip(images, choices, strict=True)]
        return self.call(images, draws)

    def call(self, images: Sequence[np.ndarray], draws: np.ndarray) -> list[np.ndarray]:
        """Return a view of each image at its draw, by the transform's own call, as Albumentations does it."""
        views = []
        for image, draw in zip(images, draws.tolist(), strict=True):
            self._generators.seek(*draw)
            view = self.transform(image=image.copy())["image"]  # a transform may write to its input
            views.append(view if view.ndim == RGB else view.reshape(*view.shape[:2], -1))
        return views


def _build_transform(config: Mapping[str, Any], key: str) -> Any:
    """Return a transform, or a composition (OneOf, SomeOf, Sequential ...) of the transforms that it lists."""
    if not isinstance(inner := config.get("transforms"), Sequence):
        return build(config, albumentations.BasicTransform, key)
    parts = [_build_transform(c, f"{key}.transforms[{n}]") for n, c in enumerate(inner)]
    return build({**config, "transforms": parts}, albumentations.BaseCompose, key)
