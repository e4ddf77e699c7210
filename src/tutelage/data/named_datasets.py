"""The datasets that ``data._target_`` may name, each as a DataModule."""

from abc import abstractmethod
from pathlib import Path

from tutelage.config import DataConfig
from tutelage.config.targets import resolve
from tutelage.data.datasets.cifar import cifar10, cifar100, fetch_cifar10, fetch_cifar100
from tutelage.data.datasets.digits import digits
from tutelage.data.datasets.download import OnProgress
from tutelage.data.datasets.fashion_mnist import fashion_mnist, fetch_fashion_mnist
from tutelage.data.datasets.huggingface import content_fingerprint, fetch_hugging_face, hugging_face
from tutelage.data.datasets.image_files import LISTINGS, fingerprint, image_files
from tutelage.data.datasets.mnist import fetch_mnist, mnist
from tutelage.data.datasets.stl10 import fetch_stl10, stl10
from tutelage.data.datasets.svhn import fetch_svhn, svhn
from tutelage.data.modules import DataRuntime, ImageDataModule
from tutelage.data.source import Source


class Digits(ImageDataModule):
    """scikit-learn's 1,797 handwritten digits."""

    def read(self) -> Source:
        """Return the digits at the config's size."""
        return digits(self.config.image_size, self.config.channels)


class PublishedDataModule(ImageDataModule):
    """A dataset of published files; a subclass names the two functions that fetch and read them."""

    @staticmethod
    @abstractmethod
    def fetch_files(root: str | None, on_progress: OnProgress) -> Path:
        """Return the folder of the files, at ``root`` or in the cache, downloaded where they are missing."""

    @staticmethod
    @abstractmethod
    def read_files(root: str | None, image_size: int, channels: int, on_progress: OnProgress) -> Source:
        """Return the dataset at a size in pixels, with so many channels."""

    def fetch(self) -> Path | None:
        """Return the folder of the files, downloaded where they are missing."""
        return self.fetch_files(self.config.root, self.runtime.on_progress)

    def read(self) -> Source:
        """Return the dataset at the config's size."""
        config = self.config
        return self.read_files(config.root, config.image_size, config.channels, self.runtime.on_progress)


class MNIST(PublishedDataModule):
    """MNIST: 60,000 training and 10,000 test images of handwritten digits."""

    fetch_files = staticmethod(fetch_mnist)
    read_files = staticmethod(mnist)


class FashionMNIST(PublishedDataModule):
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes."""

    fetch_files = staticmethod(fetch_fashion_mnist)
    read_files = staticmethod(fashion_mnist)


class CIFAR10(PublishedDataModule):
    """CIFAR-10: 50,000 training and 10,000 test photographs of 10 classes."""

    fetch_files = staticmethod(fetch_cifar10)
    read_files = staticmethod(cifar10)


class CIFAR100(PublishedDataModule):
    """CIFAR-100: 50,000 training and 10,000 test photographs of 100 classes."""

    fetch_files = staticmethod(fetch_cifar100)
    read_files = staticmethod(cifar100)


class SVHN(PublishedDataModule):
    """SVHN: 73,257 training and 26,032 test photographs of house numbers."""

    fetch_files = staticmethod(fetch_svhn)
    read_files = staticmethod(svhn)


class STL10(PublishedDataModule):
    """STL-10: 5,000 training, 8,000 test and 100,000 unlabelled photographs."""

    fetch_files = staticmethod(fetch_stl10)
    read_files = staticmethod(stl10)


class ImageFolder(ImageDataModule):
    """A folder of image files."""

    listed_as = "ImageFolder"

    def read(self) -> Source:
        """Return the images at the config's size, once each file has proved to be readable."""
        listing = LISTINGS[self.listed_as](self.config, self.runtime.only_test)
        return image_files(listing, self.config, self.runtime.on_progress)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; no image is read for them."""
        return LISTINGS[self.listed_as](self.config).classes

    def fingerprint(self) -> str:
        """Return a digest of names, labels and contents."""
        listing = LISTINGS[self.listed_as](self.config, self.runtime.only_test)
        return fingerprint(listing, self.config, self.runtime.on_progress)


class ImageNet(ImageFolder):
    """ImageNet in folders: ``train/`` and ``val/``, which by custom is the test set."""

    listed_as = "ImageNet"


class Table(ImageFolder):
    """A CSV or Parquet table of paths and labels."""

    listed_as = "Table"


class HuggingFace(ImageDataModule):
    """A dataset of Hugging Face's ``datasets``: saved on disk, or by its name there."""

    def fetch(self) -> Path | None:
        """Return the folder of the files, downloaded where they are missing."""
        return fetch_hugging_face(self.config, self.runtime.on_progress)

    def read(self) -> Source:
        """Return the dataset's images at the config's size."""
        return hugging_face(self.config, self.runtime.on_progress)

    def fingerprint(self) -> str:
        """Return a digest of the images' contents and labels."""
        return content_fingerprint(self.config, self.runtime.on_progress)


def data_module(config: DataConfig, runtime: DataRuntime | None = None) -> ImageDataModule:
    """Return the DataModule that a config's ``_target_`` names.

    Raises:
        UserError: it names none.
    """
    module: ImageDataModule = resolve(config.target, ImageDataModule, "data._target_")(config, runtime)
    return module
