"""Datasets of Hugging Face's ``datasets`` library (the extra ``tutelage[huggingface]``)."""

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.datasets.download import MAX_REASON_LENGTH, OnProgress, ignore_progress
from tutelage.data.files.decoding import FilePicture, check_image, open_picture
from tutelage.data.files.names import sort_classes
from tutelage.data.files.scan import find_unreadable, raise_for_unreadable
from tutelage.data.fitting import fit_image, fit_picture
from tutelage.data.source import UNKNOWN, IndexNames, Source, empty_indices
from tutelage.errors import UserError

if TYPE_CHECKING:
    from tutelage.augmentation import Picture

SPLIT_NAMES = {  # our parts, and the names that Hugging Face's datasets give them
    "train": ("train",),
    "val": ("validation", "valid", "val"),
    "test": ("test",),
    "unlabelled": ("unlabelled", "unlabeled", "unsupervised"),
}


class EncodedImages:
    """The encoded images of several splits, each decoded when it is read and brought to one size."""

    def __init__(self, splits: Sequence[Any], column: str, config: DataConfig) -> None:
        self._splits = splits
        self._starts = np.cumsum([0, *map(len, splits)])
        self._column = column
        self._config = config

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        return fit_image(self._open_picture(index).read(), self._config)

    def picture(self, index: int) -> "Picture":
        """Return the image that crops are cut from, not decoded yet (see ``data.fit``)."""
        return fit_picture(self._open_picture(index), self._config)

    def _open_picture(self, index: int) -> FilePicture:
        config, name = self._config, f"data.root={self._config.root}: image {index}"
        return open_picture(self._encoded(index), name, config.channels, config.background, config.max_pixels)

    def check(self, index: int) -> str:
        """Return why an image cannot be decoded; an empty string if it can."""
        return check_image(self._encoded(index), self._config.max_pixels)

    def _encoded(self, index: int) -> Path | io.BytesIO:
        """Return the file of an image; an empty one if the row has no image."""
        split = int(np.searchsorted(self._starts, index, side="right")) - 1
        value = self._splits[split][index - int(self._starts[split])][self._column]
        if value is None:
            return io.BytesIO()
        return Path(value["path"]) if value["bytes"] is None else io.BytesIO(value["bytes"])


def hugging_face(config: DataConfig, on_progress: OnProgress = ignore_progress) -> Source:
    """Return a dataset that ``save_to_disk`` wrote to ``data.root``, or that has that name on the hub.

    Its parts are its splits train, validation, test and unlabelled (or unsupervised). A label of -1
    means that there is none.

    Raises:
        UserError: the library or the dataset is missing, or has no column of images or of labels.
    """
    splits = _load_splits(config)
    image_column, label_column = _find_columns(splits["train"].features, f"data.root={config.root}")
    classes = _read_classes(splits["train"], label_column)
    label_of_class = {name: label for label, name in enumerate(classes)}
    label_arrays, indices, start = [], {}, 0
    for part, split in splits.items():
        has_labels = label_column in split.column_names
        label_arrays.append(
            _read_split_labels(split, label_column, label_of_class) if has_labels else np.full(len(split), UNKNOWN)
        )
        indices[part] = np.arange(start, start + len(split))
        start += len(split)
    labels, images = np.concatenate(label_arrays), EncodedImages(list(splits.values()), image_column, config)
    left_out = _find_left_out(images, _join_fingerprints(splits), config, on_progress)
    readable = {part: np.setdiff1d(part_indices, left_out) for part, part_indices in indices.items()}
    labelled = {part: part_indices[labels[part_indices] != UNKNOWN] for part, part_indices in readable.items()}
    unlabelled = [np.setdiff1d(readable["train"], labelled["train"]), readable.get("unlabelled", empty_indices())]
    return Source(
        images=images,
        labels=labels,
        classes=classes,
        train=labelled["train"],
        test=labelled.get("test", empty_indices()),
        val=labelled.get("val", empty_indices()),
        unlabelled=np.concatenate(unlabelled),
        names=IndexNames(start),
        left_out=[str(number) for number in left_out],
    )


def _read_split_labels(split: Any, column: str, label_of_class: Mapping[str, int]) -> np.ndarray:
    """Return the labels (N,) int64 of a split; ``UNKNOWN`` for images without one."""
    class_names = getattr(split.features[column], "names", None)

    def class_name(value: Any) -> str | None:
        if value is None:
            return None
        if class_names is None:
            return str(value)
        return class_names[value] if value >= 0 else None

    names = map(class_name, split[column])
    return np.array([UNKNOWN if name is None else label_of_class.get(name, UNKNOWN) for name in names], dtype=np.int64)


def _find_left_out(images: EncodedImages, fingerprint: str, config: DataConfig, on_progress: OnProgress) -> np.ndarray:
    """Return the indices of images that cannot be decoded.

    Raises:
        UserError: there are such images and ``data.on_bad_image`` is stop.
    """
    states = [f"{fingerprint}\0{index}\0{config.max_pixels}" for index in range(len(images))]
    reasons = find_unreadable(fingerprint, states, images.check, on_progress)
    if config.on_bad_image == "stop":
        raise_for_unreadable(reasons, [f"image {index}" for index in range(len(images))], f"data.root={config.root}")
    return np.array(sorted(reasons), dtype=np.int64)


def library_fingerprint(config: DataConfig) -> str:
    """Return the fingerprints that the library stores with the splits."""
    return _join_fingerprints(_load_splits(config))


def _join_fingerprints(splits: Mapping[str, Any]) -> str:
    return " ".join(f"{part}:{split._fingerprint}" for part, split in splits.items())


def _load_splits(config: DataConfig) -> dict[str, Any]:
    """Return the splits by our names for them; their images stay encoded."""
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
        dataset = datasets.load_from_disk(str(folder)) if folder.is_dir() else datasets.load_dataset(config.root)
    except Exception as error:  # raised by the library, the network or the file system
        reason = " ".join(str(error).split())[:MAX_REASON_LENGTH]
        message = "is no folder of save_to_disk" if folder.exists() else "is no folder, and the hub has no such dataset"
        raise UserError(f"data.root={config.root}: {message} ({reason})") from None
    found = dataset if isinstance(dataset, datasets.DatasetDict) else {"train": dataset}
    splits = {part: found[name] for part, names in SPLIT_NAMES.items() for name in names if name in found}
    if "train" not in splits:
        raise UserError(f"data.root={config.root}: no split 'train' (there are {', '.join(found)})")
    column, _ = _find_columns(splits["train"].features, f"data.root={config.root}")
    return {part: split.cast_column(column, datasets.Image(decode=False)) for part, split in splits.items()}


def _find_columns(features: Any, setting: str) -> tuple[str, str]:
    """Return the names of the columns of images and of labels."""
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    image_columns = [name for name, kind in kinds.items() if kind == "Image"]
    label_columns = [name for name, kind in kinds.items() if kind == "ClassLabel" or name in {"label", "labels"}]
    if not image_columns or not label_columns:
        missing = "images" if not image_columns else "labels"
        present = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise UserError(f"{setting}: no column of {missing} (there are {present})")
    return image_columns[0], label_columns[0]


def _read_classes(train: Any, label_column: str) -> tuple[str, ...]:
    """Return the classes' names, in the order of their labels."""
    names = getattr(train.features[label_column], "names", None)
    return tuple(names) if names else sort_classes(str(value) for value in train[label_column] if value is not None)
