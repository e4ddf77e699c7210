"""The DataModules: a dataset read once, split, and served as keyed training batches and plain evaluation batches."""

import atexit
import math
import multiprocessing
import signal
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from tutelage.augmentation import Mixing, Pipeline, mixed, plan
from tutelage.config import DataConfig, MixConfig
from tutelage.data.ahead import AheadLoader, each_tensor
from tutelage.data.cifar import cifar10, cifar100
from tutelage.data.digits import digits
from tutelage.data.download import Tell, silent
from tutelage.data.emoji import emoji, versions
from tutelage.data.fashion_mnist import fashion_mnist
from tutelage.data.huggingface import hugging_face, saved_as
from tutelage.data.image_files import LISTINGS, fingerprint, image_files
from tutelage.data.kept import Kept
from tutelage.data.mnist import mnist
from tutelage.data.shared import Shared, cores
from tutelage.data.source import Images, Source, WholeImages, gathered, is_ready
from tutelage.data.splits import Splits, split
from tutelage.data.stl10 import stl10
from tutelage.data.streams import Draws, Shows, Stream
from tutelage.data.svhn import svhn
from tutelage.randomness import Key
from tutelage.targets import resolve

EVALUATION_BATCH = 512
FILES_AT_ONCE = 32  # read before they are decoded, or decoded before they are cut
MOST_WORKERS = 8  # that are started unasked


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


def _mixed(unmixed: Unmixed, classes: int) -> Shown:
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

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_views"}

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
            return Shown(nothing, torch.from_numpy(stream.targets[shows.entries]), answers)
        return self._to_mix(step, stream, self._show(shows, stream, view)._replace(answers=answers))

    def _to_mix(self, step: int, stream: Stream, shown: Shown) -> Shown | Unmixed:
        """Return a batch with the plan for mixing it, the same for each view of its images."""
        training, (height, width) = self._training, shown.images.shape[-2:]
        if training.mix is None:
            return shown
        drawn = plan(training.mix, training.key(stream.name), step, stream.batch_size, height, width)
        return Unmixed(shown, drawn.tensors())

    def _show(self, shows: Shows, stream: Stream, view: Pipeline) -> Shown:
        """Return a batch: with two views of each image all first ones, then all second ones."""
        passes, entries, copies = shows
        indices = stream.indices[entries]
        drawn = np.stack([passes, indices, copies], axis=1)
        views = np.empty((view.views, len(indices), *self._shape), dtype=np.uint8)
        stored = self._images.picture if view.takes_any_size else self._images.__getitem__
        at_once = len(indices) if is_ready(self._images) else FILES_AT_ONCE
        for first in range(0, len(indices), at_once):
            some = slice(first, first + at_once)
            view.fill(views[:, some], [stored(index) for index in indices[some].tolist()], drawn[some])
        targets = stream.targets[entries]
        return Shown(channels_first(views), torch.from_numpy(np.concatenate([targets] * view.views)))


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
        return Plain(
            channels_first(images), torch.from_numpy(self._labels.array[indices]), torch.from_numpy(indices.copy())
        )


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
        self.device = torch.device("cpu")  # where batches are computed with

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

    def train_dataloader(self) -> DataLoader[dict[str, Shown | Unmixed]]:
        """Return the loader of the stage that ``training`` describes."""
        training, trainer = self.training, self.trainer
        if training is None or trainer is None:
            raise RuntimeError("set .training and attach a Trainer first")
        workers = 0 if all(kept.instead for kept in training.kept.values()) and training.kept else self._workers()
        return self._shown(training, workers, Steps(training.steps, lambda: trainer.global_step))

    def shown(self, training: Training, steps: Sequence[int]) -> Iterator[dict[str, Shown]]:
        """Yield what a stage is shown at some steps, on the device and mixed, outside of its training."""
        workers = min(self._workers(), len(steps))
        for batch in self._shown(training, workers, steps):
            sent = each_tensor(batch, lambda tensor: tensor.to(self.device, non_blocking=True))
            yield self.on_after_batch_transfer(sent, 0)

    def _shown(self, training: Training, workers: int, steps: Iterable[int]) -> DataLoader[dict[str, Shown | Unmixed]]:
        shape = (self.config.image_size, self.config.image_size, self.config.channels)
        return self._loader(StepBatches(self.images, training, shape), workers, sampler=steps)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Return a batch whose streams are mixed, each within itself, where it came with a plan for that."""
        if not isinstance(batch, dict):
            return batch
        classes = len(self.source.classes)
        return {name: _mixed(one, classes) if isinstance(one, Unmixed) else one for name, one in batch.items()}

    def val_dataloader(self) -> DataLoader[Plain] | list[Any]:
        """Return the validation images, or an empty list where there are none."""
        return self.plain(self.splits.validation, again=True) if len(self.splits.validation) else []

    def plain(self, indices: np.ndarray, again: bool = False) -> DataLoader[Plain]:
        """Return a loader of un-augmented images in the order of ``indices``.

        Only images that are yet to be decoded get workers. With ``again`` these stay from one pass to the next, until
        the Trainer, or who else holds the loader, is done.
        """
        batches = PlainBatches(self.images, self.source.labels, indices)
        workers = 0 if is_ready(self.images) or len(batches) == 1 else min(self._workers(), len(batches))
        return self._loader(batches, workers, persistent_workers=again and workers > 0)

    def _workers(self) -> int:
        """Return how many processes prepare batches.

        For images that need no decoding and a network on the CPU, where preparing them is little beside a step, none.
        """
        if self.config.num_workers != "auto":
            return self.config.num_workers
        return 0 if is_ready(self.images) and self.device.type == "cpu" else min(MOST_WORKERS, cores())

    def _loader(self, dataset: Dataset[Any], workers: int, **options: Any) -> DataLoader[Any]:
        kind = DataLoader if self.device.type == "cpu" else partial(AheadLoader, device=self.device)
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
        return saved_as(self.config)


def data_module(config: DataConfig) -> ImageDataModule:
    """Return the DataModule that ``data._target_`` names.

    Raises:
        UserError: it names none.
    """
    return resolve(config.target, ImageDataModule, "data._target_")(config)  # type: ignore[no-any-return]
