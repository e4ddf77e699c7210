"""The pictures that a command names: files in folders, lists and tables, images in shards, or a run's own pool.

A million names are held as the bytes of their texts alone, so that memory hardly grows with them.
"""

import glob
import hashlib
import os
import stat
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tutelage.config import DataConfig
from tutelage.data import DataRuntime, data_module
from tutelage.data.datasets.download import OnProgress
from tutelage.data.datasets.image_files import FileImages
from tutelage.data.files.columns import TABLE_SUFFIXES, open_columns
from tutelage.data.files.listing import IMAGE_SUFFIXES, LeftOut, find_path, require_regular, walk_paths
from tutelage.data.files.names import is_junk, printable
from tutelage.data.files.unlabelled import TEXT_SUFFIX
from tutelage.data.loading.shared_memory import SharedTexts
from tutelage.data.shards.images import ShardImages, ShardNames
from tutelage.data.shards.index import list_shards
from tutelage.data.shards.pools import BRACES, PARQUET, TAR, Shard, find_shards, is_remote
from tutelage.data.source import Images, JoinedImages, JoinedNames
from tutelage.errors import UserError
from tutelage.runs import RunFolder, read_record
from tutelage.runs.label import data_key
from tutelage.runs.weight_sources import find_run_data

STDIN = "-"
ARCHIVES = frozenset({".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"})


@dataclass(frozen=True)
class Inputs:
    """Pictures to be labelled.

    Attributes:
        images: of any number, at the size that the network sees.
        names: of them, each one line of valid UTF-8.
        indices: (N,) which of them are meant, in their order.
        digest: of what tells them from other pictures without reading them: names, paths, sizes, times of the last
            change.
        notes: what the user should know about them.
    """

    images: Images
    names: Sequence[str]
    indices: Sequence[int] | np.ndarray
    digest: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)


class _Group(NamedTuple):
    """Consecutive files whose texts mean the same.

    Attributes:
        first: the number of the first file.
        folder: the folder that the texts are relative to; empty for the current one.
        is_list: they are the texts of a list or table, which are names as they are; else names begin with the folder.
    """

    first: int
    folder: str
    is_list: bool


def _to_name(group: _Group, text: str) -> str:
    return printable(text if group.is_list else os.path.join(group.folder, text))  # noqa: PTH118 - faster than Path


def _to_path(group: _Group, text: str) -> str:
    return os.path.join(group.folder, os.path.expanduser(text) if group.is_list else text)  # noqa: PTH111, PTH118


class _FileTexts(Sequence[str]):
    """What ``form`` makes of the texts of files and of their groups."""

    def __init__(self, texts: SharedTexts, groups: Sequence[_Group], form: Callable[[_Group, str], str]) -> None:
        self._texts, self._groups, self._form = texts, groups, form
        self._firsts = [group.first for group in groups]

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: Any) -> Any:
        return self._form(self._groups[bisect_right(self._firsts, index) - 1], self._texts[index])


@dataclass
class _Search:
    """What is found while files are looked for.

    Attributes:
        count: files so far.
        groups: of the files.
        state: of the digest of their names, paths, sizes and times.
        shards: that were named, or found in folders without pictures.
        left_out: counts of files that are no pictures that can be read.
    """

    count: int = 0
    groups: list[_Group] = field(default_factory=list)
    state: Any = field(default_factory=hashlib.sha256)
    shards: list[Shard] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)

    def add(self, texts: Iterable[str], folder: str, is_list: bool) -> Iterator[str]:
        """Yield texts of files that belong to one group, and take their states into the digest.

        Raises:
            UserError: one is a device, a pipe or a socket, or outside of a list a folder.
        """
        group = _Group(self.count, folder, is_list)
        if not self.groups or self.groups[-1][1:] != group[1:]:
            self.groups.append(group)
        for text in texts:
            path = _to_path(group, text)
            try:
                file = os.stat(path)  # noqa: PTH116
            except (OSError, ValueError):  # it becomes a row with the reason; the latter for a path with a zero byte
                state = "missing"
            else:
                if not (is_list and stat.S_ISDIR(file.st_mode)):  # a folder in a list becomes a row with the reason
                    require_regular(path, file)
                state = f"{file.st_size}\0{file.st_mtime_ns}"
            self.state.update(f"{_to_name(group, text)}\0{path}\0{state}\0".encode(errors="surrogateescape"))
            self.count += 1
            yield text


