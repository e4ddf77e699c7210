"""The groups of listed image files: a column of the table, or a part of each path."""

import re
from collections.abc import Sequence

import numpy as np

from tutelage.config import DataConfig
from tutelage.data.files.listing import Listing
from tutelage.data.files.names import UNLABELLED, abbreviate
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
    names = [entry.group for entry in listing.entries] if has_column else _match_paths(listing, setting)
    lacking = [
        entry.name
        for entry, name in zip(listing.entries, names, strict=True)
        if entry.part != UNLABELLED and name is None
    ]
    if lacking:
        reason = (
            "labelled images whose row has no value there" if has_column else "labelled images whose path has no match"
        )
        hint = ""
        if config.target.endswith(".Table") and not has_column:
            hint = f" ({config.root} has no such column)"
        raise UserError(f"{setting}: {len(lacking):,} {reason}{hint}: {abbreviate(lacking)}; every one needs a group")
    return names


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
