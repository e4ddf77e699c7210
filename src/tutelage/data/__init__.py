"""Datasets, label budgets and splits, training streams and the DataModules."""

from typing import TYPE_CHECKING, Any

from tutelage.data.balance import UNEVEN_RATIO, are_uneven, class_weights
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
from tutelage.data.duplicates import describe_duplicates
from tutelage.data.files.names import OLD_CLASSES, WITHOUT_DUPLICATES, abbreviate
from tutelage.data.fingerprints import fingerprint
from tutelage.data.loading.streams import Stream, StreamSampler
from tutelage.data.predictions import Predictions
from tutelage.data.pseudo_labels.labels import EVALUATION_BATCH, Labels, read_labels, read_metadata, shard_files
from tutelage.data.pseudo_labels.selection import Rules, Selection, Targets, select
from tutelage.data.pseudo_labels.store import LabelStore
from tutelage.data.pseudo_labels.summary import ROUND, TABLE, write_summary, write_table
from tutelage.data.shards.pools import absolute_pool
from tutelage.data.source import UNKNOWN, Part, Source, from_parts
from tutelage.data.splits import Splits, split
from tutelage.data.stratify import draw_stratified

if TYPE_CHECKING:
    from tutelage.data.loading.batches import BatchShard, EvalBatch, StageData, StreamBatch
    from tutelage.data.modules import DataRuntime, ImageDataModule
    from tutelage.data.named_datasets import (
        CIFAR10,
        CIFAR100,
        MNIST,
        STL10,
        SVHN,
        Digits,
        FashionMNIST,
        HuggingFace,
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

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "CLASSES",
    "EVALUATION_BATCH",
    "LOGITS_FILE",
    "MNIST",
    "OLD_CLASSES",
    "ROUND",
    "STL10",
    "SVHN",
    "TABLE",
    "UNEVEN_RATIO",
    "UNKNOWN",
    "WITHOUT_DUPLICATES",
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
    "Predictions",
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
    "are_uneven",
    "class_weights",
    "count_views",
    "data_module",
    "describe_duplicates",
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


def __getattr__(name: str) -> Any:
    """Import the DataModules when they are asked for: a folder's fingerprint needs no torch."""
    if name in _WITH_TORCH:
        from tutelage.data import modules, named_datasets

        return getattr(modules if hasattr(modules, name) else named_datasets, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
