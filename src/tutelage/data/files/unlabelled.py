"""The images of ``data.unlabelled``: those of another folder, or of a list of files."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from tutelage.data.files.listing import IMAGE_SUFFIXES, UNLABELLED, Listing, list_images, unsupported_notes
from tutelage.data.files.tables import TABLE_SUFFIXES, list_rows, read_columns
from tutelage.errors import UserError


def add_unlabelled(listing: Listing, unlabelled: str | None) -> Listing:
    """Return the listing with the images of ``data.unlabelled`` that it does not have already."""
    if unlabelled is None:
        return listing
    setting, path = f"data.unlabelled={unlabelled}", Path(unlabelled).expanduser()
    unsupported: Counter[str] = Counter()
    if path.is_dir():
        entries = list(list_images(path, path, UNLABELLED, None, unsupported))
    elif path.suffix == ".txt" and path.is_file():
        names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        entries = list(list_rows([(UNLABELLED, name, None) for name in names], path.parent, setting))
    elif path.suffix in TABLE_SUFFIXES:
        names = [str(name) for name in read_columns(path, setting)["path"]]
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
    notes = (*listing.notes, *unsupported_notes(unsupported, setting))
    if len(new) < len(entries):
        notes += (f"{setting}: {len(entries) - len(new):,} of its images are elsewhere in the data, not in the pool",)
    return replace(listing, entries=(*listing.entries, *new), notes=notes)
