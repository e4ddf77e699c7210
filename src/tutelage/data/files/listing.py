"""What lies where: the image files of folders, tables and lists, with their parts and classes."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tutelage.errors import UserError
from tutelage.storage import digest

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})
NOT_READ = frozenset(
    [
        ".avif",
        ".heic",
        ".heif",
        ".jxl",
        ".jp2",
        ".j2k",
        ".ico",
        ".tga",
        ".psd",
        ".svg",
        ".dng",
        ".cr2",
        ".nef",
        ".arw",
        ".raw",
    ]
)
ALL, UNLABELLED = "all", "unlabelled"
LABELLED_PARTS = ("train", "val", "test")
FURTHER = "test-"  # begins the names of further test sets
TABLE_SUFFIXES = (".csv", ".parquet")
MOST_NAMED = 5  # things that a message lists before it counts


class Entry(NamedTuple):
    """An image file: its part (train, val, test, test-NAME, unlabelled; all: to be split), name, class and state."""

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
        where: what the user typed, for messages.
        place: the folder or table.
        entries: the files.
        classes: the names of the classes, in the order of their labels.
        notes: what the user should know about the files.
    """

    where: str
    place: Path
    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Return a digest of names, sizes and labels: what the files *are*, wherever they lie."""
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
        val_is_test: ``val/`` is the test set, as ImageNet's is by custom.

    Raises:
        UserError: no folder, no class or no image.
    """
    if root is None:
        name = "imagenet" if val_is_test else "image_folder"
        raise UserError(f"data={name} needs data.root=FOLDER (with train/CLASS/..., or CLASS/... to be split)")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.root={root}: {'a file, not a folder' if folder.exists() else 'no such folder'}")
    in_parts = (folder / "train").is_dir()
    _check_parts(folder, in_parts, f"data.root={root}")
    tops = {part: folder / part for part in LABELLED_PARTS} if in_parts else {ALL: folder}
    if in_parts:
        tops |= {top.name: top for top in sorted(folder.glob(f"{FURTHER}?*")) if top.is_dir()}
    entries: list[Entry] = []
    others: Counter[str] = Counter()
    for part, top in tops.items():
        known_as = "test" if part == "val" and val_is_test else part
        for label in sorted(p.name for p in top.iterdir() if p.is_dir()) if top.is_dir() else ():
            if label.startswith(".") or (not in_parts and label == UNLABELLED):
                continue
            files = list(_images_below(top / label, folder, known_as, label, others))
            if not files:
                known = ", ".join(sorted(IMAGE_SUFFIXES))
                raise UserError(f"{top / label}: a class without images (looked for {known}); fill or remove it")
            entries += files
    if (folder / UNLABELLED).is_dir():
        entries += _images_below(folder / UNLABELLED, folder, UNLABELLED, None, others)
    classes = tuple(sorted({entry.label for entry in entries if entry.part in {"train", ALL} and entry.label}))
    where = f"data.root={root}"
    notes = _not_read(others, where)
    if len(classes) < 2:  # noqa: PLR2004 - one class is nothing to tell apart
        below = "train/CLASS/" if in_parts else "CLASS/"
        raise UserError(f"{where}: found {_classes(classes)} under {below}; at least 2 are needed")
    strange = sorted({entry.label for entry in entries if entry.label} - set(classes))
    if strange:
        raise UserError(f"{where}: classes in val/ or test/ that train/ lacks: {abbreviate(strange)}")
    return _with_unlabelled(Listing(where, folder, tuple(entries), classes, notes), unlabelled)


