"""Datasets of Hugging Face's ``datasets`` library (the extra ``tutelage[huggingface]``)."""

import io
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.datasets.download import OnProgress, ignore_progress
from tutelage.data.duplicates import find_duplicates
from tutelage.data.files.contents import FindCheck, Scope, content_ids, read_contents
from tutelage.data.files.decoding import Check, FilePicture, open_picture
from tutelage.data.files.listing import FileState, find_path
from tutelage.data.files.names import LABELLED_PARTS, UNLABELLED, abbreviate, find_part, printable, sort_classes
from tutelage.data.files.scan import examine_image, raise_for_unreadable
from tutelage.data.files.threads import Tick
from tutelage.data.files.wide import describe_range
from tutelage.data.fitting import fit_image, fit_picture
from tutelage.data.source import UNKNOWN, IndexNames, Source, empty_indices
from tutelage.errors import UserError, quote_error
from tutelage.storage import digest

if TYPE_CHECKING:
    from tutelage.augmentation import Picture

UNSUPERVISED = "unsupervised"  # what the hub's datasets call unlabelled images
PARTS = (*LABELLED_PARTS, UNLABELLED)
NOT_IN_FILES = np.iinfo(np.int64).max  # the time of change of a split in no file, which is never remembered


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
        config, name = self._config, f"{_setting(self._config)}: image {index}"
        file = io.BytesIO(self.read_encoded(index))
        return open_picture(file, name, config.channels, config.background, config.max_pixels, config.white)

    def read_encoded(self, index: int) -> bytes:
        """Return an image as it is stored; no bytes if the row has no image.

        Raises:
            UserError: the file that the row names cannot be opened.
        """
        split = int(np.searchsorted(self._starts, index, side="right")) - 1
        value = self._splits[split][index - int(self._starts[split])][self._column]
        if value is None:
            return b""
        if value["bytes"] is not None:
            return bytes(value["bytes"])
        try:
            return Path(value["path"]).read_bytes()
        except OSError as error:
            reason, name = error.strerror, f"{_setting(self._config)}: image {index}"
            raise UserError(
                f"{name}: {printable(value['path'])} cannot be opened ({reason}); make it readable"
            ) from None

    def describe(self) -> tuple[list[str], np.ndarray]:
        """Return what identifies each image without reading it, and when it was changed last, (N,) int64 in ns.

        That is by the files of its split and its row, and its own file if it has one.
        """
        keys: list[str] = []
        changed: list[int] = []
        for split in self._splits:
            states = [_file_state(file["filename"]) for file in split.cache_files]
            split_key = digest([key for key, _ in states])
            split_changed = max([time_ns for _, time_ns in states], default=NOT_IN_FILES)
            for row, path in enumerate(_list_paths(split, self._column)):
                key, file_changed = ("", 0) if path is None else _file_state(path)
                keys.append(f"{split_key}\0{row}\0{key}")
                changed.append(max(split_changed, file_changed))
        return keys, np.array(changed, dtype=np.int64)


def _list_paths(split: Any, column: str) -> list[str | None]:
    """Return for each row the path of its image's own file; None for an image that is stored in the split."""
    import pyarrow.compute as pc

    images = split.select_columns([column]).with_format("arrow")[:][column]
    is_outside = pc.is_null(pc.struct_field(images, "bytes"))
    paths: list[str | None] = pc.if_else(is_outside, pc.struct_field(images, "path"), None).to_pylist()
    return paths


def _file_state(path: str) -> tuple[str, int]:
    """Return the key of a file and when it was changed last, in ns, or ``NOT_IN_FILES`` where it is missing."""
    try:
        state = FileState.of(os.stat(path))  # noqa: PTH116
    except OSError:
        return path, NOT_IN_FILES
    return state.key(os.path.abspath(path)), state.changed  # noqa: PTH100


