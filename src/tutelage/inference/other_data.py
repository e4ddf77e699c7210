"""Another test set: which dataset the user's words name, and its images, read as a network sees pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.config import DataConfig
from tutelage.config.compose import compose
from tutelage.config.data import FILES, KNOWN_TO, OPTIONS
from tutelage.config.path_values import override_key
from tutelage.data import UNKNOWN, DataRuntime, ImageDataModule, Splits, draw_stratified
from tutelage.data.files.names import FURTHER_TEST_PREFIX
from tutelage.data.named_datasets import data_module
from tutelage.data.source import empty_indices
from tutelage.errors import UserError
from tutelage.randomness import Key

TABLE, FOLDER = "Table", "ImageFolder"  # classes that read files
TYPED = ("data", "data.root", "data.layout", "data.limit", "data.on_bad_image", "data.num_workers")
# of the network's data: how pictures are read and brought to size
SEEN = ("image_size", "channels", "mean", "std", "fit", "background", "white", "max_pixels")


@dataclass(frozen=True)
class EvaluationSet:
    """The images of a dataset that networks are measured on.

    Attributes:
        data: the dataset.
        indices: (N,) int64, of the images.
        is_own_part: the dataset has a test set, and they are it; else they are all its labelled images.
        notes: what is to be known about them.
    """

    data: ImageDataModule
    indices: np.ndarray
    is_own_part: bool
    notes: tuple[str, ...]


def compose_other_data(network_data: DataConfig, overrides: Sequence[str], config_dirs: Sequence[str]) -> DataConfig:
    """Return the config of the dataset that a network is tested on.

    Args:
        network_data: how the network sees pictures.
        overrides: ``data=`` and keys of it. Without ``data=``, a file is a table; a folder is read as that of the
            network's run where it was one of people's own pictures, else as ``image_folder``.
        config_dirs: users' own config folders.

    Raises:
        UserError: the config is refused, or a key is not one of ``TYPED``.
    """
    keys = {override_key(override): override.partition("=")[2] for override in overrides}
    if unknown := sorted(set(keys) - set(TYPED)):
        raise UserError(
            f"{unknown[0]}: no key of a test set; there are {', '.join(TYPED)}. How pictures are brought to size is "
            "the network's"
        )
    target = _guess_target(network_data, keys.get("data.root", ""))
    option = [] if "data" in keys else [f"data={OPTIONS.get(target.rpartition('.')[2], 'image_folder')}"]
    composed = compose([*option, *overrides, "recipe=none"], config_dirs).data
    values = composed.model_dump(by_alias=True)
    if option:
        values["_target_"] = target
    name = values["_target_"].rpartition(".")[2]
    for key in SEEN:
        if name in KNOWN_TO.get(key, (name,)):
            values[key] = getattr(network_data, key)
    if "data.num_workers" not in keys:
        values["num_workers"] = network_data.num_workers
    return DataConfig.model_validate(values | {"validation": "none", "balance": "none"})


def _guess_target(network_data: DataConfig, root: str) -> str:
    """Return the class that reads ``data.root`` where ``data=`` is not typed."""
    name, target = network_data.target.rpartition(".")[2], network_data.target
    is_file = Path(root).expanduser().is_file()
    if network_data.is_ours and (name not in OPTIONS or (name in FILES and is_file != (name == TABLE))):
        return f"tutelage.data.{TABLE if is_file else FOLDER}"
    return target


def read_evaluation_set(config: DataConfig, runtime: DataRuntime) -> EvaluationSet:
    """Return the test set of a dataset, or all its labelled images where it has none; ``data.limit`` holds.

    Args:
        config: the dataset's, as ``compose_other_data`` returns it.
        runtime: with ``only_test``.

    Raises:
        UserError: it cannot be read, or has no labelled image.
    """
    data = data_module(config, runtime)
    source, notes = data.source, list(data.source.notes)
    is_own_part = len(source.test) > 0
    indices = source.test if is_own_part else np.sort(np.concatenate([source.train, source.val]))
    indices = indices[source.labels[indices] != UNKNOWN].astype(np.int64)
    if not len(indices):
        raise UserError(f"data.root={config.root}: no image with a label to be tested on; put them into CLASS/")
    for name in source.further_tests:
        folder = f"{FURTHER_TEST_PREFIX}{name}"
        notes.append(f"{folder}/ is left out; data.root={config.root}/{folder} is a test set of its own")
    if config.limit is not None:
        indices = draw_stratified(indices, source.labels, config.limit, Key(config.split_seed, "limit"))
    nothing = empty_indices()
    data.splits = Splits(nothing, nothing, indices, nothing, "none")  # no budget, no pool, nothing set aside
    return EvaluationSet(data, indices, is_own_part, tuple(notes))


def describe_own_data(run: str, record: Mapping[str, Any], images: EvaluationSet) -> Sequence[str]:
    """Return a warning where a network is measured on all pictures of the data that its run has learned from."""
    own = record["identity"]["data"].get("fingerprint")
    if images.is_own_part or not own or own != images.data.fingerprint():
        return ()
    return (
        f"{run} has learned from these pictures: how many of them it knows does not say how many others it would know",
    )
