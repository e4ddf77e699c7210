"""Datasets, label budgets and splits, training streams and the DataModules."""

from typing import TYPE_CHECKING, Any

from tutelage.config import DataConfig
from tutelage.data.image_folder import list_folder
from tutelage.data.labels import (
    PROBABILITIES,
    TABLE,
    Selection,
    quality,
    read_probabilities,
    write_probabilities,
    write_table,
)
from tutelage.data.source import UNKNOWN, Source
from tutelage.data.splits import Splits, split
from tutelage.data.stratify import stratified
from tutelage.data.streams import Draws, Stream

if TYPE_CHECKING:
    from tutelage.data.modules import (
        Digits,
        FashionMNIST,
        ImageDataModule,
        ImageFolder,
        Plain,
        Shown,
        Training,
        data_module,
    )

_WITH_TORCH = {
    "Digits",
    "FashionMNIST",
    "ImageDataModule",
    "ImageFolder",
    "Plain",
    "Shown",
    "Training",
    "data_module",
}

__all__ = [
    "PROBABILITIES",
    "TABLE",
    "UNKNOWN",
    "Digits",
    "Draws",
    "FashionMNIST",
    "ImageDataModule",
    "ImageFolder",
    "Plain",
    "Selection",
    "Shown",
    "Source",
    "Splits",
    "Stream",
    "Training",
    "data_module",
    "fingerprint",
    "list_folder",
    "quality",
    "read_probabilities",
    "split",
    "stratified",
    "write_probabilities",
    "write_table",
]


def fingerprint(config: DataConfig) -> str:
    """Return what the data is beyond its config: of a folder, its names, sizes and labels.

    Our own datasets are answered without torch; of others their DataModule is asked.

    Raises:
        UserError: the data is not there.
    """
    if config.target in {"tutelage.data.Digits", "tutelage.data.FashionMNIST"}:
        return ""
    if config.target == "tutelage.data.ImageFolder":
        return list_folder(config.root).fingerprint()
    from tutelage.data.modules import data_module

    return data_module(config).fingerprint()


def __getattr__(name: str) -> Any:
    """Import the DataModules when they are asked for: a folder's fingerprint needs no torch."""
    if name in _WITH_TORCH:
        from tutelage.data import modules

        return getattr(modules, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
