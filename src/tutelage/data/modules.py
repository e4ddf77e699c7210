"""The base of the DataModules: a dataset read once, split, and served by the loaders of the current stage."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from tutelage.config import DataConfig
from tutelage.config.targets import failures_as_user_errors
from tutelage.data.datasets.download import OnProgress, ignore_progress
from tutelage.data.duplicates import find_leaked, refuse_duplicates
from tutelage.data.fingerprints import default_fingerprint
from tutelage.data.loading.batches import (
    WHOLE_BATCH,
    BatchShard,
    EvalBatch,
    EvalDataset,
    PendingMix,
    StageData,
    StepSampler,
    StreamBatch,
    TrainDataset,
    apply_mix,
)
from tutelage.data.loading.loader import Loader, map_tensors
from tutelage.data.loading.prefetch import PrefetchLoader
from tutelage.data.loading.shared_memory import count_cores
from tutelage.data.pseudo_labels.labels import EVALUATION_BATCH
from tutelage.data.source import Images, PreparedImages, Source, as_images, is_ready
from tutelage.data.splits import Splits, identify_test, split
from tutelage.errors import UserError
from tutelage.waiting import OnWait, WaitLines

CPU = torch.device("cpu")
MAX_WORKERS = 8  # worker processes of a loader under num_workers=auto


@dataclass(frozen=True)
class DataRuntime:
    """Where and how a DataModule runs.

    Attributes:
        device: the device that the network computes on.
        shard: the part of each batch that this process trains on.
        on_progress: called during long reads; may raise to stop.
        neighbours: processes of the run on this machine, which share its cores.
        on_wait: called every second in which a loader's workers give no batch; may raise to stop.
        only_test: nothing is learned from the images: of files, neither training images nor two classes are needed.
    """

    device: torch.device = CPU
    shard: BatchShard = WHOLE_BATCH
    on_progress: OnProgress = ignore_progress
    neighbours: int = 1
    on_wait: OnWait = field(default_factory=WaitLines)
    only_test: bool = False


class ImageDataModule(pl.LightningDataModule):
    """A dataset with its splits, and the loaders of the current stage.

    A stage is one long epoch to Lightning: the loader's length is the stage's steps, and a resumed stage starts its
    sampler at the global step. Nothing about the position in the data needs saving.
    """

    def __init__(self, config: DataConfig, runtime: DataRuntime | None = None) -> None:
        super().__init__()
        self.config = config
        self.runtime = runtime or DataRuntime()
        self._stage_data: StageData | None = None

    @abstractmethod
    def read(self) -> Source:
        """Return the dataset. Raises UserError where it cannot be read."""

    def fingerprint(self) -> str:
        """Return a digest of the data beyond its config; empty for a dataset that its name identifies.

        It is part of the run's identity, so that changed data makes another run. A class that does not define it gets
        a digest of all files at ``data.root`` and ``data.unlabelled``.

        Raises:
            UserError: the data is not there, or nothing says where it is.
        """
        return default_fingerprint(self.config, self.runtime.on_progress)

    def fetch(self) -> Path | None:
        """Bring the files of a public dataset to this machine where they are missing, and return where they lie.

        The runtime's ``on_progress`` hears of a download. None where nothing is downloaded: a class that does not
        define it reads what lies at ``data.root``.

        Raises:
            UserError: they cannot be downloaded.
        """
        return None

    @cached_property
    def source(self) -> Source:
        """The dataset, read once.

        Raises:
            UserError: it cannot be read; a class from outside may raise any error for that. Or there are duplicates and
                ``data.duplicates`` is stop.
        """
        action = f"data: {type(self).__name__}.read() for data.root={self.config.root}"
        with failures_as_user_errors(type(self), action):
            source = self.read()
            if not isinstance(source, Source):
                raise TypeError(f"a tutelage.data.Source is to be returned, not a {type(source).__name__}")
        if self.config.duplicates != "report" and source.duplicates is None:
            raise UserError(
                f"data.duplicates={self.config.duplicates}: {type(self).__name__} does not compare its images (its "
                "Source has no duplicates); set it to report"
            )
        if self.config.duplicates == "stop":
            refuse_duplicates(source, self.config.root)
        return source

    @cached_property
    def images(self) -> Images:
        """The dataset's images."""
        return as_images(self.source.images)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their labels."""
        return self.source.classes

    @cached_property
    def leaked(self) -> np.ndarray:
        """The indices (n,) of test images that are also in the training, validation or unlabelled data."""
        return find_leaked(self.source, self.splits)

    @cached_property
    def splits(self) -> Splits:
        """The indices of labelled, validation, test and pool images."""
        return split(self.source, self.config)

    @cached_property
    def test_identity(self) -> tuple[str, str]:
        """What identifies the labelled images and the test set (see ``splits.identify_test``)."""
        return identify_test(self.source, self.splits)

    def at_image_size(self, image_size: int) -> Self:
        """Return a DataModule of the same images and splits at another size.

        Raises:
            UserError: the dataset has other images at that size.
        """
        other = type(self)(self.config.model_copy(update={"image_size": image_size}), self.runtime)
        if not np.array_equal(other.source.labels, self.source.labels):
            raise UserError(f"at {image_size} pixels the data has other images; image_size=null")
        other.splits = self.splits
        return other

    def begin_stage(self, stage_data: StageData) -> None:
        """Let ``train_dataloader`` return the batches of a stage from now on."""
        self._stage_data = stage_data
        self._prepare_streams(stage_data)

    def _prepare_streams(self, stage_data: StageData) -> None:
        replaced = {name for name, logits in stage_data.cached.items() if logits.replaces_images}
        self._prepare(*(stream.indices for stream in stage_data.streams if stream.name not in replaced))

    def _prepare(self, *index_arrays: np.ndarray) -> None:
        """Let the images at these indices be decoded once, in this process, if they are images that are prepared."""
        images = self.images
        if isinstance(images, PreparedImages) and images.preparable:
            for indices in index_arrays:
                images.prepare(self.splits.find_part(indices, images.preparable), self.runtime.on_progress)

    def train_dataloader(self) -> DataLoader[dict[str, StreamBatch | PendingMix]]:
        """Return the loader of the current stage's remaining batches."""
        stage_data, trainer = self._stage_data, self.trainer
        if stage_data is None or trainer is None:
            raise RuntimeError("call begin_stage and attach a Trainer first")
        cached, accumulate = stage_data.cached.values(), self.runtime.shard.accumulate
        needs_no_images = bool(cached) and all(logits.replaces_images for logits in cached)
        steps = StepSampler(stage_data.steps * accumulate, lambda: trainer.global_step * accumulate)
        workers = 0 if needs_no_images else self._count_workers()
        return self._train_loader(stage_data, workers, steps, self.runtime.shard)

    def train_batches(self, stage_data: StageData, steps: Sequence[int]) -> Iterator[dict[str, StreamBatch]]:
        """Yield the whole training batches of some steps, on the device and mixed, without a Trainer."""
        workers = min(self._count_workers(), len(steps))
        self._prepare_streams(stage_data)
        for batch in self._train_loader(stage_data, workers, steps, WHOLE_BATCH):
            on_device = map_tensors(batch, lambda tensor: tensor.to(self.runtime.device, non_blocking=True))
            yield self.on_after_batch_transfer(on_device, 0)

    def _train_loader(
        self, stage_data: StageData, workers: int, steps: Iterable[int], shard: BatchShard
    ) -> DataLoader[dict[str, StreamBatch | PendingMix]]:
        shape = (self.config.image_size, self.config.image_size, self.config.channels)
        return self._loader(TrainDataset(self.images, stage_data, shape, shard), workers, sampler=steps)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Return a batch whose streams are mixed, each within itself, where mixing is pending."""
        if not isinstance(batch, dict):
            return batch
        classes = len(self.source.classes)
        return {
            name: apply_mix(part, classes) if isinstance(part, PendingMix) else part for name, part in batch.items()
        }

    def val_dataloader(self) -> DataLoader[EvalBatch] | list[Any]:
        """Return this process's part of the validation images, or an empty list where there are none."""
        if not len(self.splits.validation):
            return []
        own, counted = self.runtime.shard.split_indices(self.splits.validation)
        batch_size = EVALUATION_BATCH if self._stage_data is None else self._stage_data.evaluation_batch
        return self.eval_dataloader(own, batch_size, keep_workers=True, counted=counted)

    def eval_dataloader(
        self,
        indices: np.ndarray,
        batch_size: int,
        keep_workers: bool = False,
        batches: Iterable[int] | None = None,
        counted: int | None = None,
    ) -> DataLoader[EvalBatch]:
        """Return a loader of un-augmented images in the order of ``indices``.

        Only images that are yet to be decoded get workers.

        Args:
            indices: (n,) of the images.
            batch_size: images in a batch, ``EVALUATION_BATCH`` or fewer (see ``models.evaluation_batch``).
            keep_workers: workers stay from one pass to the next, as long as the loader exists.
            batches: the numbers of the batches to load; all where they are not given.
            counted: how many of the images count; the label of those behind them is unknown.
        """
        self._prepare(indices)
        dataset = EvalDataset(self.images, self.source.labels, indices, batch_size, counted)
        workers = 0 if is_ready(self.images) or len(dataset) == 1 else min(self._count_workers(), len(dataset))
        return self._loader(dataset, workers, persistent_workers=keep_workers and workers > 0, sampler=batches)

    def _count_workers(self) -> int:
        return count_workers(self.config, self.images, self.runtime)

    def _loader(self, dataset: Dataset[Any], workers: int, **options: Any) -> DataLoader[Any]:
        return make_loader(dataset, workers, self.runtime, **options)


def count_workers(config: DataConfig, images: Images, runtime: DataRuntime) -> int:
    """Return the number of processes that prepare batches of images.

    There are none for images that need no decoding and a network on the CPU: preparing them takes little time beside a
    step.
    """
    if config.num_workers != "auto":
        return config.num_workers
    if is_ready(images) and runtime.device.type == "cpu":
        return 0
    return min(MAX_WORKERS, max(1, count_cores() // runtime.neighbours))


def make_loader(dataset: Dataset[Any], workers: int, runtime: DataRuntime, **options: Any) -> Loader:
    """Return a loader of a dataset's items, which are batches; on a CUDA device it copies the next one ahead.

    Args:
        dataset: makes the batches.
        workers: processes that make them; 0 for this one.
        runtime: says where the network computes and what a wait calls.
        options: torch's.
    """
    make = Loader if runtime.device.type == "cpu" else partial(PrefetchLoader, device=runtime.device)
    generator = torch.Generator()  # of its own: a loader must not draw from the training's
    return make(dataset, workers, on_wait=runtime.on_wait, generator=generator, **options)
