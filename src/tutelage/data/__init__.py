"""Datasets, label budgets and splits, training streams and the DataModules."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.config import DataConfig
from tutelage.data.balance import class_weights
from tutelage.data.cached_logits import (
    CLASSES,
    LOGITS_FILE,
    CachedLogits,
    CachedLogitsWriter,
    count_views,
    map_rows,
    pack_rows,
    row_dtype,
    unpack_rows,
)
from tutelage.data.datasets import huggingface, image_files
from tutelage.data.datasets.download import OnProgress, ignore_progress
from tutelage.data.datasets.image_files import LISTINGS
from tutelage.data.files.listing import abbreviate
from tutelage.data.loading.streams import Stream, StreamSampler
from tutelage.data.pseudo_labels.labels import Labels, read_labels, read_metadata, shard_files
from tutelage.data.pseudo_labels.selection import Rules, Selection, Targets, select
from tutelage.data.pseudo_labels.store import LabelStore
from tutelage.data.pseudo_labels.summary import ROUND, TABLE, write_summary, write_table
from tutelage.data.shards.pools import absolute_pool
from tutelage.data.source import UNKNOWN, Part, Source, from_parts
from tutelage.data.splits import Splits, split
from tutelage.data.stratify import draw_stratified
from tutelage.errors import UserError

if TYPE_CHECKING:
    from tutelage.data.loading.batches import BatchShard, EvalBatch, StageData, StreamBatch
    from tutelage.data.modules import (
        CIFAR10,
        CIFAR100,
        MNIST,
        STL10,
        SVHN,
        DataRuntime,
        Digits,
        FashionMNIST,
        HuggingFace,
        ImageDataModule,
        ImageFolder,
        ImageNet,
        Table,
        data_module,
    )

_WITH_TORCH = {
    "BatchShard",
    "CIFAR10",
    "CIFAR100",
    "DataRuntime",
    "Digits",
    "EvalBatch",
    "FashionMNIST",
    "HuggingFace",
    "ImageDataModule",
    "ImageFolder",
    "ImageNet",
    "MNIST",
    "STL10",
    "SVHN",
    "StageData",
    "StreamBatch",
    "Table",
    "data_module",
}
# datasets that their names identify: they have no fingerprint
_NAMED_DATA = {
    "CIFAR10",
    "CIFAR100",
    "Digits",
    "FashionMNIST",
    "MNIST",
    "STL10",
    "SVHN",
}

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "CLASSES",
    "LOGITS_FILE",
    "MNIST",
    "ROUND",
    "STL10",
    "SVHN",
    "TABLE",
    "UNKNOWN",
    "BatchShard",
    "CachedLogits",
    "CachedLogitsWriter",
    "DataRuntime",
    "Digits",
    "EvalBatch",
    "FashionMNIST",
    "HuggingFace",
    "ImageDataModule",
    "ImageFolder",
    "ImageNet",
    "LabelStore",
    "Labels",
    "Part",
    "Rules",
    "Selection",
    "Source",
    "Splits",
    "StageData",
    "Stream",
    "StreamBatch",
    "StreamSampler",
    "Table",
    "Targets",
    "abbreviate",
    "absolute_pool",
    "class_weights",
    "count_views",
    "data_module",
    "draw_stratified",
    "fingerprint",
    "from_parts",
    "map_rows",
    "pack_rows",
    "read_labels",
    "read_metadata",
    "row_dtype",
    "select",
    "shard_files",
    "split",
    "unpack_rows",
    "write_summary",
    "write_table",
]


def fingerprint(config: DataConfig, on_progress: OnProgress = ignore_progress) -> str:
    """Return a digest of the data beyond its config: of files, their names, sizes and labels.

    Our own datasets need no torch for it; for others their DataModule computes it.

    Args:
        config: the data.
        on_progress: called during long reads.

    Raises:
        UserError: the data is not there.
    """
    module, _, name = config.target.rpartition(".")
    if module == "tutelage.data" and name in _NAMED_DATA:
        if config.root is not None and not Path(config.root).expanduser().is_dir():
            raise UserError(f"data.root={config.root}: no such folder")
        return ""
    if module == "tutelage.data" and name in LISTINGS:
        return image_files.fingerprint(LISTINGS[name](config), config, on_progress)
    if module == "tutelage.data" and name == "HuggingFace":
        return huggingface.library_fingerprint(config)
    from tutelage.data.modules import data_module

    return data_module(config).fingerprint()


def __getattr__(name: str) -> Any:
    """Import the DataModules when they are asked for: a folder's fingerprint needs no torch."""
    if name in _WITH_TORCH:
        from tutelage.data import modules

        return getattr(modules, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
