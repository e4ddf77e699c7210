"""Listings of image files: what is known of each file, the walk through a folder, and what all listings share."""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

from tutelage.data.files.names import is_junk, printable
from tutelage.errors import UserError
from tutelage.storage import digest

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})
UNSUPPORTED_SUFFIXES = frozenset(
    {".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".ico", ".tga", ".psd", ".svg"}
    | {".dng", ".cr2", ".nef", ".arw", ".raw"}
)
KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
FILES_A_DIGEST = 1000  # files whose names and contents are one JSON text in memory


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
        name: the path below the data's folder, ``printable``.
        label: the name of the class, ``printable``; None if there is none.
        path: where the file is, as the file system has it: bytes that are not UTF-8 are surrogates (PEP 383).
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
        pool_path: the folder or list that ``data.unlabelled`` names; None if there is none.
        pool_count: the number of its files, which are the last.
    """

    setting: str
    path: Path
    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    pool_path: Path | None = None
    pool_count: int = 0

    def keep(self, numbers: Sequence[int]) -> Self:
        """Return the listing with only the entries of these numbers, which ascend."""
        pool_count = sum(number >= len(self.entries) - self.pool_count for number in numbers)
        return replace(self, entries=tuple(self.entries[number] for number in numbers), pool_count=pool_count)

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


class LeftOut:
    """Counts of the images that a listing leaves out.

    They are of formats that are not supported, or in folders that programs keep for themselves (``names.is_junk``).
    """

    def __init__(self) -> None:
        self._unsupported: Counter[str] = Counter()  # by suffix
        self._junk: dict[str, int] = {}  # by the path of the folder

    def is_image(self, name: str) -> bool:
        """Return whether a file of this name is an image that can be read; count it if its format is not supported."""
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - many times faster than Path
        if suffix in UNSUPPORTED_SUFFIXES:
            self._unsupported[suffix] += 1
        return suffix in IMAGE_SUFFIXES

    def count_junk(self, folder: str) -> None:
        """Count the images anywhere below a program's own folder; what cannot be read there does not count."""
        suffixes = IMAGE_SUFFIXES | UNSUPPORTED_SUFFIXES
        self._junk[folder] = sum(
            os.path.splitext(name)[1].lower() in suffixes  # noqa: PTH122 - as above
            for _, _, files in os.walk(folder)
            for name in files
        )

    def notes(self, setting: str) -> tuple[str, ...]:
        """Return a note on each of the two kinds that there are."""
        notes = []
        if self._unsupported:
            counts = ", ".join(f"{suffix} {count:,}" for suffix, count in self._unsupported.most_common())
            notes.append(
                f"{setting}: images of unsupported formats are ignored ({counts}); convert them to PNG or JPEG"
            )
        by_name: Counter[str] = Counter()
        for folder, images in self._junk.items():
            by_name[os.path.basename(folder)] += images  # noqa: PTH119 - as above
        if +by_name:
            counts = ", ".join(f"{printable(name)} {count:,}" for name, count in (+by_name).most_common())
            notes.append(f"{setting}: images in folders of thumbnails, trash and metadata are left out ({counts})")
        return tuple(notes)


def list_images(folder: Path, root: Path, part: str, label: str | None, left_out: LeftOut) -> Iterator[Entry]:
    """Yield the image files in a folder and its subfolders, sorted by their paths.

    Raises:
        UserError: a file or folder cannot be read, or what is named like an image is no regular file.
    """
    start = len(str(root)) + 1
    for path, state in sorted(walk_files(str(folder), left_out.is_image, left_out.count_junk)):
        require_regular(path, state)
        yield Entry(part, printable(path[start:]), label, path, FileState.of(state))


def require_regular(path: str, state: os.stat_result) -> None:
    """Raise a UserError unless a path, with the state of what it leads to, is a regular file: a FIFO never ends."""
    if not stat.S_ISREG(state.st_mode):
        kind = KINDS.get(stat.S_IFMT(state.st_mode), "no file")
        raise UserError(f"{printable(path)}: {kind}, not a regular file; remove it, or put a file in its place")


def walk_files(
    folder: str,
    is_wanted: Callable[[str], bool] = lambda name: True,
    on_junk: Callable[[str], None] | None = None,
    parents: frozenset[str] = frozenset(),
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and state of the wanted files below a folder, in any order, except hidden ones.

    Links to a parent folder are not followed.

    Args:
        folder: where to begin.
        is_wanted: whether the file of a name is yielded.
        on_junk: called with each folder that a program keeps for itself, which is left out; None walks through them.
        parents: the real paths of the folders above.

    Raises:
        UserError: a folder or a file cannot be read.
    """
    parents |= {os.path.realpath(folder)}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_hidden = entry.name.startswith(".")
                if not entry.is_dir():
                    if not is_hidden and is_wanted(entry.name):
                        yield entry.path, entry.stat()
                elif on_junk is not None and is_junk(entry.name):
                    on_junk(entry.path)
                elif not is_hidden and not (entry.is_symlink() and os.path.realpath(entry.path) in parents):
                    yield from walk_files(entry.path, is_wanted, on_junk, parents)
    except OSError as error:
        reason = "a link to nothing" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{printable(str(error.filename))}: cannot be read ({reason}); repair or remove it") from None
