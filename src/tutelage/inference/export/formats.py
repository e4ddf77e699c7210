"""What a format of exported networks is: how its files are written, run for the check, and run by who gets them."""

import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from tutelage.errors import UserError, quote_error
from tutelage.models import ImageClassifier

LOGITS, PROBABILITIES, IMAGES = "logits", "probabilities", "images"  # names of a file's outputs and its input
EXTRA = "pip install 'tutelage[export]'"


class LoadedFiles(NamedTuple):
    """A network that was read from exported files.

    Attributes:
        classes: the names that the files hold, in the order of the logits.
        compute: takes images (B, C', S, S) uint8; returns LOGITS (B, C) float32, and more outputs of that shape.
    """

    classes: tuple[str, ...]
    compute: Callable[[np.ndarray], dict[str, np.ndarray]]


class Format(ABC):
    """A format of exported networks.

    Attributes:
        name: that a user types.
        file: the name of the file of the weights.
        library: that runs the file, as the Hub calls it.
        packages: of the extra that the export needs.
        usage: lines of Python that classify ``picture``, which is (C', S, S) uint8, and end with ``logits``, an array
            (1, C); they stand in the folder of the file. ``MEAN`` and ``STD`` are replaced by a value for each channel.
    """

    name: ClassVar[str]
    file: ClassVar[str]
    library: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    usage: ClassVar[str]

    def check_packages(self) -> None:
        """Raise a UserError where a package of the extra is missing."""
        for package in self.packages:
            if find_spec(package) is None:
                raise UserError(f"--format {self.name}: {package} is not installed; {EXTRA}")

    def check_network(self, network: ImageClassifier) -> None:  # noqa: B027 - most formats take every network
        """Raise a UserError where the format has no place for a network of this architecture."""

    @abstractmethod
    def write(self, network: ImageClassifier, fit: str, folder: Path) -> None:
        """Write a network's files into a folder.

        Args:
            network: with one head, in eval mode, on the CPU.
            fit: how its pictures are brought to size, ``data.fit``.
            folder: an empty one.

        Raises:
            UserError: the format has no place for this network.
        """

    @abstractmethod
    def load(self, folder: Path) -> LoadedFiles:
        """Return what is in the files that ``write`` has written, read by the library that a receiver would take."""


@contextmanager
def quietly() -> Iterator[None]:
    """Let libraries print, warn and log nothing: exporters say on several screens what means nothing to a user."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def refuse_network(name: str, error: Exception) -> Exception:
    """Return the error of a network that a library cannot bring into a format: why, and the way out.

    An error of the file system, such as a full disk, is returned as it is.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return UserError(
        f"--format {name}: this network cannot be exported so ({type(error).__name__}: {quote_error(error)}); "
        "--format safetensors takes every network"
    )
