"""The images of ``data.unlabelled``: those of another folder, or of a list of files."""

import os
from dataclasses import replace
from pathlib import Path

from tutelage.data.files.columns import TABLE_SUFFIXES, read_columns
from tutelage.data.files.listing import IMAGE_SUFFIXES, LeftOut, Listing, list_images, require_regular
from tutelage.data.files.names import UNLABELLED, printable
from tutelage.data.files.tables import list_rows
from tutelage.errors import UserError

TEXT_SUFFIX = ".txt"


def add_unlabelled(listing: Listing, unlabelled: str | None) -> Listing:
    """Return the listing with the images of ``data.unlabelled`` that it does not have already."""
    if unlabelled is None:
        return listing
    setting, path, left_out = f"data.unlabelled={printable(unlabelled)}", Path(unlabelled).expanduser(), LeftOut()
    if path.is_dir():
        entries = list(list_images(path, path, UNLABELLED, None, left_out))
    elif path.suffix.lower() in {TEXT_SUFFIX, *TABLE_SUFFIXES} and path.exists():
        names = _read_list(path, setting) if path.suffix.lower() == TEXT_SUFFIX else _read_table(path, setting)
        entries = list(list_rows([(UNLABELLED, name, None) for name in names], path.parent, setting))
    elif not path.exists():
        raise UserError(f"{setting}: no such file or folder")
    else:
        lists = ".txt with a path a line, .csv or .parquet with 'path'"
        raise UserError(f"{setting}: neither a folder, nor a list ({lists}), nor shards (.tar, .parquet with images)")
    if not entries:
        raise UserError(f"{setting}: no image files there (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    listed = {os.path.realpath(entry.path) for entry in listing.entries}
    new = [entry for entry in entries if os.path.realpath(entry.path) not in listed]
    notes = (*listing.notes, *left_out.notes(setting))
    if len(new) < len(entries):
        notes += (f"{setting}: {len(entries) - len(new):,} of its images are elsewhere in the data, not in the pool",)
    return replace(listing, entries=(*listing.entries, *new), notes=notes, pool_path=path, pool_count=len(new))


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
