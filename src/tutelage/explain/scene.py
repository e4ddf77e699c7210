"""The arrays that a preview shows: the views that training will draw, single operations, mixed pairs, and the speed.

The pipeline, the key and the indices are those of the labelled images in the strategy's first stage.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from tutelage.augmentation import Mixing, Picture, Pipeline, draw_mixing, mix_batch
from tutelage.config import AugmentationConfig, Config
from tutelage.data import DataRuntime, ImageDataModule, Stream, StreamSampler, data_module
from tutelage.data.datasets.download import OnProgress, ignore_progress
from tutelage.randomness import Key
from tutelage.strategies import StageContext, TrainStage

MAGNITUDES = (0, 5, 10, 15, 20, 25, 30)
MEASURED_SECONDS = 0.5
MEASURED_BATCH, WARM_UP = 64, 8  # images


@dataclass(frozen=True)
class Scene:
    """A config, its data, and the stage and the stream whose draws are shown."""

    config: Config
    data: ImageDataModule
    stage: TrainStage
    stream: Stream

    @property
    def key(self) -> Key:
        """The key of the stream's draws, the same as in training."""
        return Key(self.config.seed, self.stage.name, self.stream.name)

    @cached_property
    def pipeline(self) -> Pipeline:
        """The pipeline that makes a view of an image."""
        return Pipeline(self.augmentation.transforms, self.key, self.augmentation.strong)

    @property
    def augmentation(self) -> AugmentationConfig:
        """The stage's augmentation; an empty one for a stage of one pass."""
        return AugmentationConfig() if self.stage.one_pass else self.config.augmentation

    @property
    def transforms(self) -> list[dict[str, Any]]:
        """The transforms of the first view, then those that make the second view out of it."""
        return [*self.augmentation.transforms, *self.augmentation.strong]

    def read_evaluation_image(self, index: int) -> np.ndarray:
        """Return an image (H, W, C) uint8 as it is evaluated, at the config's size."""
        return self.data.images[index]

    def read_training_image(self, index: int) -> np.ndarray | Picture:
        """Return the image that training makes views of: at the config's size, or the whole stored one for crops."""
        return self.data.images.picture(index) if self.pipeline.takes_any_size else self.data.images[index]

    def read_original(self, index: int) -> np.ndarray:
        """Return all pixels (h, w, C) uint8 that views are made of."""
        image = self.read_training_image(index)
        return image if isinstance(image, np.ndarray) else image.read()


def build_scene(config: Config, on_progress: OnProgress = ignore_progress) -> Scene:
    """Return the scene of a run's config.

    Args:
        config: of a run.
        on_progress: is called during long reads.

    Raises:
        UserError: the data is missing, or the pipeline does not fit it.
    """
    data = data_module(config.data, DataRuntime(on_progress=on_progress))
    augmentation = config.augmentation
    pipeline = Pipeline(augmentation.transforms, Key(0, "check"), augmentation.strong)
    stages = config.strategy.stages(StageContext(config, data.source, data.splits))
    first = next(stage for stage in stages if isinstance(stage, TrainStage))
    pipeline.check(data.source.images[0])
    stream = next(stream for stream in first.streams({}) if stream.name == "labelled")
    return Scene(config, data, first, stream)


def choose_indices(labels: np.ndarray, indices: np.ndarray, count: int, key: Key) -> np.ndarray:
    """Return up to ``count`` of ``indices`` (n,), drawn by ``key``: one of each class, then a second one of each ..."""
    shuffled = key.generator("preview").permutation(indices)
    by_class = np.argsort(labels[shuffled], kind="stable")
    sorted_labels = labels[shuffled][by_class]
    rank = np.empty(len(shuffled), dtype=np.int64)  # of an image within its class
    rank[by_class] = np.arange(len(shuffled)) - np.searchsorted(sorted_labels, sorted_labels)
    first = np.argsort(rank, kind="stable")[:count]
    chosen: np.ndarray = shuffled[first]
    return chosen[np.lexsort((labels[chosen], rank[first]))]


def draw_views(scene: Scene, passes: int | np.ndarray, indices: np.ndarray, copies: int | np.ndarray = 0) -> np.ndarray:
    """Return the views (V, N, H, W, C) uint8 of images (N,) at their draws, the same as in training."""
    draws = np.stack(np.broadcast_arrays(passes, indices, copies), axis=1)
    data, images = scene.config.data, [scene.read_training_image(int(index)) for index in indices]
    out = np.empty((scene.pipeline.views, len(images), data.image_size, data.image_size, data.channels), dtype=np.uint8)
    scene.pipeline.fill(out, images, draws)
    return out


def draw_passes(scene: Scene, indices: np.ndarray, passes: int) -> np.ndarray:
    """Return the views of images (N,) in the first passes of training: (passes, V, N, H, W, C) uint8."""
    return np.stack([draw_views(scene, pass_, indices) for pass_ in range(passes)])


def list_magnitudes(transform: Any) -> list[float]:
    """Return the magnitudes to show a transform at: ``MAGNITUDES`` and, if it has one, the transform's own."""
    magnitude = getattr(transform, "magnitude", None)
    return sorted({*MAGNITUDES, *([] if magnitude is None else [magnitude])})


def apply_operations(transform: Any, image: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Return an image after each operation of a transform alone, at each of ``list_magnitudes``, by operation."""
    return {
        name: [transform.apply_operation(image, name, magnitude) for magnitude in list_magnitudes(transform)]
        for name in transform.operations
    }


class Mixture(NamedTuple):
    """An image, its partner and their mixture, (H, W, C) uint8; and the weight of each class in the mixed label."""

    image: np.ndarray
    partner: np.ndarray
    result: np.ndarray
    weights: Mapping[int, float]


def draw_mixtures(scene: Scene, steps: int) -> list[Mixture]:
    """Return a pair of each of the first steps, mixed as in training; neighbours of two classes, if there are any."""
    config, stream, mixtures = scene.augmentation.mix, scene.stream, []
    if config is None:
        raise ValueError("the augmentation mixes no images")
    sampler, classes = StreamSampler(stream, scene.key), len(scene.data.source.classes)
    for step in range(steps):
        samples = sampler.at(step)
        class_changes = np.flatnonzero(np.diff(stream.targets[samples.entries]))
        pair = slice(class_changes[0], class_changes[0] + 2) if len(class_changes) else slice(2)
        passes, entries, copies = (part[pair] for part in samples)
        images = draw_views(scene, passes, stream.indices[entries], copies)[0]
        mixing = draw_mixing(config, scene.key, step, stream.batch_size, *images.shape[1:3])
        pixels, targets = mix_batch(
            torch.from_numpy(images).permute(0, 3, 1, 2),
            torch.from_numpy(stream.targets[entries]),
            Mixing(*(part[pair] for part in mixing)),
            classes,
        )
        weights = {int(label): float(targets[0, label]) for label in stream.targets[entries]}
        mixtures.append(Mixture(images[0], images[-1], pixels[0].permute(1, 2, 0).numpy(), weights))
    return mixtures


def measure_speed(scene: Scene, seconds: float = MEASURED_SECONDS) -> float:
    """Return how many images per second one core reads and augments, over about ``seconds`` after a warm-up."""
    import cv2

    def make_views(first: int, count: int) -> None:
        passes, entries = np.divmod(np.arange(first, first + count), len(scene.stream.indices))
        draw_views(scene, passes, scene.stream.indices[entries])

    batch = min(scene.stream.batch_size, MEASURED_BATCH)
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        make_views(0, WARM_UP)
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            make_views(WARM_UP + count, batch)
            count += batch
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])
    return count / elapsed
