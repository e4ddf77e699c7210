"""Datasets of Hugging Face's ``datasets`` library (the extra ``tutelage[huggingface]``)."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.pixels import BadImage, read_pixels
from tutelage.data.source import UNKNOWN, Numbered, Source, no_images, resized
from tutelage.data.stratify import stratified
from tutelage.errors import UserError
from tutelage.randomness import Key

SPLITS = {  # ours, and the names that these parts have there
    "train": ("train",),
    "val": ("validation", "valid", "val"),
    "test": ("test",),
    "unlabelled": ("unlabelled", "unlabeled", "unsupervised"),
}


class EncodedImages:
    """The encoded images of several splits, decoded when asked for and brought to one size."""

    def __init__(self, splits: Sequence[Any], column: str, config: DataConfig) -> None:
        self._splits = splits
        self._starts = np.cumsum([0, *map(len, splits)])
        self._column = column
        self._config = config

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        split = int(np.searchsorted(self._starts, index, side="right")) - 1
        place, config = index - int(self._starts[split]), self._config
        found = self._splits[split][place][self._column]
        file = Path(found["path"]) if found["bytes"] is None else io.BytesIO(found["bytes"])
        try:
            pixels = read_pixels(file, config.channels, config.background, config.max_pixels)
        except BadImage as error:
            raise UserError(f"data.root={config.root}: image {index} cannot be read ({error}); mend it there") from None
        return resized(pixels, config.image_size)


def hugging_face(config: DataConfig) -> Source:
    """Return a dataset that ``save_to_disk`` wrote to ``data.root``, or that the hub knows by that name.

    Its parts are its splits train, validation, test and unlabelled (or unsupervised); without test a fifth of each
    class is set aside. A label of -1 means none.

    Raises:
        UserError: the library or the dataset is not there, or has no column of images or of labels.
    """
    parts = _parts(config)
    where = f"data.root={config.root}"
    image, label = _columns(parts["train"].features, where)
    names = _classes(parts["train"], label)
    number = {name: index for index, name in enumerate(names)}
    labels, indices, start = [], {}, 0
    for part, split in parts.items():
        values = split[label] if part != "unlabelled" else []
        known = [v if isinstance(v, int) and v < 0 else number.get(_name(split, label, v), UNKNOWN) for v in values]
        labels.append(np.array(known or [UNKNOWN] * len(split), dtype=np.int64))
        indices[part] = np.arange(start, start + len(split))
        start += len(split)
    all_labels = np.concatenate(labels)
    train, test = indices["train"], indices.get("test", no_images())
    without = train[all_labels[train] == UNKNOWN]
    train = train[all_labels[train] != UNKNOWN]
    test = test[all_labels[test] != UNKNOWN]
    if not len(test):
        test = stratified(train, all_labels, max(1, len(train) // 5), Key(0, "huggingface", "test"))
        train = np.setdiff1d(train, test)
    return Source(
        images=EncodedImages(list(parts.values()), image, config),
        labels=all_labels,
        classes=names,
        train=train,
        test=test,
        val=indices.get("val", no_images()),
        unlabelled=np.concatenate([without, indices.get("unlabelled", no_images())]),
        names=Numbered(start),
    )


def saved_as(config: DataConfig) -> str:
    """Return the fingerprints that the library keeps of the splits."""
    return " ".join(f"{part}:{split._fingerprint}" for part, split in _parts(config).items())


def _parts(config: DataConfig) -> dict[str, Any]:
    """Return the splits by our names for them, their images left encoded."""
    if config.root is None:
        raise UserError("data=huggingface needs data.root=FOLDER (of save_to_disk) or the dataset's NAME on the hub")
    try:
        import datasets
    except ImportError:
        raise UserError("data=huggingface needs the library 'datasets': pip install 'tutelage[huggingface]'") from None
    datasets.disable_progress_bars()
    folder = Path(config.root).expanduser()
    try:
        found = datasets.load_from_disk(str(folder)) if folder.is_dir() else datasets.load_dataset(config.root)
    except Exception as error:  # the library's, the network's, the file system's
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"data.root={config.root}: no such folder of save_to_disk, nor on the hub ({reason})") from None
    splits = found if isinstance(found, datasets.DatasetDict) else {"train": found}
    parts = {ours: splits[name] for ours, known in SPLITS.items() for name in known if name in splits}
    if "train" not in parts:
        raise UserError(f"data.root={config.root}: no split 'train' (there are {', '.join(splits)})")
    column, _ = _columns(parts["train"].features, f"data.root={config.root}")
    return {part: split.cast_column(column, datasets.Image(decode=False)) for part, split in parts.items()}


def _columns(features: Any, where: str) -> tuple[str, str]:
    """Return the names of the columns of images and of labels."""
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel" or name in {"label", "labels"}]
    if not images or not labels:
        what = "images" if not images else "labels"
        told = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise UserError(f"{where}: no column of {what} (there are {told})")
    return images[0], labels[0]


def _classes(train: Any, label: str) -> tuple[str, ...]:
    feature = train.features[label]
    return tuple(getattr(feature, "names", None) or sorted({str(value) for value in train[label] if value is not None}))


def _name(split: Any, label: str, value: Any) -> str:
    names = getattr(split.features[label], "names", None)
    return str(names[value] if names else value)
