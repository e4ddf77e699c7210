"""Datasets of Hugging Face's ``datasets`` library (the extra ``tutelage[huggingface]``)."""

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.datasets.download import OnProgress, silent
from tutelage.data.files.decoding import FilePicture, complaint, picture
from tutelage.data.files.listing import in_order
from tutelage.data.files.scan import stop_at, unreadable
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
        return resized(self.picture(index).read(), self._config.image_size)

    def picture(self, index: int) -> FilePicture:
        """Return the whole image as it is stored, decoded when it is known how much of it."""
        config, name = self._config, f"data.root={self._config.root}: image {index}"
        return picture(self._file(index), name, config.channels, config.background, config.max_pixels)

    def complaint(self, index: int) -> str:
        """Return why an image gives no pixels; empty where it does."""
        return complaint(self._file(index), self._config.max_pixels)

    def _file(self, index: int) -> Path | io.BytesIO:
        split = int(np.searchsorted(self._starts, index, side="right")) - 1
        found = self._splits[split][index - int(self._starts[split])][self._column]
        if found is None:
            return io.BytesIO()
        return Path(found["path"]) if found["bytes"] is None else io.BytesIO(found["bytes"])


def hugging_face(config: DataConfig, tell: OnProgress = silent) -> Source:
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
        labels.append(_labels(split, label, number) if label in split.column_names else np.full(len(split), UNKNOWN))
        indices[part] = np.arange(start, start + len(split))
        start += len(split)
    all_labels, images = np.concatenate(labels), EncodedImages(list(parts.values()), image, config)
    left_out = _left_out(images, _saved(parts), config, tell)
    kept = {part: np.setdiff1d(found, left_out) for part, found in indices.items()}
    known = {part: found[all_labels[found] != UNKNOWN] for part, found in kept.items()}
    train, test = known["train"], known.get("test", no_images())
    if not len(test):
        test = stratified(train, all_labels, max(1, len(train) // 5), Key(0, "huggingface", "test"))
        train = np.setdiff1d(train, test)
    unlabelled = [np.setdiff1d(kept["train"], known["train"]), kept.get("unlabelled", no_images())]
    return Source(
        images=images,
        labels=all_labels,
        classes=names,
        train=train,
        test=test,
        val=known.get("val", no_images()),
        unlabelled=np.concatenate(unlabelled),
        names=Numbered(start),
        left_out=[str(number) for number in left_out],
    )


def _labels(split: Any, column: str, number: Mapping[str, int]) -> np.ndarray:
    """Return the labels (N,) int64 of a split, UNKNOWN where there is none."""
    names = getattr(split.features[column], "names", None)
    told = (None if v is None else str(v) if names is None else names[v] if v >= 0 else None for v in split[column])
    return np.array([UNKNOWN if name is None else number.get(name, UNKNOWN) for name in told], dtype=np.int64)


def _left_out(images: EncodedImages, saved: str, config: DataConfig, tell: OnProgress) -> np.ndarray:
    """Return the numbers of images that give no pixels.

    Raises:
        UserError: there are such images and ``data.on_bad_image`` is stop.
    """
    states = [f"{saved}\0{number}\0{config.max_pixels}" for number in range(len(images))]
    bad = unreadable(saved, states, images.complaint, tell)
    if config.on_bad_image == "stop":
        stop_at(bad, [f"image {number}" for number in range(len(images))], f"data.root={config.root}")
    return np.array(sorted(bad), dtype=np.int64)


def saved_as(config: DataConfig) -> str:
    """Return the fingerprints that the library keeps of the splits."""
    return _saved(_parts(config))


def _saved(parts: Mapping[str, Any]) -> str:
    return " ".join(f"{part}:{split._fingerprint}" for part, split in parts.items())


def _parts(config: DataConfig) -> dict[str, Any]:
    """Return the splits by our names for them, their images left encoded."""
    if config.root is None:
        raise UserError("data=huggingface needs data.root=FOLDER (of save_to_disk) or the dataset's NAME on the hub")
    try:
        import datasets
    except ImportError:
        raise UserError("data=huggingface needs the library 'datasets': pip install 'tutelage[huggingface]'") from None
    folder = Path(config.root).expanduser()
    if folder.is_dir():
        datasets.disable_progress_bars()
    if not folder.exists():
        print(f"data=huggingface: asking the hub for {config.root}", file=sys.stderr, flush=True)
    try:
        found = datasets.load_from_disk(str(folder)) if folder.is_dir() else datasets.load_dataset(config.root)
    except Exception as error:  # the library's, the network's, the file system's
        reason = " ".join(str(error).split())[:160]
        what = "is no folder of save_to_disk" if folder.exists() else "is no folder, and the hub gives no such dataset"
        raise UserError(f"data.root={config.root}: {what} ({reason})") from None
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
    names = getattr(train.features[label], "names", None)
    return tuple(names) if names else in_order(str(value) for value in train[label] if value is not None)
