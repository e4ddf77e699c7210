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

from tutelage.augmentation import Mixing, Pipeline, draw_mixing, mix_batch
from tutelage.config import MixConfig
from tutelage.data.cached_logits import CachedLogits
from tutelage.data.loading.shared_memory import Shared
from tutelage.data.loading.streams import SampleIndices, Stream, StreamSampler
from tutelage.data.pseudo_labels.labels import EVALUATION_BATCH
from tutelage.data.source import UNKNOWN, Images, gathered, is_ready
from tutelage.randomness import Key

TWIN = "twin"  # of a stream: what the key of its second draws is called
FILES_AT_ONCE = 32  # read before they are decoded, or decoded before they are cut


class StreamBatch(NamedTuple):
    """What one stream shows in a step: images (B, C, H, W) uint8, targets (B,) int64 or (B, C) float32.

    ``answers`` (B, K) float32 are those of a frozen network, where they are kept; where they are features, which are
    shown instead of the images, these are empty (B, 0).
    """

    images: torch.Tensor
    targets: torch.Tensor
    answers: torch.Tensor | None = None


class PendingMix(NamedTuple):
    """What a stream shows once it is mixed as planned: on its way to the device, where that is done.

    With ``spare`` the last image of each view is there only to be mixed into the one before it.
    """

    shown: StreamBatch
    mixing: Mixing
    spare: bool = False


