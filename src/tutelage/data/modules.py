"""The DataModules: a dataset read once, split, and served by the loaders of the stage under way."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from tutelage.config import DataConfig
from tutelage.config.targets import resolve
from tutelage.data.datasets.cifar import cifar10, cifar100
from tutelage.data.datasets.digits import digits
from tutelage.data.datasets.download import OnProgress, ignore_progress
from tutelage.data.datasets.emoji import emoji, versions
from tutelage.data.datasets.fashion_mnist import fashion_mnist
from tutelage.data.datasets.huggingface import hugging_face, library_fingerprint
from tutelage.data.datasets.image_files import LISTINGS, fingerprint, image_files
from tutelage.data.datasets.mnist import mnist
from tutelage.data.datasets.stl10 import stl10
from tutelage.data.datasets.svhn import svhn
from tutelage.data.loading.batches import (
    WHOLE,
    EvalBatch,
    EvalDataset,
    PendingMix,
    Share,
    StageData,
    Steps,
    StreamBatch,
    TrainDataset,
    apply_mix,
    worker_init,
)
from tutelage.data.loading.prefetch import PrefetchLoader, map_tensors
from tutelage.data.loading.shared_memory import cores
from tutelage.data.source import Images, Source, WholeImages, is_ready
from tutelage.data.splits import Splits, split

MOST_WORKERS = 8  # that are started unasked


class ImageDataModule(pl.LightningDataModule):
    """A dataset with its splits, and the loaders of the stage under way.

    A stage is one long epoch to Lightning: the loader's length is the stage's steps, and a resumed stage starts its
    sampler at the global step. Nothing about the position in the data needs saving.
    """

    def __init__(self, config: DataConfig) -> None:
        super().__init__()
        self.config = config
        self.training: StageData | None = None
        self.tell: OnProgress = ignore_progress  # is told of long reads
        self.device = torch.device("cpu")  # where batches are computed with
        self.share = WHOLE  # of each batch, that this process trains on
        self.neighbours = 1  # processes of the run on this machine

    @abstractmethod
    def read(self) -> Source:
        """Return the dataset. Raises UserError where it cannot be read."""

    def fingerprint(self) -> str:
        """Return what the data is beyond its config; empty for a dataset that its name says all about."""
        return ""

    @cached_property
    def source(self) -> Source:
        """The dataset, read once."""
        return self.read()

    @cached_property
    def images(self) -> Images:
        """The dataset's images."""
        found = self.source.images
        return WholeImages(found) if isinstance(found, np.ndarray) else found

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their labels."""
        return self.source.classes

    @cached_property
    def splits(self) -> Splits:
        """Who may see which image."""
        return split(self.source, self.config)

    def train_dataloader(self) -> DataLoader[dict[str, StreamBatch | PendingMix]]:
        """Return the loader of the stage that ``training`` describes."""
        training, trainer = self.training, self.trainer
        if training is None or trainer is None:
            raise RuntimeError("set .training and attach a Trainer first")
        workers = 0 if all(kept.instead for kept in training.kept.values()) and training.kept else self._workers()
        pieces = self.share.pieces
        steps = Steps(training.steps * pieces, lambda: trainer.global_step * pieces)
        return self._shown(training, workers, steps, self.share)

    def shown(self, training: StageData, steps: Sequence[int]) -> Iterator[dict[str, StreamBatch]]:
        """Yield all that a stage is shown at some steps, on the device and mixed, outside of its training."""
        workers = min(self._workers(), len(steps))
        for batch in self._shown(training, workers, steps):
            sent = map_tensors(batch, lambda tensor: tensor.to(self.device, non_blocking=True))
            yield self.on_after_batch_transfer(sent, 0)

    def _shown(
        self, training: StageData, workers: int, steps: Iterable[int], share: Share = WHOLE
    ) -> DataLoader[dict[str, StreamBatch | PendingMix]]:
        shape = (self.config.image_size, self.config.image_size, self.config.channels)
        return self._loader(TrainDataset(self.images, training, shape, share), workers, sampler=steps)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Return a batch whose streams are mixed, each within itself, where it came with a plan for that."""
        if not isinstance(batch, dict):
            return batch
        classes = len(self.source.classes)
        return {name: apply_mix(one, classes) if isinstance(one, PendingMix) else one for name, one in batch.items()}

    def val_dataloader(self) -> DataLoader[EvalBatch] | list[Any]:
        """Return this process's part of the validation images, or an empty list where there are none."""
        if not len(self.splits.validation):
            return []
        own, known = self.share.of_all(self.splits.validation)
        return self.plain(own, again=True, known=known)

    def plain(
        self,
        indices: np.ndarray,
        again: bool = False,
        chosen: Iterable[int] | None = None,
        known: int | None = None,
    ) -> DataLoader[EvalBatch]:
        """Return a loader of un-augmented images in the order of ``indices``.

        Only images that are yet to be decoded get workers.

        Args:
            indices: (n,) of the images.
            again: workers stay from one pass to the next, until the Trainer, or who else holds the loader, is done.
            chosen: the numbers of the batches to show; all where they are not given.
            known: how many of the images count; the label of those behind them is shown as unknown.
        """
        batches = EvalDataset(self.images, self.source.labels, indices, known)
        workers = 0 if is_ready(self.images) or len(batches) == 1 else min(self._workers(), len(batches))
        return self._loader(batches, workers, persistent_workers=again and workers > 0, sampler=chosen)

    def _workers(self) -> int:
        """Return how many processes prepare batches.

        For images that need no decoding and a network on the CPU, where preparing them is little beside a step, none.
        """
        if self.config.num_workers != "auto":
            return self.config.num_workers
        return (
            0
            if is_ready(self.images) and self.device.type == "cpu"
            else min(MOST_WORKERS, max(1, cores() // self.neighbours))
        )

    def _loader(self, dataset: Dataset[Any], workers: int, **options: Any) -> DataLoader[Any]:
        kind = DataLoader if self.device.type == "cpu" else partial(PrefetchLoader, device=self.device)
        return kind(
            dataset,
            batch_size=None,
            num_workers=workers,
            worker_init_fn=worker_init,
            generator=torch.Generator(),  # of its own: a loader must not draw from the training's
            **options,
        )


class Digits(ImageDataModule):
    """scikit-learn's 1,797 handwritten digits."""

    def read(self) -> Source:
        """Return the digits at the config's size."""
        return digits(self.config.image_size, self.config.channels)


class MNIST(ImageDataModule):
    """MNIST: 60,000 training and 10,000 test images of handwritten digits."""

    def read(self) -> Source:
        """Return MNIST at the config's size."""
        return mnist(self.config.root, self.config.image_size, self.config.channels, self.tell)


class FashionMNIST(ImageDataModule):
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes."""

    def read(self) -> Source:
        """Return Fashion-MNIST at the config's size."""
        return fashion_mnist(self.config.root, self.config.image_size, self.config.channels, self.tell)


class CIFAR10(ImageDataModule):
    """CIFAR-10: 50,000 training and 10,000 test photographs of 10 classes."""

    def read(self) -> Source:
        """Return CIFAR-10 at the config's size."""
        return cifar10(self.config.root, self.config.image_size, self.config.channels, self.tell)


class CIFAR100(ImageDataModule):
    """CIFAR-100: 50,000 training and 10,000 test photographs of 100 classes."""

    def read(self) -> Source:
        """Return CIFAR-100 at the config's size."""
        return cifar100(self.config.root, self.config.image_size, self.config.channels, self.tell)


class SVHN(ImageDataModule):
    """SVHN: 73,257 training and 26,032 test photographs of house numbers."""

    def read(self) -> Source:
        """Return SVHN at the config's size."""
        return svhn(self.config.root, self.config.image_size, self.config.channels, self.tell)


class STL10(ImageDataModule):
    """STL-10: 5,000 training, 8,000 test and 100,000 unlabelled photographs."""

    def read(self) -> Source:
        """Return STL-10 at the config's size."""
        return stl10(self.config.root, self.config.image_size, self.config.channels, self.tell)


class Emoji(ImageDataModule):
    """Emoji as two vendors draw them."""

    def read(self) -> Source:
        """Return the emoji at the config's size."""
        return emoji(self.config)

    def fingerprint(self) -> str:
        """Return the versions of the packages."""
        return versions(self.config.root)


class ImageFolder(ImageDataModule):
    """A folder of image files."""

    listed_as = "ImageFolder"

    def read(self) -> Source:
        """Return the images at the config's size, once each file has proved to be readable."""
        return image_files(LISTINGS[self.listed_as](self.config), self.config, self.tell)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; no image is read for them."""
        return LISTINGS[self.listed_as](self.config).classes

    def fingerprint(self) -> str:
        """Return a digest of names, sizes and labels."""
        return fingerprint(LISTINGS[self.listed_as](self.config), self.config, self.tell)


class ImageNet(ImageFolder):
    """ImageNet in folders: ``train/`` and ``val/``, which by custom is the test set."""

    listed_as = "ImageNet"


class Table(ImageFolder):
    """A CSV or Parquet table of paths and labels."""

    listed_as = "Table"


class HuggingFace(ImageDataModule):
    """A dataset of Hugging Face's ``datasets``: saved on disk, or by its name there."""

    def read(self) -> Source:
        """Return the dataset's images at the config's size."""
        return hugging_face(self.config, self.tell)

    def fingerprint(self) -> str:
        """Return the fingerprint that the library keeps."""
        return library_fingerprint(self.config)


def data_module(config: DataConfig) -> ImageDataModule:
    """Return the DataModule that ``data._target_`` names.

    Raises:
        UserError: it names none.
    """
    return resolve(config.target, ImageDataModule, "data._target_")(config)  # type: ignore[no-any-return]
