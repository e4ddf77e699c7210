"""Batches: the training batch of each step, un-augmented batches for evaluation, and the sampler of steps.

These stand in for torch's map-style datasets with ``BatchSampler`` and ``collate_fn``: an item is a whole batch, so
that a batch costs one call and one array, and the position in the data follows from the step alone.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from tutelage.augmentation import Mixing, Pipeline, draw_mixing, mix_batch
from tutelage.config import MixConfig
from tutelage.data.cached_logits import CachedLogits
from tutelage.data.loading.shared_memory import SharedArray
from tutelage.data.loading.streams import SampleIndices, Stream, StreamSampler
from tutelage.data.pseudo_labels.labels import EVALUATION_BATCH
from tutelage.data.source import UNKNOWN, Images, is_ready, stack_images
from tutelage.randomness import Key

TWIN = "twin"  # suffix of a stream's name in the key of its second draws
FILES_AT_ONCE = 32  # read before they are decoded, or decoded before they are cropped


class StreamBatch(NamedTuple):
    """A stream's batch of a step: images (B, C, H, W) uint8, targets (B,) int64 or (B, C) float32.

    ``cached`` (B, K) float32 are a frozen network's cached logits, or features; features replace the images, which are
    then empty (B, 0).
    """

    images: torch.Tensor
    targets: torch.Tensor
    cached: torch.Tensor | None = None


class PendingMix(NamedTuple):
    """A batch whose images are yet to be mixed with one another, which happens on its device.

    With ``spare`` the last image of each view is there only to be mixed into the one before it.
    """

    batch: StreamBatch
    mixing: Mixing
    spare: bool = False


class EvalBatch(NamedTuple):
    """An un-augmented batch for evaluation: images (B, C, H, W) uint8, labels (B,) int64, indices (B,) int64."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


@dataclass(frozen=True)
class StageData:
    """The data of one training stage.

    Attributes:
        streams: the streams of images, each of which gives a part of every step's batch.
        transforms: the augmentation, as ``_target_`` configs.
        key: returns the key of the draws of a stream, by the stream's name.
        steps: optimizer steps.
        strong: further transforms of a second view.
        mix: how images of a batch are mixed.
        cached: cached logits or features, by stream.
        evaluation_batch: validation images in a batch.
    """

    streams: Sequence[Stream]
    transforms: Sequence[dict[str, Any]]
    key: Callable[[str], Key]
    steps: int
    strong: Sequence[dict[str, Any]] = ()
    mix: MixConfig | None = None
    cached: Mapping[str, CachedLogits] = field(default_factory=dict)
    evaluation_batch: int = EVALUATION_BATCH


