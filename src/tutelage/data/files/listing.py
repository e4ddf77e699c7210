"""Listings of image files: those of folders, tables and lists, with their parts and classes."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tutelage.data.datasets.download import MAX_REASON_LENGTH
from tutelage.errors import UserError
from tutelage.storage import digest

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})
UNSUPPORTED_SUFFIXES = frozenset(
    {".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".ico", ".tga", ".psd", ".svg"}
    | {".dng", ".cr2", ".nef", ".arw", ".raw"}
)
ALL, UNLABELLED = "all", "unlabelled"
LABELLED_PARTS = ("train", "val", "test")
FURTHER_TEST_PREFIX = "test-"  # of the names of further test sets
TABLE_SUFFIXES = (".csv", ".parquet")
COLUMNS = ("path", "label", "split")
MAX_NAMED = 5  # things that a message names before it only counts


class Entry(NamedTuple):
    """An image file.

    Attributes:
        part: train, val, test, test-NAME or unlabelled; all: to be split.
        name: the path below the data's folder.
        label: the name of the class; None if there is none.
        path: where the file is.
        size: in bytes.
        time: of the last change, in ns.
    """

    part: str
    name: str
    label: str | None
    path: str
    size: int
    time: int


@dataclass(frozen=True)
class Listing:
    """Image files in a fixed order.

    Attributes:
        setting: what the user typed to name the data (``data.root=...``), for messages.
        path: the folder or table.
        entries: the files.
        classes: the names of the classes, in the order of their labels.
        notes: what the user should know about the files.
    """

    setting: str
    path: Path
    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Return a digest of the files' parts, names, labels and sizes; it does not depend on the folder's path."""
        whole = hashlib.sha256()
        for entry in self.entries:
            whole.update(digest([entry.part, entry.name, entry.label, entry.size]).encode())
        return whole.hexdigest()


def list_folder(root: str | None, unlabelled: str | None = None, val_is_test: bool = False) -> Listing:
    """Return the images under ``root``: ``train/CLASS/``, ``val/``, ``test/`` and ``unlabelled/``; or ``CLASS/`` alone.

    Beside ``train/`` there may be further test sets, ``test-NAME/CLASS/``.

    Args:
        root: the folder.
        unlabelled: another folder of unlabelled images, or a list of them.
        val_is_test: ``val/`` is the test set, as is usual for ImageNet.

    Raises:
        UserError: no folder, no class or no image.
    """
    if root is None:
        name = "imagenet" if val_is_test else "image_folder"
        raise UserError(f"data={name} needs data.root=FOLDER (with train/CLASS/..., or CLASS/... to be split)")
    setting, folder = f"data.root={root}", Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"{setting}: {'a file, not a folder' if folder.exists() else 'no such folder'}")
    in_parts = (folder / "train").is_dir()
    _check_parts(folder, in_parts, setting)
    unsupported: Counter[str] = Counter()
    entries = _list_labelled(folder, in_parts, val_is_test, unsupported)
    if (folder / UNLABELLED).is_dir():
        entries += _list_images(folder / UNLABELLED, folder, UNLABELLED, None, unsupported)
    classes = tuple(sorted({entry.label for entry in entries if entry.part in {"train", ALL} and entry.label}))
    if len(classes) < 2:  # noqa: PLR2004 - a classifier needs two classes
        parent = "train/CLASS/" if in_parts else "CLASS/"
        raise UserError(f"{setting}: found {_describe_classes(classes)} under {parent}; at least 2 are needed")
    untrained = sorted({entry.label for entry in entries if entry.label} - set(classes))
    if untrained:
        raise UserError(f"{setting}: classes in val/ or test/ that train/ lacks: {abbreviate(untrained)}")
    notes = _unsupported_notes(unsupported, setting)
    return _add_unlabelled(Listing(setting, folder, tuple(entries), classes, notes), unlabelled)


