"""The groups of listed image files: a column of the table, or a part of each path."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.files.listing import Listing
from tutelage.data.files.names import UNLABELLED, abbreviate, describe_similar, printable
from tutelage.data.source import UNKNOWN
from tutelage.errors import UserError


def find_group_names(listing: Listing, config: DataConfig) -> list[str | None] | None:
    """Return the group of each file by ``data.group``; None for an unlabelled one without. None if it is not set.

    ``data.group`` is the name of a column of the table that is ``data.root``. Otherwise it is a regular expression, to
    be found in a file's path below the data's folder: its first group in parentheses, or all that it matches.

    Raises:
        UserError: a labelled file has no group, or the regular expression is none.
    """
    if config.group is None:
        return None
    setting = f"data.group={config.group}"
    has_column = listing.has_groups
    found = [entry.group for entry in listing.entries] if has_column else _match_paths(listing, setting)
    names = [None if name is None else unicodedata.normalize("NFC", name).strip() or None for name in found]
    lacking = [
        entry.name
        for entry, name in zip(listing.entries, names, strict=True)
        if entry.part != UNLABELLED and name is None
    ]
    if lacking:
        reason = "row has no value there" if has_column else "path has no match"
        no_column = config.target.endswith(".Table") and not has_column
        hint = f"{printable(str(config.root))} has no such column, and " if no_column else ""
        raise UserError(
            f"{setting}: {hint}{len(lacking):,} labelled images whose {reason}: {abbreviate(lacking)}; "
            "every one needs a group"
        )
    return names


def describe_groups(listing: Listing, names: Sequence[str | None], setting: str) -> tuple[str, ...]:
    """Return a note on the number of groups, of files without one, and on names that differ only by case or the like.

    Args:
        listing: the files.
        names: their groups.
        setting: what the user typed to name the groups.
    """
    labelled = [name for entry, name in zip(listing.entries, names, strict=True) if entry.part != UNLABELLED]
    note = f"{setting}: {len(set(labelled)):,} groups of {len(labelled):,} labelled images"
    without = names.count(None)
    note += f"; {without:,} unlabelled images have no group" if without else ""
    similar = describe_similar(name for name in names if name)
    return (note + (f"; groups that differ only by case or blanks: {similar}; are they one group?" if similar else ""),)


def number_groups(names: Sequence[str | None]) -> np.ndarray:
    """Return the groups (N,) int32 of files, numbered as they appear; ``UNKNOWN`` for a file without."""
    numbers: dict[str, int] = {}
    return np.array(
        [UNKNOWN if name is None else numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int32
    )


def _match_paths(listing: Listing, setting: str) -> list[str | None]:
    """Return what the regular expression of ``data.group`` finds in each file's path; None where it does not match."""
    try:
        pattern = re.compile(setting.partition("=")[2])
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"{setting}: no column of the table, and no regular expression ({error})") from None
    matches = (pattern.search(entry.name) for entry in listing.entries)
    return [None if match is None else match[1 if pattern.groups else 0] for match in matches]
