"""An Albumentations pipeline whose every view is a function of its draw."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from tutelage.augmentation.crop import NUMBERS, Picture, RandomResizedCrop, cut, draw_boxes
from tutelage.augmentation.library import albumentations
from tutelage.augmentation.operations import RGB, operate_all
from tutelage.augmentation.randaugment import RandAugment, TrivialAugment
from tutelage.config.targets import build
from tutelage.errors import UserError
from tutelage.randomness import Key, Numbers, Rekeyed

CHECKED_DRAWS = 8
CHUNK_BYTES = 1 << 19  # of views under way, so that they stay in a core's cache
CROPS = {RandomResizedCrop, albumentations.RandomResizedCrop}


class Pipeline:
    """Transforms that are set to a draw before each image, for a whole batch at a time.

    Ours and the commonest of Albumentations' draw for the whole batch at once and work without the bookkeeping of its
    calls, which takes longer than a flip of a small image. Every other transform is called image by image, with
    generators of its own set to the image's draw.
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
        self._stages = [_Stage(one, key, f"transforms[{place}]") for place, one in enumerate(transforms)]
        self._strong_stages = [_Stage(one, key, f"strong[{place}]") for place, one in enumerate(strong)]
        opens: Any = self._stages[0].transform if self._stages else None
        self.takes_any_size = type(opens) in CROPS and opens.p == 1
        self._crop = opens if self.takes_any_size else None
        self._draw = Numbers(key, "augment")
        self._numbers = NUMBERS if self.takes_any_size else 0
        for stage in self._stages + self._strong_stages:
            self._numbers = stage.take_numbers(self._numbers)
        self.views = 2 if strong else 1

    def fill(self, out: np.ndarray, images: Sequence[np.ndarray | Picture], draws: np.ndarray) -> None:
        """Write the views of a batch into ``out`` (views, B, H, W, C) uint8.

        Args:
            out: what is filled.
            images: B images (H, W, C) uint8; pictures and images of other sizes are for pipelines that take any.
            draws: (B, 3) int64, pass, index and copy of each.
        """
        places = [list(one) for one in out]
        for part, views in self._run(images, draws, max(1, CHUNK_BYTES // places[0][0].nbytes), places[0]):
            for own, targets in zip(views, places, strict=True):
                for view, target in zip(own, targets[part], strict=True):
                    if view is not target:
                        target[:] = view

    def __call__(self, image: np.ndarray | Picture, pass_: int, index: int, copy: int = 0) -> np.ndarray:
        """Return the first view (H, W, C) uint8 of ``image`` at the draw (pass, index, copy)."""
        ((_, views),) = self._run([image], np.array([(pass_, index, copy)]))
        return views[0][0]

    def _run(
        self,
        images: Sequence[np.ndarray | Picture],
        draws: np.ndarray,
        chunk: int = 1,
        places: Sequence[np.ndarray | None] = (None,),
    ) -> Iterator[tuple[slice, list[list[np.ndarray]]]]:
        """Yield the first views, and the second ones where there are any, of ``chunk`` images after another.

        What happens to each image is drawn for all of them at once. A first view may lie in its place already.
        """
        numbers = self._draw.of(draws, self._numbers)
        if self._crop is not None:
            boxes = draw_boxes(self._crop, [image.shape for image in images], numbers[:, :NUMBERS])
        stages = [self._stages[self.takes_any_size :], self._strong_stages][: self.views]
        plans = [[stage.plan(numbers) for stage in each] for each in stages]
        for first in range(0, len(images), chunk):
            part = slice(first, first + chunk)
            if self._crop is not None:
                given = zip(images[part], boxes[part], places[part], strict=True)
                views = [cut(self._crop, image, box, place) for image, box, place in given]
            else:
                views = [image if isinstance(image, np.ndarray) else image.read() for image in images[part]]
            found = []
            for each, planned in zip(stages, plans, strict=True):
                for stage, plan in zip(each, planned, strict=True):
                    views = stage(views, plan[part], draws[part])
                found.append(views)
            yield part, found

    def check(self, image: np.ndarray) -> None:
        """Raise a UserError unless views of ``image`` have its shape and type and follow from their draws alone."""
        draws = np.array([(0, index, 0) for index in range(CHECKED_DRAWS)])
        ((_, views),) = self._run([image], draws[:1])
        for name, (view,) in zip(("transforms", "strong"), views, strict=False):
            if view.dtype != np.uint8:
                raise UserError(
                    f"augmentation.{name}: an image of uint8 came out as {view.dtype}; leave out Normalize and "
                    "ToTensorV2, images are normalised on the device"
                )
            if view.shape != image.shape:
                raise UserError(
                    f"augmentation.{name}: an image {image.shape} came out as {tuple(view.shape)}; end the list with a "
                    "transform that gives the size back, such as albumentations.Resize"
                )
        twin = Pipeline(*self._config)  # as a worker, or a run that resumes, builds it
        images, stages = [image] * CHECKED_DRAWS, (each._stages + each._strong_stages for each in (self, twin))
        for stage, again in zip(*stages, strict=True):
            ours, theirs = stage.called(images, draws), again.called(images, draws[::-1])
            if not all(map(np.array_equal, ours, theirs[::-1])):
                raise UserError(
                    f"augmentation.{stage.place}: {stage.name} draws from a source of its own, so that its views "
                    "cannot be made again; draw from self.py_random or self.random_generator"
                )


class _Stage:
    """One transform of a pipeline."""

    def __init__(self, config: Mapping[str, Any], key: Key, place: str) -> None:
        self.transform = transform = _built(config, f"augmentation.{place}")
        self._draw = Rekeyed(key, f"augment {place}")
        transform.set_random_state(self._draw.numpy, self._draw.python)
        self.place = place
        self.name = type(transform).__name__
        self._flips = type(transform) is albumentations.HorizontalFlip
        self._operates = type(transform) in {RandAugment, TrivialAugment}
        self._numbers = slice(0, 0)

    def take_numbers(self, first: int) -> int:
        """Take as many numbers of a draw as the transform needs, from ``first`` on; return which is the next."""
        count = 1 + (self.transform.numbers if self._operates else 0) if self._flips or self._operates else 0
        self._numbers = slice(first, first + count)
        return self._numbers.stop

    def plan(self, numbers: np.ndarray) -> Sequence[Any]:
        """Return what happens to each image, from the numbers (B, N) float64 in [0, 1) of its draw."""
        own = numbers[:, self._numbers]
        if not own.shape[1]:
            return [None] * len(numbers)
        fires: list[bool] = (own[:, 0] < self.transform.p).tolist()
        if self._flips:
            return fires
        return [chain if f else [] for f, chain in zip(fires, self.transform.chains(own[:, 1:]), strict=True)]

    def __call__(self, images: list[np.ndarray], plan: Sequence[Any], draws: np.ndarray) -> list[np.ndarray]:
        """Return a view of each image."""
        if self._flips:
            return [cv2.flip(i, 1).reshape(i.shape) if f else i for i, f in zip(images, plan, strict=True)]
        if self._operates and len({image.shape for image in images}) == 1 and images[0].shape[-1] <= RGB:
            return operate_all(images, plan, self.transform.look)
        if self._operates:
            return [self.transform.apply(image, steps) for image, steps in zip(images, plan, strict=True)]
        return self.called(images, draws)

    def called(self, images: Sequence[np.ndarray], draws: np.ndarray) -> list[np.ndarray]:
        """Return what the transform, called as Albumentations does, makes of each image at its draw."""
        views = []
        for image, draw in zip(images, draws.tolist(), strict=True):
            self._draw.at(*draw)
            view = self.transform(image=image.copy())["image"]  # it may write where it reads
            views.append(view if view.ndim == RGB else view.reshape(*view.shape[:2], -1))
        return views


def _built(config: Mapping[str, Any], key: str) -> Any:
    """Return a transform, or a composition (OneOf, SomeOf, Sequential ...) of the transforms that it lists."""
    if not isinstance(inner := config.get("transforms"), Sequence):
        return build(config, albumentations.BasicTransform, key)
    parts = [_built(one, f"{key}.transforms[{place}]") for place, one in enumerate(inner)]
    return build({**config, "transforms": parts}, albumentations.BaseCompose, key)