@dataclass(frozen=True)
class Rows:
    """A dataset as its splits have it.

    Attributes:
        images: of all splits.
        labels: (N,) int64.
        classes: the names of the classes.
        indices: of the images of each split; once they are scanned, of those that can be decoded.
        notes: on splits that are not read.
    """

    images: EncodedImages
    labels: np.ndarray
    classes: tuple[str, ...]
    indices: dict[str, np.ndarray]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Dataset(Rows):
    """A dataset that has been scanned.

    Attributes:
        facts: (N,) of ``FACTS``.
        left_out: indices of the images that cannot be decoded.
    """

    facts: np.ndarray
    left_out: np.ndarray


def hugging_face(config: DataConfig, on_progress: OnProgress = ignore_progress) -> Source:
    """Return a dataset that ``save_to_disk`` wrote to ``data.root``, or that has that name on the hub.

    Its parts are its splits, by their names in any case (``names.PART_OF_NAME``; unsupervised is unlabelled too). A
    label of -1 means that there is none.

    Raises:
        UserError: the library or the dataset is missing, or has no column of images or of labels.
    """
    data = _read_dataset(config, on_progress)
    readable, labels = data.indices, data.labels
    labelled = {part: indices[labels[indices] != UNKNOWN] for part, indices in readable.items()}
    unlabelled = [np.setdiff1d(readable["train"], labelled["train"]), readable.get("unlabelled", empty_indices())]
    duplicates = find_duplicates(content_ids(data.facts))
    return Source(
        images=data.images,
        labels=labels,
        classes=data.classes,
        train=labelled["train"],
        test=labelled.get("test", empty_indices()),
        val=labelled.get("val", empty_indices()),
        unlabelled=np.concatenate(unlabelled),
        names=IndexNames(len(labels)),
        left_out=[str(number) for number in data.left_out],
        notes=(*data.notes, *describe_range(int(data.facts["peak"].max(initial=0)), config.white)),
        duplicates=duplicates[~np.isin(duplicates[:, 0], data.left_out)],
    )


def fetch_hugging_face(config: DataConfig, on_progress: OnProgress = ignore_progress) -> Path | None:
    """Return the folder of a dataset of the hub in the library's cache; it is downloaded if the cache lacks it.

    Returns:
        None where ``data.root`` is a folder of ``save_to_disk``, of which nothing is downloaded.

    Raises:
        UserError: the library or the dataset is missing.
    """
    if config.root is not None and find_path(config.root, _setting(config)).is_dir():
        return None
    began = time.time()
    splits, _ = _load_splits(config)
    files = [Path(file["filename"]) for split in splits.values() for file in split.cache_files]
    if not files:
        raise UserError(f"{_setting(config)}: the library keeps no file of it in its cache; save it by save_to_disk")
    if max(file.stat().st_mtime for file in files) >= began:
        on_progress(f"fetching {printable(config.root or '')}", 1.0)
    return files[0].parent


def content_fingerprint(config: DataConfig, on_progress: OnProgress = ignore_progress) -> str:
    """Return a digest of the images' contents and labels, split by split; the library's own may be random or stale.

    Raises:
        UserError: as in ``hugging_face``.
    """
    data = _read_dataset(config, on_progress)
    contents, labels = data.facts["content"].tolist(), data.labels.tolist()
    splits = {
        part: [[contents[index].hex(), labels[index]] for index in indices.tolist()]
        for part, indices in data.indices.items()
    }
    return digest([data.classes, splits])


def read_rows(config: DataConfig) -> Rows:
    """Return a dataset as its splits have it; no image is read.

    Raises:
        UserError: the library or the dataset is missing, or has no column of images or of labels.
    """
    setting = _setting(config)
    splits, notes = _load_splits(config)
    image_column, label_column = _find_columns(splits["train"].features, setting)
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
    images = EncodedImages(list(splits.values()), image_column, config)
    return Rows(images, np.concatenate(label_arrays), classes, indices, notes)


