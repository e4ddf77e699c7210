"""The DataModules: a dataset read once, split, and served as keyed training batches and plain evaluation batches."""

import math
import signal
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from tutelage.augmentation import Pipeline
from tutelage.config import DataConfig
from tutelage.data.cifar import cifar10, cifar100
from tutelage.data.digits import digits
from tutelage.data.download import Tell, silent
from tutelage.data.fashion_mnist import fashion_mnist
from tutelage.data.huggingface import hugging_face, saved_as
from tutelage.data.image_files import LISTINGS, fingerprint, image_files
from tutelage.data.mnist import mnist
from tutelage.data.source import Images, Source
from tutelage.data.splits import Splits, split
from tutelage.data.stl10 import stl10
from tutelage.data.streams import Draws, Stream
from tutelage.data.svhn import svhn
from tutelage.randomness import Key
from tutelage.targets import resolve

EVALUATION_BATCH = 512


class Shown(NamedTuple):
    """What one stream shows in a step: images (B, C, H, W) uint8, targets (B,) int64 or (B, C) float32."""

    images: torch.Tensor
    targets: torch.Tensor


class Plain(NamedTuple):
    """Images as they are, for evaluation: (B, C, H, W) uint8, labels (B,) int64, indices (B,) int64."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


@dataclass(frozen=True)
class Training:
    """What one stage trains on: its streams, its augmentation, the key of its draws and its length in steps."""

    streams: Sequence[Stream]
    transforms: Sequence[dict[str, Any]]
    key: Callable[[str], Key]
    steps: int


def channels_first(images: np.ndarray) -> torch.Tensor:
    """Return a batch (B, H, W, C) as a tensor (B, C, H, W), contiguous."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


class StepBatches(Dataset[dict[str, Shown]]):
    """The batch of each optimizer step, by stream; a whole batch a call."""

    def __init__(self, images: Images, training: Training) -> None:
        self._images = images
        self._training = training

    def __len__(self) -> int:
        return self._training.steps

    @cached_property
    def _views(self) -> list[tuple[Stream, Draws, Pipeline]]:
        training = self._training
        keys = [training.key(stream.name) for stream in training.streams]
        return [
            (stream, Draws(stream, key), Pipeline(training.transforms, key))
            for stream, key in zip(training.streams, keys, strict=True)
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_views"}

    def __getitem__(self, step: int) -> dict[str, Shown]:
        return {stream.name: self._show(step, stream, draws, view) for stream, draws, view in self._views}

    def _show(self, step: int, stream: Stream, draws: Draws, view: Pipeline) -> Shown:
        drawn = list(draws.at(step))
        entries = np.array([entry for _, entry, _ in drawn])
        images: np.ndarray | None = None
        for place, (pass_, entry, copy) in enumerate(drawn):
            index = int(stream.indices[entry])
            image = view(self._images[index], pass_, index, copy)
            if images is None:
                images = np.empty((len(drawn), *image.shape), dtype=np.uint8)
            images[place] = image
        assert images is not None  # noqa: S101 - a stream's batch is never empty
        return Shown(channels_first(images), torch.from_numpy(stream.targets[entries]))


class PlainBatches(Dataset[Plain]):
    """Un-augmented images in the order of ``indices``, a whole batch an item."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self._source = source
        self._indices = indices

    def __len__(self) -> int:
        return math.ceil(len(self._indices) / EVALUATION_BATCH)

    def __getitem__(self, batch: int) -> Plain:
        indices = self._indices[batch * EVALUATION_BATCH : (batch + 1) * EVALUATION_BATCH]
        images = np.stack([self._source.images[int(i)] for i in indices])
        return Plain(channels_first(images), torch.from_numpy(self._source.labels[indices]), torch.from_numpy(indices))


class Steps(Sampler[int]):
    """The steps that are still to do; where to start is asked when iteration begins."""

    def __init__(self, total: int, done: Callable[[], int]) -> None:
        self._total = total
        self._done = done

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._done(), self._total))


def _leave_signals_to_the_parent(worker: int) -> None:
    """Let a worker outlive a signal to the whole process group, so that the step under way is finished and saved."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class ImageDataModule(pl.LightningDataModule):
    """A dataset with its splits, and the loaders of the stage under way.

    A stage is one long epoch to Lightning: the loader's length is the stage's steps, and a resumed stage starts its
    sampler at the global step. Nothing about the position in the data needs saving.
    """

    def __init__(self, config: DataConfig) -> None:
        super().__init__()
        self.config = config
        self.training: Training | None = None
        self.tell: Tell = silent  # is told of long reads

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

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their labels."""
        return self.source.classes

    @cached_property
    def splits(self) -> Splits:
        """Who may see which image."""
        return split(self.source, self.config)

    def train_dataloader(self) -> DataLoader[dict[str, Shown]]:
        """Return the loader of the stage that ``training`` describes."""
        training, trainer = self.training, self.trainer
        if training is None or trainer is None:
            raise RuntimeError("set .training and attach a Trainer first")
        return self._loader(
            StepBatches(self.source.images, training),
            sampler=Steps(training.steps, lambda: trainer.global_step),
        )

    def val_dataloader(self) -> DataLoader[Plain] | list[Any]:
        """Return the validation images, or an empty list where there are none."""
        return self.plain(self.splits.validation) if len(self.splits.validation) else []

    def plain(self, indices: np.ndarray) -> DataLoader[Plain]:
        """Return a loader of un-augmented images in the order of ``indices``."""
        return self._loader(PlainBatches(self.source, indices))

    def _loader(self, dataset: Dataset[Any], **options: Any) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.config.num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_signals_to_the_parent,
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
        return saved_as(self.config)


def data_module(config: DataConfig) -> ImageDataModule:
    """Return the DataModule that ``data._target_`` names.

    Raises:
        UserError: it names none.
    """
    return resolve(config.target, ImageDataModule, "data._target_")(config)  # type: ignore[no-any-return]