@dataclass(frozen=True)
class BatchShard:
    """The part of each batch that this process trains on, in ``accumulate`` pieces one after another.

    A batch is cut into ``processes * accumulate`` equal pieces; a process has ``accumulate`` pieces in a row.

    Attributes:
        rank: the rank of the process.
        processes: number of processes.
        accumulate: number of pieces of each process.
    """

    rank: int = 0
    processes: int = 1
    accumulate: int = 1

    @property
    def pieces(self) -> int:
        """Number of pieces of a batch."""
        return self.processes * self.accumulate

    def rows(self, batch_size: int, piece: int) -> slice:
        """Return the rows of a batch that form one of this process's pieces.

        Raises:
            ValueError: the batch cannot be cut into equal pieces.
        """
        size, rest = divmod(batch_size, self.pieces)
        if rest:
            raise ValueError(f"a batch of {batch_size} images cannot be cut into {self.pieces} equal parts")
        first = (self.rank * self.accumulate + piece) * size
        return slice(first, first + size)

    def split_indices(self, indices: np.ndarray) -> tuple[np.ndarray, int]:
        """Return this process's part of some indices (n,), equally long in all processes, and how many of it count.

        The parts that count, one process after another, are all indices in their order; a part that is too short is
        filled up with copies of the first index.
        """
        count = -(-len(indices) // self.processes)
        own = indices[self.rank * count : (self.rank + 1) * count]
        return np.concatenate([own, np.repeat(indices[:1], count - len(own))]), len(own)


WHOLE_BATCH = BatchShard()


def apply_mix(pending: PendingMix, classes: int) -> StreamBatch:
    """Return a batch with its images and targets mixed, on their device."""
    batch, mixing, spare = pending
    images, targets = mix_batch(batch.images, batch.targets, mixing, classes)
    if spare:
        count = len(mixing.boxes)
        images, targets = (
            torch.cat([view[:-1] for view in torch.split(values, count)]) for values in (images, targets)
        )
    return StreamBatch(images, targets, batch.cached)


def channels_first(images: np.ndarray) -> torch.Tensor:
    """Return a batch (..., H, W, C) as a tensor (B, C, H, W) over the same memory."""
    return torch.from_numpy(images.reshape(-1, *images.shape[-3:])).permute(0, 3, 1, 2)


class TrainDataset(Dataset[dict[str, StreamBatch | PendingMix]]):
    """The training batches of a stage, by stream; an item is this process's piece of a step's batch.

    Random numbers are drawn for the whole batch, whichever process takes which piece.

    Args:
        images: the images that the streams' indices point into.
        stage_data: the stage's.
        shape: (H, W, C) of an image of a batch.
        shard: the part of a batch of this process.
    """

    def __init__(
        self, images: Images, stage_data: StageData, shape: tuple[int, int, int], shard: BatchShard = WHOLE_BATCH
    ) -> None:
        self._images = images
        self._stage_data = stage_data
        self._shape = shape
        self._shard = shard

    def __len__(self) -> int:
        return self._stage_data.steps * self._shard.accumulate

    @cached_property
    def _pipelines(self) -> list[tuple[Stream, StreamSampler, Pipeline]]:
        data = self._stage_data
        keys = [data.key(stream.name) for stream in data.streams]
        return [
            (stream, StreamSampler(stream, key), Pipeline(data.transforms, key, data.strong))
            for stream, key in zip(data.streams, keys, strict=True)
        ]

    @cached_property
    def _twin_pipelines(self) -> dict[str, Pipeline]:
        """The pipelines of second draws, by stream."""
        data = self._stage_data
        twins = [stream.name for stream in data.streams if stream.beside == "twin"]
        return {name: Pipeline(data.transforms, data.key(f"{name} {TWIN}")) for name in twins}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in {"_pipelines", "_twin_pipelines"}}

    def __getitem__(self, number: int) -> dict[str, StreamBatch | PendingMix]:
        step, piece = divmod(number, self._shard.accumulate)
        return {
            stream.name: self._stream_batch(step, piece, stream, sampler, pipeline)
            for stream, sampler, pipeline in self._pipelines
        }

    def _stream_batch(
        self, step: int, piece: int, stream: Stream, sampler: StreamSampler, pipeline: Pipeline
    ) -> StreamBatch | PendingMix:
        """Return a piece of a stream's batch, with cached logits where there are any."""
        rows = np.arange(stream.batch_size)[self._shard.rows(stream.batch_size, piece)]
        samples, cached = sampler.at(step), self._stage_data.cached.get(stream.name)
        if cached is None:
            return self._augment_and_draw_mix(step, stream, rows, samples, pipeline)
        samples = cached.repeat_views(samples)
        values = torch.from_numpy(cached.read(step, samples, stream)[rows])
        if cached.replaces_images:
            no_images = torch.empty(len(rows), 0, dtype=torch.uint8)
            targets = stream.targets_of(samples.entries[rows])
            return StreamBatch(no_images, torch.from_numpy(targets), values)
        return self._augment_and_draw_mix(step, stream, rows, samples, pipeline, values)

    def _augment_and_draw_mix(
        self,
        step: int,
        stream: Stream,
        rows: np.ndarray,
        samples: SampleIndices,
        pipeline: Pipeline,
        cached: torch.Tensor | None = None,
    ) -> StreamBatch | PendingMix:
        """Return some rows (n,) of a batch, with the drawn mixing, the same for each view of the images.

        A piece comes with one row more, the next of the batch, which the last one may be mixed with.
        """
        mix, spare = self._stage_data.mix, self._shard.pieces > 1
        if mix is not None and spare:
            rows = np.append(rows, (rows[-1] + 1) % stream.batch_size)
        own_samples = SampleIndices(*(array[rows] for array in samples))
        batch = self._augment(own_samples, stream, pipeline)._replace(cached=cached)
        if mix is None:
            return batch
        key, (height, width) = self._stage_data.key(stream.name), batch.images.shape[-2:]
        mixing = draw_mixing(mix, key, step, stream.batch_size, height, width)
        return PendingMix(batch, Mixing(*(array[rows] for array in mixing)).tensors(), spare)

    def _augment(self, samples: SampleIndices, stream: Stream, pipeline: Pipeline) -> StreamBatch:
        """Return the augmented images; of several views all first ones come before all second ones.

        The view ``stream.beside`` comes before the others.
        """
        passes, entries, copies = samples
        indices = stream.indices[entries]
        draws = np.stack([passes, indices, copies], axis=1)
        beside = int(bool(stream.beside))
        views = np.empty((beside + pipeline.views, len(indices), *self._shape), dtype=np.uint8)
        read = self._images.picture if pipeline.takes_any_size else self._images.__getitem__
        at_once = len(indices) if is_ready(self._images) else FILES_AT_ONCE
        for first in range(0, len(indices), at_once):
            part = slice(first, first + at_once)
            images = [read(index) for index in indices[part].tolist()]
            pipeline.fill(views[beside:, part], images, draws[part])
            if stream.beside == "plain":
                views[0, part] = stack_images(self._images, indices[part])
            elif stream.beside:
                self._twin_pipelines[stream.name].fill(views[:1, part], images, draws[part])
        targets = stream.targets_of(entries)
        return StreamBatch(channels_first(views), torch.from_numpy(np.concatenate([targets] * len(views))))


class EvalDataset(Dataset[EvalBatch]):
    """Un-augmented images in the order of ``indices``; an item is a whole batch.

    Args:
        images: the images that the indices point into.
        labels: (N,) of all images.
        indices: (n,) of the images to show.
        batch_size: images in a batch.
        counted: how many of these count, from the first on; the label of the others is unknown.
    """

    def __init__(
        self,
        images: Images,
        labels: np.ndarray,
        indices: np.ndarray,
        batch_size: int,
        counted: int | None = None,
    ) -> None:
        self._images = images
        self._labels = SharedArray(labels)
        self._indices = SharedArray(indices)
        self._counted = len(indices) if counted is None else counted
        self._batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self._indices.array) / self._batch_size)

    def __getitem__(self, batch: int) -> EvalBatch:
        first = batch * self._batch_size
        indices = self._indices.array[first : first + self._batch_size]
        images = stack_images(self._images, indices)
        labels = self._labels.array[indices].astype(np.int64)
        labels[max(0, self._counted - first) :] = UNKNOWN
        return EvalBatch(channels_first(images), torch.from_numpy(labels), torch.from_numpy(indices.astype(np.int64)))


class StepSampler(Sampler[int]):
    """The steps of a stage that are still to do; the first one is read when iteration begins.

    Its length is that of the whole stage, which is one epoch to Lightning.
    """

    def __init__(self, total: int, done: Callable[[], int]) -> None:
        self._total = total
        self._done = done

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._done(), self._total))
