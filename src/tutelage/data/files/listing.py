"""Listings of image files: what is known of each file, the walk through a folder, and what all listings share."""

import errno
import hashlib
import heapq
import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
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
MAX_WALKED = 10_000  # files and folders in the folders of programs, before their images are no longer counted
NAMES_SORTED = 16_384  # of a folder's files, as Python's texts; further ones are compressed meanwhile
NAMES_A_BLOCK = 256  # of those that are decompressed at once
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
        group: in the column of groups of the table; None if there is none.
    """

    part: str
    name: str
    label: str | None
    path: str
    state: FileState
    group: str | None = None


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
        has_groups: whether the files are those of a table with a column of groups.
    """

    setting: str
    path: Path
    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    pool_path: Path | None = None
    pool_count: int = 0
    has_groups: bool = False

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
        self._walked = 0  # files and folders in folders of programs

    def is_image(self, name: str) -> bool:
        """Return whether a file of this name is an image that can be read; count it if its format is not supported."""
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - many times faster than Path
        if suffix in UNSUPPORTED_SUFFIXES:
            self._unsupported[suffix] += 1
        return suffix in IMAGE_SUFFIXES

    def count_junk(self, folder: str) -> None:
        """Count the images anywhere below a program's own folder, once; what cannot be read there does not count.

        Snapshots and bins may be very large: the count ends after ``MAX_WALKED`` files and folders in all of them.
        """
        if folder in self._junk or self._walked > MAX_WALKED:
            return
        suffixes = IMAGE_SUFFIXES | UNSUPPORTED_SUFFIXES
        self._junk[folder] = 0
        for _, folders, files in os.walk(folder):
            self._junk[folder] += sum(os.path.splitext(name)[1].lower() in suffixes for name in files)  # noqa: PTH122
            self._walked += len(folders) + len(files)
            if self._walked > MAX_WALKED:
                return

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
        found = [f"{printable(name)} {count:,}" for name, count in (+by_name).most_common()]
        found += [f"counted no further than {MAX_WALKED:,} files"] if self._walked > MAX_WALKED else []
        if found:
            kind = "images in folders of thumbnails, trash and metadata"
            notes.append(f"{setting}: {kind} are left out ({', '.join(found)})")
        return tuple(notes)


def find_path(text: str, setting: str) -> Path:
    """Return the path that a setting names, with or without something there; ``~`` is the home folder.

    Raises:
        UserError: the file system cannot look there.
    """
    path = os.path.expanduser(text)  # noqa: PTH111 - Path's own raises an error for a user that there is not
    try:
        os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a path with a zero byte
        pass
    except OSError as error:
        raise UserError(f"{setting}: cannot be read ({error.strerror}); name a file or folder that is there") from None
    return Path(path)


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
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and state of the wanted files below a folder; the arguments are those of ``walk_paths``.

    Raises:
        UserError: a folder or a file cannot be read.
    """
    for path in walk_paths(folder, is_wanted, on_junk):
        try:
            state = os.stat(path)  # noqa: PTH116
        except OSError as error:
            raise _unreadable(error) from None
        yield path, state


def walk_paths(
    folder: str,
    is_wanted: Callable[[str], bool] = lambda name: True,
    on_junk: Callable[[str], None] | None = None,
    parents: frozenset[str] = frozenset(),
) -> Iterator[str]:
    """Yield the paths of the wanted files below a folder, sorted by their bytes, except hidden ones.

    Links to a parent folder are not followed, nor are links in a circle, which are no folders. Of each folder on the
    way down only the names are in memory, compressed: a million files in a folder need some ten MB.

    Args:
        folder: where to begin.
        is_wanted: whether the file of a name is yielded.
        on_junk: called with each folder that a program keeps for itself, which is left out; None walks through them.
        parents: the real paths of the folders above.

    Raises:
        UserError: a folder cannot be read.
    """
    parents |= {os.path.realpath(folder)}
    try:
        names = _sort_names(_list_names(folder, is_wanted, on_junk, parents))
    except OSError as error:
        raise _unreadable(error) from None
    for name in map(os.fsdecode, names):
        path = os.path.join(folder, name)  # noqa: PTH118 - many times faster than Path
        if path.endswith(os.sep):
            yield from walk_paths(path.removesuffix(os.sep), is_wanted, on_junk, parents)
        else:
            yield path


def _list_names(
    folder: str, is_wanted: Callable[[str], bool], on_junk: Callable[[str], None] | None, parents: frozenset[str]
) -> Iterator[bytes]:
    """Yield the names of the wanted files in a folder, and of its folders, which end in a slash as in longer paths."""
    with os.scandir(folder) as entries:
        for entry in entries:
            is_hidden = entry.name.startswith(".")
            if not _is_folder(entry):
                if not is_hidden and is_wanted(entry.name):
                    yield os.fsencode(entry.name)
            elif on_junk is not None and is_junk(entry.name):
                on_junk(entry.path)
            elif not is_hidden and not (entry.is_symlink() and os.path.realpath(entry.path) in parents):
                yield os.fsencode(entry.name + os.sep)


def _sort_names(names: Iterator[bytes]) -> Iterator[bytes]:
    """Take all names, and return them sorted; most are compressed until their turn comes (none has a zero byte)."""
    packed: list[list[bytes]] = []
    while len(part := sorted(islice(names, NAMES_SORTED))) == NAMES_SORTED:
        starts = range(0, NAMES_SORTED, NAMES_A_BLOCK)
        packed.append([zlib.compress(b"\0".join(part[start : start + NAMES_A_BLOCK]), level=1) for start in starts])
    return heapq.merge(*map(_unpack_names, packed), part)


def _unpack_names(blocks: list[bytes]) -> Iterator[bytes]:
    for block in blocks:
        yield from zlib.decompress(block).split(b"\0")


def _unreadable(error: OSError) -> UserError:
    """Return the error of a file or a folder that cannot be read."""
    is_broken_link = isinstance(error, FileNotFoundError) and os.path.islink(error.filename)  # noqa: PTH114 - as above
    reason = "a link to nothing" if is_broken_link else error.strerror
    return UserError(f"{printable(str(error.filename))}: cannot be read ({reason}); repair or remove it")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one; a link in a circle leads nowhere."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise
