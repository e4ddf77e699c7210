"""The images of ``data.unlabelled``: those of another folder, or of a list of files."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tutelage.data.files.columns import TABLE_SUFFIXES, read_columns
from tutelage.data.files.listing import IMAGE_SUFFIXES, Entry, LeftOut, Listing, find_path, list_images, require_regular
from tutelage.data.files.names import UNLABELLED, printable
from tutelage.data.files.tables import list_rows
from tutelage.errors import UserError

TEXT_SUFFIX = ".txt"


def add_unlabelled(listing: Listing, unlabelled: str) -> Listing:
    """Return the listing with the images of ``data.unlabelled`` that it does not have already."""
    setting, left_out = f"data.unlabelled={printable(unlabelled)}", LeftOut()
    path = find_path(unlabelled, setting)
    if path.is_dir():
        entries = list(list_images(path, path, UNLABELLED, None, left_out))
    elif path.suffix.lower() in {TEXT_SUFFIX, *TABLE_SUFFIXES} and path.exists():
        names = _read_list(path, setting) if path.suffix.lower() == TEXT_SUFFIX else _read_table(path, setting)
        entries = list(list_rows([(UNLABELLED, name, None, None) for name in names], path.parent, setting))
    elif not path.exists():
        raise UserError(f"{setting}: no such file or folder")
    else:
        lists = ".txt with a path a line, .csv or .parquet with 'path'"
        raise UserError(f"{setting}: neither a folder, nor a list ({lists}), nor shards (.tar, .parquet with images)")
    if not entries:
        raise UserError(f"{setting}: no image files there (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    new, counts = _find_new(entries, listing.entries)
    notes = (*listing.notes, *left_out.notes(setting), *(f"{setting}: {count}" for count in counts))
    return replace(listing, entries=(*listing.entries, *new), notes=notes, pool_path=path, pool_count=len(new))


def _find_new(entries: Sequence[Entry], listed: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """Return those entries whose files are not listed, each file once, and in words how many others there are.

    Files are the same if their real paths are; only of those that share an inode is it asked, as it takes long.
    """
    uses = Counter(entry.state.inode for entry in (*listed, *entries))

    def identify(entry: Entry) -> str:
        return os.path.realpath(entry.path) if uses[entry.state.inode] > 1 else entry.path

    known = set(map(identify, listed))
    new: dict[str, Entry] = {}
    in_data = repeated = 0
    for entry in entries:
        file = identify(entry)
        if file in known:
            in_data += 1
        elif new.setdefault(file, entry) is not entry:
            repeated += 1
    counts = [f"{in_data:,} of its images are in the data already, and not added again"] if in_data else []
    if repeated:
        counts.append(f"{repeated:,} of its paths lead to an image that an earlier one leads to, and are left out")
    return list(new.values()), counts


def _read_list(path: Path, setting: str) -> list[str]:
    """Return the lines of a text file without blanks about them; bytes that are not UTF-8 become surrogates."""
    try:
        require_regular(str(path), path.stat())
        text = path.read_text("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"{setting}: cannot be read ({error.strerror})") from None
    return [line.strip(" \t\r") for line in text.split("\n") if line.strip()]


def _read_table(path: Path, setting: str) -> list[str]:
    """Return the column ``path`` of a table."""
    return [name or "" for name in read_columns(path, setting, ["path"])["path"]]
