"""What a stage is shown: the batch of each step, plain ones for evaluation, and the processes that make them."""

import atexit
import math
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from tutelage.augmentation import Mixing, Pipeline, mixed, plan
from tutelage.config import MixConfig
from tutelage.data.kept import Kept
from tutelage.data.labels import EVALUATION_BATCH
from tutelage.data.shared import Shared
from tutelage.data.source import Images, gathered, is_ready
from tutelage.data.streams import Draws, Shows, Stream
from tutelage.randomness import Key

TWIN = "twin"  # of a stream: what the key of its second draws is called
FILES_AT_ONCE = 32  # read before they are decoded, or decoded before they are cut


class Shown(NamedTuple):
    """What one stream shows in a step: images (B, C, H, W) uint8, targets (B,) int64 or (B, C) float32.

    ``answers`` (B, K) float32 are those of a frozen network, where they are kept; where they are features, which are
    shown instead of the images, these are empty (B, 0).
    """

    images: torch.Tensor
    targets: torch.Tensor
    answers: torch.Tensor | None = None


class Unmixed(NamedTuple):
    """What a stream shows once it is mixed as planned: on its way to the device, where that is done."""

    shown: Shown
    mixing: Mixing


class Plain(NamedTuple):
    """Images as they are, for evaluation: (B, C, H, W) uint8, labels (B,) int64, indices (B,) int64."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


@dataclass(frozen=True)
class Training:
    """What one stage trains on: streams, augmentation, the key of its draws, its length in steps, answers by stream."""

    streams: Sequence[Stream]
    transforms: Sequence[dict[str, Any]]
    key: Callable[[str], Key]
    steps: int
    strong: Sequence[dict[str, Any]] = ()
    mix: MixConfig | None = None
    kept: Mapping[str, Kept] = field(default_factory=dict)


def as_planned(unmixed: Unmixed, classes: int) -> Shown:
    """Return what a stream shows, mixed on its device as it was planned."""
    shown, mixing = unmixed
    return Shown(*mixed(shown.images, shown.targets, mixing, classes), shown.answers)


def channels_first(images: np.ndarray) -> torch.Tensor:
    """Return a batch (..., H, W, C) as a tensor (B, C, H, W) over the same memory."""
    return torch.from_numpy(images.reshape(-1, *images.shape[-3:])).permute(0, 3, 1, 2)


class StepBatches(Dataset[dict[str, Shown | Unmixed]]):
    """The batch of each optimizer step, by stream; a whole batch a call.

    Args:
        images: what the streams' indices point into.
        training: the stage.
        shape: (H, W, C) of an image of a batch.
    """

    def __init__(self, images: Images, training: Training, shape: tuple[int, int, int]) -> None:
        self._images = images
        self._training = training
        self._shape = shape

    def __len__(self) -> int:
        return self._training.steps

    @cached_property
    def _views(self) -> list[tuple[Stream, Draws, Pipeline]]:
        training = self._training
        keys = [training.key(stream.name) for stream in training.streams]
        return [
            (stream, Draws(stream, key), Pipeline(training.transforms, key, training.strong))
            for stream, key in zip(training.streams, keys, strict=True)
        ]

    @cached_property
    def _twins(self) -> dict[str, Pipeline]:
        """The pipelines of second draws, by stream."""
        training = self._training
        twins = [stream.name for stream in training.streams if stream.beside == "twin"]
        return {name: Pipeline(training.transforms, training.key(f"{name} {TWIN}")) for name in twins}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in {"_views", "_twins"}}

    def __getitem__(self, step: int) -> dict[str, Shown | Unmixed]:
        return {stream.name: self._of(step, stream, draws, view) for stream, draws, view in self._views}

    def _of(self, step: int, stream: Stream, draws: Draws, view: Pipeline) -> Shown | Unmixed:
        """Return a batch of a stream, with the kept answers to it where there are any."""
        shows, kept = draws.at(step), self._training.kept.get(stream.name)
        if kept is None:
            return self._to_mix(step, stream, self._show(shows, stream, view))
        shows = kept.repeated(shows)
        answers = torch.from_numpy(kept.answers(step, shows, stream))
        if kept.instead:
            nothing = torch.empty(stream.batch_size, 0, dtype=torch.uint8)
            return Shown(nothing, torch.from_numpy(stream.targets_of(shows.entries)), answers)
        return self._to_mix(step, stream, self._show(shows, stream, view)._replace(answers=answers))

    def _to_mix(self, step: int, stream: Stream, shown: Shown) -> Shown | Unmixed:
        """Return a batch with the plan for mixing it, the same for each view of its images."""
        training, (height, width) = self._training, shown.images.shape[-2:]
        if training.mix is None:
            return shown
        drawn = plan(training.mix, training.key(stream.name), step, stream.batch_size, height, width)
        return Unmixed(shown, drawn.tensors())

    def _show(self, shows: Shows, stream: Stream, view: Pipeline) -> Shown:
        """Return a batch: with two views of each image all first ones, then all second ones.

        What stands beside a stream's view comes first.
        """
        passes, entries, copies = shows
        indices = stream.indices[entries]
        drawn = np.stack([passes, indices, copies], axis=1)
        beside = int(bool(stream.beside))
        views = np.empty((beside + view.views, len(indices), *self._shape), dtype=np.uint8)
        stored = self._images.picture if view.takes_any_size else self._images.__getitem__
        at_once = len(indices) if is_ready(self._images) else FILES_AT_ONCE
        for first in range(0, len(indices), at_once):
            some = slice(first, first + at_once)
            images = [stored(index) for index in indices[some].tolist()]
            view.fill(views[beside:, some], images, drawn[some])
            if stream.beside == "plain":
                views[0, some] = gathered(self._images, indices[some])
            elif stream.beside:
                self._twins[stream.name].fill(views[:1, some], images, drawn[some])
        targets = stream.targets_of(entries)
        return Shown(channels_first(views), torch.from_numpy(np.concatenate([targets] * len(views))))


class PlainBatches(Dataset[Plain]):
    """Un-augmented images in the order of ``indices``, a whole batch an item."""

    def __init__(self, images: Images, labels: np.ndarray, indices: np.ndarray) -> None:
        self._images = images
        self._labels = Shared(labels)
        self._indices = Shared(indices)

    def __len__(self) -> int:
        return math.ceil(len(self._indices.array) / EVALUATION_BATCH)

    def __getitem__(self, batch: int) -> Plain:
        indices = self._indices.array[batch * EVALUATION_BATCH : (batch + 1) * EVALUATION_BATCH]
        images = gathered(self._images, indices)
        labels = self._labels.array[indices].astype(np.int64)
        return Plain(channels_first(images), torch.from_numpy(labels), torch.from_numpy(indices.astype(np.int64)))


class Steps(Sampler[int]):
    """The steps that are still to do; where to start is asked when iteration begins."""

    def __init__(self, total: int, done: Callable[[], int]) -> None:
        self._total = total
        self._done = done

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._done(), self._total))


def worker_init(worker: int) -> None:
    """Let a worker outlive a signal to the whole process group, so that the step under way is finished and saved."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """End workers that an error has left: at its exit Python asks them to end, which they do not heed, and waits."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises an error where a worker is killed
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