def _check_parts(folder: Path, in_parts: bool, setting: str) -> None:
    """Raise a UserError if images are outside class folders, two parts are one folder, or train/ is missing."""
    present = [folder / part for part in LABELLED_PARTS if (folder / part).is_dir()]
    if not in_parts and {path.name for path in present} >= {"val", "test"}:
        raise UserError(f"{setting}: val/ and test/, but no train/; put the images to learn from into train/CLASS/")
    if len({path.resolve() for path in present}) < len(present):
        raise UserError(
            f"{setting}: two of train/, val/ and test/ are the same folder; do not test on images learned from"
        )
    for top in present if in_parts else [folder]:
        stray = [path.name for path in top.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
        if stray:
            raise UserError(
                f"{top}: {len(stray):,} images outside class folders: {abbreviate(sorted(stray))}; "
                f"move them into {top.name}/CLASS/, or into {UNLABELLED}/ beside the classes"
            )


def _list_labelled(folder: Path, in_parts: bool, val_is_test: bool, unsupported: Counter[str]) -> list[Entry]:
    """Return the images in class folders, part by part and class by class."""
    tops = {part: folder / part for part in LABELLED_PARTS} if in_parts else {ALL: folder}
    if in_parts:
        tops |= {top.name: top for top in sorted(folder.glob(f"{FURTHER_TEST_PREFIX}?*")) if top.is_dir()}
    entries: list[Entry] = []
    for part, top in tops.items():
        entry_part = "test" if part == "val" and val_is_test else part
        for label in sorted(p.name for p in top.iterdir() if p.is_dir()) if top.is_dir() else ():
            if label.startswith(".") or (not in_parts and label == UNLABELLED):
                continue
            files = list(_list_images(top / label, folder, entry_part, label, unsupported))
            if not files:
                suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
                raise UserError(f"{top / label}: a class without images (looked for {suffixes}); fill or remove it")
            entries += files
    return entries


def list_table(root: str | None, unlabelled: str | None = None) -> Listing:
    """Return the images of a CSV or Parquet table with columns ``path`` and ``label``.

    Paths are relative to the table's folder. A column ``split`` may say train, val, test or unlabelled; without it a
    fifth of each class is set aside for the test. A row without a label is unlabelled.

    Raises:
        UserError: the table cannot be read, lacks a column, or names files that do not exist.
    """
    if root is None:
        raise UserError("data=table needs data.root=FILE, a .csv or .parquet with columns path and label")
    setting, file = f"data.root={root}", Path(root).expanduser()
    rows = _read_table_rows(file, setting)
    entries = tuple(_list_rows(rows, file.parent, setting))
    paths = [os.path.normpath(entry.path) for entry in entries]
    first_row = {path: number for number, path in reversed([*enumerate(paths)])}
    repeated = [entries[number].name for number, path in enumerate(paths) if first_row[path] != number]
    if repeated:
        raise UserError(f"{setting}: paths that are listed twice: {abbreviate(repeated)}")
    classes = sort_classes({label for part, _, label in rows if label and part in {"train", ALL}})
    if len(classes) < 2:  # noqa: PLR2004 - a classifier needs two classes
        raise UserError(f"{setting}: found {_describe_classes(classes)} to learn from; at least 2 are needed")
    untrained = sorted({label for part, _, label in rows if label and part in {"val", "test"}} - set(classes))
    if untrained:
        raise UserError(f"{setting}: classes in val or test that no training row has: {abbreviate(untrained)}")
    return _add_unlabelled(Listing(setting, file, entries, classes), unlabelled)


def _read_table_rows(file: Path, setting: str) -> list[tuple[str, str, str | None]]:
    """Return (part, path, label) of each row of a table."""
    columns = _read_columns(file, setting)
    if "label" not in columns:
        raise UserError(f"{setting}: no column 'label' (there are {', '.join(columns)})")
    splits = columns.get("split") or [None] * len(columns["path"])
    allowed = {*LABELLED_PARTS, UNLABELLED}
    rows: list[tuple[str, str, str | None]] = []
    for name, label, split in zip(columns["path"], columns["label"], splits, strict=True):
        if "split" in columns and split not in allowed:
            raise UserError(f"{setting}: {name} has split {split!r}; allowed are {', '.join(sorted(allowed))}")
        if not label and split in {"val", "test"}:
            raise UserError(f"{setting}: {name} has split {split} but no label")
        rows.append((UNLABELLED if not label else split or ALL, str(name), label or None))
    return rows


def _describe_classes(names: Sequence[str]) -> str:
    return "no class" if not names else f"1 class ({names[0]})" if len(names) == 1 else f"{len(names)} classes"


def _unsupported_notes(unsupported: Counter[str], setting: str) -> tuple[str, ...]:
    """Return a note on images of formats that are not supported, counted by suffix; none if there are none."""
    if not unsupported:
        return ()
    counts = ", ".join(f"{suffix} {count:,}" for suffix, count in unsupported.most_common())
    return (f"{setting}: images of unsupported formats are ignored ({counts}); convert them to PNG or JPEG",)


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names of classes in the order of their labels: by value if all are numbers, else by name."""
    distinct = sorted(set(names))
    return tuple(sorted(distinct, key=int)) if all(map(str.isdecimal, distinct)) else tuple(distinct)


def abbreviate(names: Sequence[str]) -> str:
    """Return the first of many names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _add_unlabelled(listing: Listing, unlabelled: str | None) -> Listing:
    """Return the listing with the images of ``data.unlabelled`` that it does not have already."""
    if unlabelled is None:
        return listing
    setting, path = f"data.unlabelled={unlabelled}", Path(unlabelled).expanduser()
    unsupported: Counter[str] = Counter()
    if path.is_dir():
        entries = list(_list_images(path, path, UNLABELLED, None, unsupported))
    elif path.suffix == ".txt" and path.is_file():
        names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        entries = list(_list_rows([(UNLABELLED, name, None) for name in names], path.parent, setting))
    elif path.suffix in TABLE_SUFFIXES:
        names = [str(name) for name in _read_columns(path, setting)["path"]]
        entries = list(_list_rows([(UNLABELLED, name, None) for name in names], path.parent, setting))
    elif not path.exists():
        raise UserError(f"{setting}: no such file or folder")
    else:
        lists = ".txt with a path a line, .csv or .parquet with 'path'"
        raise UserError(f"{setting}: neither a folder, nor a list ({lists}), nor shards (.tar, .parquet with images)")
    if not entries:
        raise UserError(f"{setting}: no image files there (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    listed = {os.path.realpath(entry.path) for entry in listing.entries}
    new = [entry for entry in entries if os.path.realpath(entry.path) not in listed]
    notes = (*listing.notes, *_unsupported_notes(unsupported, setting))
    if len(new) < len(entries):
        notes += (f"{setting}: {len(entries) - len(new):,} of its images are elsewhere in the data, not in the pool",)
    return replace(listing, entries=(*listing.entries, *new), notes=notes)


def _read_columns(file: Path, setting: str) -> dict[str, list[str | None]]:
    """Return those of the columns path, label and split that a table has, as texts."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    if file.suffix not in TABLE_SUFFIXES:
        raise UserError(f"{setting}: neither a .csv nor a .parquet file")
    try:
        if file.suffix == ".csv":
            types = dict.fromkeys(COLUMNS, pa.string())
            options = csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
            table = csv.read_csv(file, convert_options=options)
        else:
            present = parquet.read_schema(file).names
            table = parquet.read_table(file, columns=[name for name in present if name in COLUMNS])
        if "path" not in table.column_names:
            hint = "; columns are separated by commas" if any(c in str(table.column_names) for c in ";\t") else ""
            raise UserError(f"{setting}: no column 'path' (there are {', '.join(table.column_names)}){hint}")
        return {name: table[name].cast(pa.string()).to_pylist() for name in COLUMNS if name in table.column_names}
    except FileNotFoundError:
        raise UserError(f"{setting}: no such file") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:MAX_REASON_LENGTH]
        raise UserError(f"{setting}: cannot be read as a table ({reason})") from None


def _list_rows(rows: Iterable[tuple[str, str, str | None]], folder: Path, setting: str) -> Iterator[Entry]:
    """Yield an entry for each (part, path, label); raise a UserError that names the files that do not exist."""
    missing = []
    for part, name, label in rows:
        path = os.path.join(folder, os.path.expanduser(name))  # noqa: PTH111, PTH118 - many times faster than Path
        try:
            state = os.stat(path)  # noqa: PTH116
        except OSError:
            missing.append(name)
            continue
        yield Entry(part, name, label, path, state.st_size, state.st_mtime_ns)
    if missing:
        names = abbreviate(missing)
        raise UserError(f"{setting}: {len(missing)} files do not exist (paths are relative to {folder}): {names}")


def _list_images(folder: Path, root: Path, part: str, label: str | None, unsupported: Counter[str]) -> Iterator[Entry]:
    """Yield the image files in a folder and its subfolders, sorted by their names relative to ``root``.

    Images of formats that are not supported are counted in ``unsupported``, by suffix.
    """

    def is_image(name: str) -> bool:
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - many times faster than Path
        if suffix in UNSUPPORTED_SUFFIXES:
            unsupported[suffix] += 1
        return suffix in IMAGE_SUFFIXES

    start = len(str(root)) + 1
    entries = [
        Entry(part, path[start:], label, path, state.st_size, state.st_mtime_ns)
        for path, state in walk_files(str(folder), is_image)
    ]
    yield from sorted(entries, key=lambda entry: entry.name)


def walk_files(
    folder: str, is_wanted: Callable[[str], bool] = lambda name: True, parents: frozenset[str] = frozenset()
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and state of the wanted files below a folder, in any order, except hidden ones.

    Links to a parent folder are not followed.

    Args:
        folder: where to begin.
        is_wanted: whether the file of a name is yielded.
        parents: the real paths of the folders above.

    Raises:
        UserError: a folder or a file cannot be read.
    """
    parents |= {os.path.realpath(folder)}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if not entry.is_symlink() or os.path.realpath(entry.path) not in parents:
                        yield from walk_files(entry.path, is_wanted, parents)
                elif is_wanted(entry.name):
                    yield entry.path, entry.stat()
    except OSError as error:
        reason = "a link to nothing" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{error.filename}: cannot be read ({reason}); repair or remove it") from None