def find_inputs(paths: Sequence[str], config: DataConfig, on_progress: OnProgress) -> Inputs:
    """Return the pictures that paths name: all files in the order of the paths, then all images of shards.

    A path is a folder (its pictures, sorted, or else its shards), a pattern, a file, a list ``.txt``, a table with a
    column ``path``, a tar, a Parquet file of images, a URL of tars, or ``-`` for a list on standard input. Files are
    named as they are reached from the current folder, those of lists and tables as they are named there.

    Args:
        paths: what the user typed.
        config: how pictures are read and brought to size.
        on_progress: receives the progress; may raise to stop.

    Raises:
        UserError: a path leads to no picture, or a list, table or shard cannot be read.
    """
    if paths.count(STDIN) > 1:
        raise UserError(f"{STDIN}: standard input can be read once; name it once")
    search = _Search()
    texts = SharedTexts(text for path in paths for text in _find_files(path, search))
    names: Sequence[str] = _FileTexts(texts, search.groups, _to_name)
    images: Images = FileImages(_FileTexts(texts, search.groups, _to_path), config)
    if search.shards:
        pool = list_shards(search.shards, ", ".join(map(printable, paths)), on_progress)
        names, images = JoinedNames(names, ShardNames(pool)), JoinedImages([images, ShardImages(pool, config)])
        for shard in pool.shards:  # with what servers say of them
            search.state.update(repr(shard).encode(errors="surrogateescape"))
    notes = search.left_out.notes("pictures")
    return Inputs(images, names, range(len(names)), search.state.hexdigest(), notes)


def find_pool(run: str, image_size: int, runtime: DataRuntime) -> Inputs:
    """Return the pool of a run, at an image size.

    Raises:
        UserError: the run's data is not there, has changed, or has no pool.
    """
    config, reason = find_run_data(run)
    if config is None:
        raise UserError(f"--pool: {run}: {reason}; name the pictures instead: tutelage predict {run} PATHS...")
    data = data_module(config, runtime)
    if image_size != config.image_size:
        data = data.at_image_size(image_size)
    pool, names = data.splits.pool, data.source.names
    if not len(pool):
        raise UserError(f"--pool: {run} has no pool; name the pictures: tutelage predict {run} PATHS...")
    record = read_record(RunFolder(Path(run).expanduser())) or {}
    return Inputs(data.images, names, pool, data_key(record, pool))


def _find_files(typed: str, search: _Search) -> Iterator[str]:
    """Yield the texts of the files that a path names, and add the shards that it names to the search."""
    shown = printable(typed)
    if typed == STDIN:
        yield from _require_some(search.add(_read_lines(sys.stdin.buffer), "", is_list=True), "standard input", search)
    elif is_remote(typed):
        search.shards += find_shards(typed, shown) or ()
    else:
        path = find_path(typed, shown)
        if path.exists():
            yield from _find_below(path, shown, search)
        elif path.suffix in {TAR, PARQUET} and BRACES.search(typed):
            search.shards += _rename(find_shards(typed, shown))
        else:
            matches = _match(str(path))
            if not matches:
                raise UserError(f"{shown}: no file has such a name")
            for match in matches:
                yield from _find_below(match, printable(str(match)), search)


def _match(pattern: str) -> list[Path]:
    """Return what a pattern names, sorted, without programs' own folders; with ``**`` no folders, but their files."""
    matches = map(Path, sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207 - of any depth, and absolute ones
    return [
        match for match in matches if not any(map(is_junk, match.parts)) and not ("**" in pattern and match.is_dir())
    ]


def _find_below(path: Path, shown: str, search: _Search) -> Iterator[str]:
    """Yield the texts of the files in a folder, a list, a table, or the one file; add shards to the search."""
    suffix = path.suffix.lower()
    if suffix in ARCHIVES and path.is_file():
        raise UserError(f"{shown}: an archive that is not read; unpack it, or pack the pictures into a {TAR}")
    if path.is_dir():
        start, before = len(os.path.join(path, "")), search.count  # noqa: PTH118 - with one slash at the end
        found = walk_paths(str(path), search.left_out.is_image, search.left_out.count_junk)
        yield from search.add((file[start:] for file in found), str(path), is_list=False)
        if search.count == before:
            shards = find_shards(str(path), shown)
            if shards is None:
                raise UserError(f"{shown}: no pictures there (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
            search.shards += _rename(shards)
    elif suffix in {TAR, PARQUET} and (shards := find_shards(str(path), shown)) is not None:
        search.shards += _rename(shards)
    elif suffix in TABLE_SUFFIXES:
        paths = open_columns(path, shown).paths()
        yield from _require_some(search.add(paths, str(path.parent), is_list=True), shown, search)
    elif suffix == TEXT_SUFFIX:
        require_regular(str(path), path.stat())
        with path.open("rb") as lines:
            yield from _require_some(search.add(_read_lines(lines), str(path.parent), is_list=True), shown, search)
    else:
        yield from search.add([str(path)], "", is_list=False)


def _require_some(texts: Iterator[str], shown: str, search: _Search) -> Iterator[str]:
    """Yield texts; raise a UserError if there are none."""
    before = search.count
    yield from texts
    if search.count == before:
        raise UserError(f"{shown}: no paths there")


def _read_lines(lines: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a list of paths without blanks about them; bytes that are not UTF-8 become surrogates."""
    for number, line in enumerate(lines):
        text = line.decode("utf-8" if number else "utf-8-sig", errors="surrogateescape").strip(" \t\r\n")
        if text:
            yield text


def _rename(shards: Iterable[Shard] | None) -> Iterator[Shard]:
    """Yield shards on this machine, each named as it is reached from the current folder."""
    return (shard._replace(name=printable(shard.location)) for shard in shards or ())