def _read_dataset(config: DataConfig, on_progress: OnProgress) -> _Dataset:
    """Return a dataset whose images are hashed and checked.

    Raises:
        UserError: it cannot be read; or an image cannot be decoded and ``data.on_bad_image`` is stop.
    """
    rows = read_rows(config)
    images, count = rows.images, len(rows.images)

    def examine(number: int, tick: Tick, find_check: FindCheck) -> tuple[bytes, Check]:
        tick(1)
        return examine_image(images.read_encoded(number), find_check, config.max_pixels)

    (keys, changed), message = images.describe(), lambda count: f"checking {count:,} images"
    scope = Scope(f"rows\0{config.root}", keys, changed, np.ones(len(keys), np.int64), config.max_pixels, message)
    facts, reasons = read_contents(scope, examine, on_progress)
    if config.on_bad_image == "stop":
        raise_for_unreadable(reasons, [f"image {index}" for index in range(count)], _setting(config))
    left_out = np.array(sorted(reasons), dtype=np.int64)
    readable = {part: np.setdiff1d(indices, left_out) for part, indices in rows.indices.items()}
    return _Dataset(rows.images, rows.labels, rows.classes, readable, rows.notes, facts, left_out)


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


def _setting(config: DataConfig) -> str:
    return f"data.root={printable(config.root or '')}"


def _load_splits(config: DataConfig) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the splits by our names for them, and a note on others; their images stay encoded."""
    if config.root is None:
        raise UserError("data=huggingface needs data.root=FOLDER (of save_to_disk) or the dataset's NAME on the hub")
    try:
        import datasets
    except ImportError:
        raise UserError("data=huggingface needs the library 'datasets': pip install 'tutelage[huggingface]'") from None
    setting = _setting(config)
    folder = find_path(config.root, setting)
    if folder.is_dir():
        datasets.disable_progress_bars()
    if not folder.exists():
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns twice for each of its tries
        print(f"data=huggingface: asking the hub for {printable(config.root)}", file=sys.stderr, flush=True)
    try:
        dataset = datasets.load_from_disk(str(folder)) if folder.is_dir() else datasets.load_dataset(config.root)
    except ConnectionError as error:
        reason = quote_error(error)
        raise UserError(
            f"{setting}: is no folder, and the hub cannot be asked for it ({printable(reason)}); run 'tutelage fetch' "
            "with the same settings on a machine with network, which brings it to the cache, or name a folder of "
            "save_to_disk"
        ) from None
    except Exception as error:  # raised by the library, the network or the file system
        reason = quote_error(error)
        message = "is no folder of save_to_disk" if folder.exists() else "is no folder, and the hub has no such dataset"
        raise UserError(f"{setting}: {message} ({printable(reason)})") from None
    found = dataset if isinstance(dataset, datasets.DatasetDict) else {"train": dataset}
    names, notes = _find_parts(list(found), setting)
    column, _ = _find_columns(found[names["train"]].features, setting)
    return {part: found[name].cast_column(column, datasets.Image(decode=False)) for part, name in names.items()}, notes


def _find_parts(splits: Sequence[str], setting: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the name of the split of each part, in the order of ``PARTS``, and a note on splits that are no part."""
    parts = {name: UNLABELLED if name.lower() == UNSUPERVISED else find_part(name) for name in splits}
    names = {part: [name for name in splits if parts[name] == part] for part in PARTS}
    for same in names.values():
        if len(same) > 1:
            raise UserError(f"{setting}: splits {' and '.join(map(printable, same))} are the same part; join them")
    if not names["train"]:
        raise UserError(f"{setting}: no split 'train' (there are {abbreviate(splits)})")
    others = [name for name in splits if parts[name] not in PARTS]
    note = f"{setting}: splits that are no part of the data are left out: {abbreviate(others)}"
    return {part: same[0] for part, same in names.items() if same}, (note,) if others else ()


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