class EvalBatch(NamedTuple):
    """Images as they are, for evaluation: (B, C, H, W) uint8, labels (B,) int64, indices (B,) int64."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


@dataclass(frozen=True)
class StageData:
    """What one stage trains on: streams, augmentation, the key of its draws, its length in steps, answers by stream."""

    streams: Sequence[Stream]
    transforms: Sequence[dict[str, Any]]
    key: Callable[[str], Key]
    steps: int
    strong: Sequence[dict[str, Any]] = ()
    mix: MixConfig | None = None
    kept: Mapping[str, CachedLogits] = field(default_factory=dict)


@dataclass(frozen=True)
class Share:
    """Which part of each step's batch this process takes, and in how many pieces one after another.

    A batch is cut into as many parts as there are processes times pieces; a process has ``pieces`` parts in a row.

    Attributes:
        rank: the number of the process.
        processes: how many there are.
        pieces: how many parts each of them takes.
    """

    rank: int = 0
    processes: int = 1
    pieces: int = 1

    @property
    def parts(self) -> int:
        """How many parts a batch is cut into."""
        return self.processes * self.pieces

    def rows(self, batch_size: int, piece: int) -> slice:
        """Return which rows of a batch one of this process's pieces has.

        Raises:
            ValueError: the batch cannot be cut into equal parts.
        """
        size, rest = divmod(batch_size, self.parts)
        if rest:
            raise ValueError(f"a batch of {batch_size} images cannot be cut into {self.parts} equal parts")
        first = (self.rank * self.pieces + piece) * size
        return slice(first, first + size)

    def of_all(self, indices: np.ndarray) -> tuple[np.ndarray, int]:
        """Return this process's part of some images (n,), as many for each process, and how many of its part count.

        The parts that count, one process after another, are all images in their order; a part that is too short is
        filled up with one of them again.
        """
        count = -(-len(indices) // self.processes)
        own = indices[self.rank * count : (self.rank + 1) * count]
        return np.concatenate([own, np.repeat(indices[:1], count - len(own))]), len(own)


WHOLE = Share()


def apply_mix(unmixed: PendingMix, classes: int) -> StreamBatch:
    """Return what a stream shows, mixed on its device as it was planned."""
    shown, mixing, spare = unmixed
    images, targets = mix_batch(shown.images, shown.targets, mixing, classes)
    if spare:
        count = len(mixing.boxes)
        images, targets = (torch.cat([view[:-1] for view in torch.split(all_, count)]) for all_ in (images, targets))
    return StreamBatch(images, targets, shown.answers)


def channels_first(images: np.ndarray) -> torch.Tensor:
    """Return a batch (..., H, W, C) as a tensor (B, C, H, W) over the same memory."""
    return torch.from_numpy(images.reshape(-1, *images.shape[-3:])).permute(0, 3, 1, 2)


class TrainDataset(Dataset[dict[str, StreamBatch | PendingMix]]):
    """The batch of each optimizer step, by stream; what this process shows of it at once, a call.

    What is drawn for a batch is drawn for all of it, whoever shows which part.

    Args:
        images: what the streams' indices point into.
        training: the stage.
        shape: (H, W, C) of an image of a batch.
        share: which part of a batch this process shows.
    """

    def __init__(self, images: Images, training: StageData, shape: tuple[int, int, int], share: Share = WHOLE) -> None:
        self._images = images
        self._training = training
        self._shape = shape
        self._share = share

    def __len__(self) -> int:
        return self._training.steps * self._share.pieces

    @cached_property
    def _views(self) -> list[tuple[Stream, StreamSampler, Pipeline]]:
        training = self._training
        keys = [training.key(stream.name) for stream in training.streams]
        return [
            (stream, StreamSampler(stream, key), Pipeline(training.transforms, key, training.strong))
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

    def __getitem__(self, number: int) -> dict[str, StreamBatch | PendingMix]:
        step, piece = divmod(number, self._share.pieces)
        return {stream.name: self._of(step, piece, stream, draws, view) for stream, draws, view in self._views}

    def _of(
        self, step: int, piece: int, stream: Stream, draws: StreamSampler, view: Pipeline
    ) -> StreamBatch | PendingMix:
        """Return a part of a stream's batch, with the kept answers to it where there are any."""
        rows = np.arange(stream.batch_size)[self._share.rows(stream.batch_size, piece)]
        shows, kept = draws.at(step), self._training.kept.get(stream.name)
        if kept is None:
            return self._to_mix(step, stream, rows, shows, view)
        shows = kept.repeated(shows)
        answers = torch.from_numpy(kept.answers(step, shows, stream)[rows])
        if kept.instead:
            nothing = torch.empty(len(rows), 0, dtype=torch.uint8)
            return StreamBatch(nothing, torch.from_numpy(stream.targets_of(shows.entries[rows])), answers)
        return self._to_mix(step, stream, rows, shows, view, answers)

    def _to_mix(
        self,
        step: int,
        stream: Stream,
        rows: np.ndarray,
        shows: SampleIndices,
        view: Pipeline,
        answers: torch.Tensor | None = None,
    ) -> StreamBatch | PendingMix:
        """Return some rows (n,) of a batch with the plan for mixing them, the same for each view of the images.

        A part comes with one row more, the next of the batch, which the last one may be mixed with.
        """
        mix, spare = self._training.mix, self._share.parts > 1
        if mix is not None and spare:
            rows = np.append(rows, (rows[-1] + 1) % stream.batch_size)
        shown = self._show(SampleIndices(*(each[rows] for each in shows)), stream, view)._replace(answers=answers)
        if mix is None:
            return shown
        key, (height, width) = self._training.key(stream.name), shown.images.shape[-2:]
        drawn = draw_mixing(mix, key, step, stream.batch_size, height, width)
        return PendingMix(shown, Mixing(*(each[rows] for each in drawn)).tensors(), spare)

    def _show(self, shows: SampleIndices, stream: Stream, view: Pipeline) -> StreamBatch:
        """Return what is shown: with two views of each image all first ones, then all second ones.

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
        return StreamBatch(channels_first(views), torch.from_numpy(np.concatenate([targets] * len(views))))


class EvalDataset(Dataset[EvalBatch]):
    """Un-augmented images in the order of ``indices``, a whole batch an item.

    Args:
        images: what the indices point into.
        labels: (N,) of all images.
        indices: (n,) of those to show.
        known: how many of these count, from the first on; the label of the others is shown as unknown.
    """

    def __init__(self, images: Images, labels: np.ndarray, indices: np.ndarray, known: int | None = None) -> None:
        self._images = images
        self._labels = Shared(labels)
        self._indices = Shared(indices)
        self._known = len(indices) if known is None else known

    def __len__(self) -> int:
        return math.ceil(len(self._indices.array) / EVALUATION_BATCH)

    def __getitem__(self, batch: int) -> EvalBatch:
        first = batch * EVALUATION_BATCH
        indices = self._indices.array[first : first + EVALUATION_BATCH]
        images = gathered(self._images, indices)
        labels = self._labels.array[indices].astype(np.int64)
        labels[max(0, self._known - first) :] = UNKNOWN
        return EvalBatch(channels_first(images), torch.from_numpy(labels), torch.from_numpy(indices.astype(np.int64)))


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
