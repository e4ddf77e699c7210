"""What training will draw, as arrays: views pass after pass, single operations, mixed pairs; and how fast.

The pipeline, the key and the indices are those of the labelled images in the strategy's first stage.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from tutelage.augmentation import Mixing, Picture, Pipeline, mixed, plan
from tutelage.config import AugmentationConfig, Config
from tutelage.data import ImageDataModule, Stream, StreamSampler, data_module
from tutelage.data.datasets.download import OnProgress, ignore_progress
from tutelage.randomness import Key
from tutelage.strategies import TrainStage, stages

MAGNITUDES = (0, 5, 10, 15, 20, 25, 30)
MEASURED_SECONDS = 0.5
MEASURED_BATCH, WARM_UP = 64, 8  # images


@dataclass(frozen=True)
class Scene:
    """What there is to show: a config, its data, and the stage and stream whose draws are shown."""

    config: Config
    data: ImageDataModule
    stage: TrainStage
    stream: Stream

    @property
    def key(self) -> Key:
        """The key of the stream's draws, as training makes it."""
        return Key(self.config.seed, self.stage.name, self.stream.name)

    @cached_property
    def pipeline(self) -> Pipeline:
        """What makes a view of an image."""
        return Pipeline(self.augmentation.transforms, self.key, self.augmentation.strong)

    @property
    def augmentation(self) -> AugmentationConfig:
        """What the stage does to images: nothing, where it stores them in one pass."""
        return AugmentationConfig() if self.stage.one_pass else self.config.augmentation

    @property
    def transforms(self) -> list[dict[str, Any]]:
        """The transforms of the first view, and those on top of it."""
        return [*self.augmentation.transforms, *self.augmentation.strong]

    def image(self, index: int) -> np.ndarray:
        """Return an image (H, W, C) uint8 as it is evaluated, at the config's size."""
        return self.data.images[index]

    def stored(self, index: int) -> np.ndarray | Picture:
        """Return what training makes views of: the image, or all that is stored of it where views are crops of that."""
        return self.data.images.picture(index) if self.pipeline.takes_any_size else self.data.images[index]

    def original(self, index: int) -> np.ndarray:
        """Return all pixels (h, w, C) uint8 that views are made of."""
        stored = self.stored(index)
        return stored if isinstance(stored, np.ndarray) else stored.read()


def scene_of(config: Config, tell: OnProgress = ignore_progress) -> Scene:
    """Return what a config shows.

    Args:
        config: of a run.
        tell: is told of long reads.

    Raises:
        UserError: the data is not there, or the pipeline is none that could be trained with.
    """
    data = data_module(config.data)
    data.tell = tell
    augmentation = config.augmentation
    pipeline = Pipeline(augmentation.transforms, Key(0, "check"), augmentation.strong)
    first = next(stage for stage in stages(config, data.source, data.splits) if isinstance(stage, TrainStage))
    pipeline.check(data.source.images[0])
    stream = next(stream for stream in first.streams({}) if stream.name == "labelled")
    return Scene(config, data, first, stream)


def chosen(labels: np.ndarray, indices: np.ndarray, count: int, key: Key) -> np.ndarray:
    """Return up to ``count`` of ``indices`` (n,), drawn by ``key``: one of each class, then a second one of each ..."""
    drawn = key.generator("preview").permutation(indices)
    by_class = np.argsort(labels[drawn], kind="stable")
    in_order = labels[drawn][by_class]
    turn = np.empty(len(drawn), dtype=np.int64)  # how many of its class were drawn before
    turn[by_class] = np.arange(len(drawn)) - np.searchsorted(in_order, in_order)
    first = np.argsort(turn, kind="stable")[:count]
    taken: np.ndarray = drawn[first]
    return taken[np.lexsort((labels[taken], turn[first]))]


def drawn(scene: Scene, passes: int | np.ndarray, indices: np.ndarray, copies: int | np.ndarray = 0) -> np.ndarray:
    """Return the views (V, N, H, W, C) uint8 of images (N,) at their draws, as training makes them."""
    draws = np.stack(np.broadcast_arrays(passes, indices, copies), axis=1)
    data, images = scene.config.data, [scene.stored(int(index)) for index in indices]
    out = np.empty((scene.pipeline.views, len(images), data.image_size, data.image_size, data.channels), dtype=np.uint8)
    scene.pipeline.fill(out, images, draws)
    return out


def views(scene: Scene, indices: np.ndarray, passes: int) -> np.ndarray:
    """Return what training draws of images in its first passes: (passes, V, N, H, W, C) uint8."""
    return np.stack([drawn(scene, pass_, indices) for pass_ in range(passes)])


def magnitudes(transform: Any) -> list[float]:
    """Return the magnitudes to show a transform at: some of the whole scale, and its own where it has one."""
    own = getattr(transform, "magnitude", None)
    return sorted({*MAGNITUDES, *([] if own is None else [own])})


def operations(transform: Any, image: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Return an image under each operation of a transform, alone, at each of ``magnitudes``."""
    return {
        name: [transform.example(image, name, magnitude) for magnitude in magnitudes(transform)]
        for name in transform.operations
    }


class Mixture(NamedTuple):
    """An image, its partner and what comes of the two: (H, W, C) uint8; and what each class weighs."""

    image: np.ndarray
    partner: np.ndarray
    result: np.ndarray
    weights: Mapping[int, float]


def mixtures(scene: Scene, steps: int) -> list[Mixture]:
    """Return a pair of each of the first steps, mixed as in training: neighbours of two classes, if there are any."""
    config, stream, found = scene.augmentation.mix, scene.stream, []
    assert config is not None  # noqa: S101 - otherwise there is nothing to show
    draws, classes = StreamSampler(stream, scene.key), len(scene.data.source.classes)
    for step in range(steps):
        shows = draws.at(step)
        apart = np.flatnonzero(np.diff(stream.targets[shows.entries]))
        pair = slice(apart[0], apart[0] + 2) if len(apart) else slice(2)
        passes, entries, copies = (part[pair] for part in shows)
        images = drawn(scene, passes, stream.indices[entries], copies)[0]
        whole = plan(config, scene.key, step, stream.batch_size, *images.shape[1:3])
        pixels, weights = mixed(
            torch.from_numpy(images).permute(0, 3, 1, 2),
            torch.from_numpy(stream.targets[entries]),
            Mixing(*(part[pair] for part in whole)),
            classes,
        )
        told = {int(label): float(weights[0, label]) for label in stream.targets[entries]}
        found.append(Mixture(images[0], images[-1], pixels[0].permute(1, 2, 0).numpy(), told))
    return found


def speed(scene: Scene, seconds: float = MEASURED_SECONDS) -> float:
    """Return how many images a second one core reads and augments, over about ``seconds`` after some to warm up."""
    import cv2

    def show(first: int, count: int) -> None:
        passes, places = np.divmod(np.arange(first, first + count), len(scene.stream.indices))
        drawn(scene, passes, scene.stream.indices[places])

    batch = min(scene.stream.batch_size, MEASURED_BATCH)
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        show(0, WARM_UP)
        done, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            show(WARM_UP + done, batch)
            done += batch
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])
    return done / passed
