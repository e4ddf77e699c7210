"""Listings of image files: what is known of each file, the walk through a folder, and what all listings share."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

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
FILES_A_DIGEST = 1000  # files whose names and contents are one JSON text in memory
MAX_NAMED = 5  # things that a message names before it only counts


class FileState(NamedTuple):
    """What the file system says of a file without reading it; a file whose state is the same has not changed.

    Attributes:
        size: in bytes.
        time: of the content's last change, in ns.
        changed: of the last change of the content or of the file's attributes, in ns.
        inode: the file's number in its file system.
    """

    size: int
    time: int
    changed: int
    inode: int

    @classmethod
    def of(cls, state: os.stat_result) -> Self:
        """Return the state in what ``os.stat`` returned."""
        return cls(state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)

    def key(self, path: str) -> str:
        """Return what identifies the content of the file at an absolute path without reading it."""
        return f"{path}\0{self.size}\0{self.time}\0{self.changed}\0{self.inode}"


class Entry(NamedTuple):
    """An image file.

    Attributes:
        part: train, val, test, test-NAME or unlabelled; all: to be split.
        name: the path below the data's folder.
        label: the name of the class; None if there is none.
        path: where the file is.
        state: of the file.
    """

    part: str
    name: str
    label: str | None
    path: str
    state: FileState


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

    def fingerprint(self, contents: Sequence[bytes]) -> str:
        """Return a digest of the files' parts, names, labels and contents; it does not depend on the folder's path.

        Args:
            contents: the SHA-256 of each file's content.
        """
        whole = hashlib.sha256()
        for start in range(0, len(self.entries), FILES_A_DIGEST):
            part = slice(start, start + FILES_A_DIGEST)
            pairs = zip(self.entries[part], contents[part], strict=True)
            whole.update(digest([[e.part, e.name, e.label, content.hex()] for e, content in pairs]).encode())
        return whole.hexdigest()


def list_images(folder: Path, root: Path, part: str, label: str | None, unsupported: Counter[str]) -> Iterator[Entry]:
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
        Entry(part, path[start:], label, path, FileState.of(state)) for path, state in walk_files(str(folder), is_image)
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


def describe_classes(names: Sequence[str]) -> str:
    """Return how many classes there are, in words."""
    return "no class" if not names else f"1 class ({names[0]})" if len(names) == 1 else f"{len(names)} classes"


def unsupported_notes(unsupported: Counter[str], setting: str) -> tuple[str, ...]:
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