def _check_parts(folder: Path, in_parts: bool, where: str) -> None:
    """Raise a UserError where images lie outside class folders, parts are one folder, or train/ is missing."""
    present = [folder / part for part in LABELLED_PARTS if (folder / part).is_dir()]
    if not in_parts and {path.name for path in present} >= {"val", "test"}:
        raise UserError(f"{where}: val/ and test/, but no train/; put the images to learn from into train/CLASS/")
    if len({path.resolve() for path in present}) < len(present):
        raise UserError(f"{where}: two of train/, val/ and test/ are the same folder; images learnt from must not test")
    for top in present if in_parts else [folder]:
        stray = [path.name for path in top.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
        if stray:
            raise UserError(
                f"{top}: {len(stray):,} images outside class folders: {abbreviate(sorted(stray))}; "
                f"move them into {top.name}/CLASS/, or into {UNLABELLED}/ beside the classes"
            )


def list_table(root: str | None, unlabelled: str | None = None) -> Listing:
    """Return the images of a CSV or Parquet table with columns ``path`` and ``label``.

    Paths are taken from the table's folder. A column ``split`` may say train, val, test or unlabelled; without it a
    fifth of each class is set aside for the test. A row without a label is unlabelled.

    Raises:
        UserError: the table cannot be read, lacks a column, or names files that are not there.
    """
    if root is None:
        raise UserError("data=table needs data.root=FILE, a .csv or .parquet with columns path and label")
    where = f"data.root={root}"
    file = Path(root).expanduser()
    columns = _columns(file, where)
    if "label" not in columns:
        raise UserError(f"{where}: no column 'label' (there are {', '.join(columns)})")
    splits = columns.get("split") or [None] * len(columns["path"])
    allowed = {*LABELLED_PARTS, UNLABELLED}
    rows: list[tuple[str, str, str | None]] = []
    for name, label, split in zip(columns["path"], columns["label"], splits, strict=True):
        if "split" in columns and split not in allowed:
            raise UserError(f"{where}: {name} has split {split!r}; allowed are {', '.join(sorted(allowed))}")
        if not label and split in {"val", "test"}:
            raise UserError(f"{where}: {name} stands in {split} without a label")
        rows.append((UNLABELLED if not label else split or ALL, str(name), label or None))
    entries = tuple(_listed(rows, file.parent, where))
    paths = [os.path.normpath(entry.path) for entry in entries]
    first = {path: number for number, path in reversed([*enumerate(paths)])}
    twice = [entries[number].name for number, path in enumerate(paths) if first[path] != number]
    if twice:
        raise UserError(f"{where}: paths that stand in it twice: {abbreviate(twice)}")
    learnt = {label for part, _, label in rows if label and part in {"train", ALL}}
    classes = in_order(learnt)
    if len(classes) < 2:  # noqa: PLR2004 - one class is nothing to tell apart
        raise UserError(f"{where}: found {_classes(classes)} to learn from; at least 2 are needed")
    strange = sorted({label for part, _, label in rows if label and part in {"val", "test"}} - set(classes))
    if strange:
        raise UserError(f"{where}: classes in val or test that no training row has: {abbreviate(strange)}")
    return _with_unlabelled(Listing(where, file, entries, classes), unlabelled)


def _classes(names: Sequence[str]) -> str:
    return "no class" if not names else f"1 class ({names[0]})" if len(names) == 1 else f"{len(names)} classes"


def _not_read(others: Counter[str], where: str) -> tuple[str, ...]:
    """Return a note on pictures of kinds that are not read, counted by their suffixes."""
    if not others:
        return ()
    told = ", ".join(f"{suffix} {count:,}" for suffix, count in others.most_common())
    return (f"{where}: pictures of kinds that are not read are left alone ({told}); convert them to PNG or JPEG",)


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Return classes in the order of their numbers: by value where all are numbers, else by name."""
    distinct = sorted(set(labels))
    return tuple(sorted(distinct, key=int)) if all(map(str.isdecimal, distinct)) else tuple(distinct)


def abbreviate(names: Sequence[str]) -> str:
    """Return the first of many names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _with_unlabelled(listing: Listing, unlabelled: str | None) -> Listing:
    """Return the listing with the images of ``data.unlabelled``, less those that it has already."""
    if unlabelled is None:
        return listing
    where = f"data.unlabelled={unlabelled}"
    place = Path(unlabelled).expanduser()
    others: Counter[str] = Counter()
    if place.is_dir():
        found = list(_images_below(place, place, UNLABELLED, None, others))
    elif place.suffix == ".txt" and place.is_file():
        names = [line.strip() for line in place.read_text().splitlines() if line.strip()]
        found = list(_listed([(UNLABELLED, name, None) for name in names], place.parent, where))
    elif place.suffix in TABLE_SUFFIXES:
        names = [str(name) for name in _columns(place, where)["path"]]
        found = list(_listed([(UNLABELLED, name, None) for name in names], place.parent, where))
    elif not place.exists():
        raise UserError(f"{where}: no such file or folder")
    else:
        lists = ".txt with a path a line, .csv or .parquet with 'path'"
        raise UserError(f"{where}: neither a folder, nor a list ({lists}), nor shards (.tar, .parquet with images)")
    if not found:
        raise UserError(f"{where}: no image files there (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    known = {os.path.realpath(entry.path) for entry in listing.entries}
    new = [entry for entry in found if os.path.realpath(entry.path) not in known]
    notes = (*listing.notes, *_not_read(others, where))
    if len(new) < len(found):
        notes += (f"{where}: {len(found) - len(new):,} of its images stand elsewhere in the data; the pool lacks them",)
    return replace(listing, entries=(*listing.entries, *new), notes=notes)


def _columns(file: Path, where: str) -> dict[str, list[str | None]]:
    """Return the columns path, label and split of a table, as texts."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    if file.suffix not in TABLE_SUFFIXES:
        raise UserError(f"{where}: neither a .csv nor a .parquet file")
    try:
        if file.suffix == ".csv":
            texts = dict.fromkeys(("path", "label", "split"), pa.string())
            empty = csv.ConvertOptions(column_types=texts, strings_can_be_null=True, null_values=[""])
            table = csv.read_csv(file, convert_options=empty)
        else:
            present = parquet.read_schema(file).names
            table = parquet.read_table(file, columns=[name for name in present if name in {"path", "label", "split"}])
        if "path" not in table.column_names:
            hint = "; columns are separated by commas" if any(c in str(table.column_names) for c in ";\t") else ""
            raise UserError(f"{where}: no column 'path' (there are {', '.join(table.column_names)}){hint}")
        wanted = [name for name in ("path", "label", "split") if name in table.column_names]
        return {name: table[name].cast(pa.string()).to_pylist() for name in wanted}
    except FileNotFoundError:
        raise UserError(f"{where}: no such file") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{where}: cannot be read as a table ({' '.join(str(error).split())[:160]})") from None


def _listed(rows: Iterable[tuple[str, str, str | None]], folder: Path, where: str) -> Iterator[Entry]:
    """Yield an entry for each (part, name, label); raise a UserError that names the files that are not there."""
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
        raise UserError(f"{where}: {len(missing)} files are not there, taken from {folder}: {abbreviate(missing)}")


def _images_below(folder: Path, root: Path, part: str, label: str | None, others: Counter[str]) -> Iterator[Entry]:
    """Yield the image files of a folder and those below it, sorted by their names as seen from ``root``.

    Pictures of kinds that are not read are counted in ``others``, by suffix.
    """
    start = len(str(root)) + 1
    found = [
        Entry(part, path[start:], label, path, state.st_size, state.st_mtime_ns)
        for path, state in _walk(str(folder), others)
    ]
    yield from sorted(found, key=lambda entry: entry.name)


def _walk(
    folder: str, others: Counter[str], above: frozenset[str] = frozenset()
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and state of each image file, but for hidden ones; links that lead back up are not followed."""
    above |= {os.path.realpath(folder)}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if not entry.is_symlink() or os.path.realpath(entry.path) not in above:
                        yield from _walk(entry.path, others, above)
                    continue
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - many times faster than Path
                if suffix in IMAGE_SUFFIXES:
                    yield entry.path, entry.stat()
                elif suffix in NOT_READ:
                    others[suffix] += 1
    except OSError as error:
        told = "a link that leads nowhere" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{error.filename}: cannot be read ({told}); mend or remove it") from None
