"""Listings of tables: CSV and Parquet files with paths and labels."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tutelage.data.files.columns import NONE, Columns, open_columns
from tutelage.data.files.listing import Entry, FileState, Listing, find_path, require_regular
from tutelage.data.files.names import (
    ALL,
    LABELLED_PARTS,
    UNLABELLED,
    abbreviate,
    describe_classes,
    describe_similar,
    find_part,
    hint_at_second_class,
    printable,
    similar_notes,
    sort_classes,
)
from tutelage.errors import UserError

COLUMNS = ("path", "label", "split")
Row = tuple[str, str, str | None, str | None]  # part, path, label, group


def list_table(root: str | None, group: str | None = None, only_test: bool = False, fewest: int = 2) -> Listing:
    """Return the images of a CSV or Parquet table with columns ``path`` and ``label``.

    Paths are relative to the table's folder. A column ``split`` may say train, val, test or unlabelled; without it a
    fifth of each class is set aside for the test. A row without a label is unlabelled. In place of ``label`` there may
    be a column for each class, with a 1 in the rows of its images and 0 in the others.

    Args:
        root: the file.
        group: the column of groups, which is no class; any other text is ignored.
        only_test: nothing is learned from the images, so that all may be test images.
        fewest: classes that are needed.

    Raises:
        UserError: the table cannot be read, lacks a column, or names files that do not exist.
    """
    if root is None:
        raise UserError("data=table needs data.root=FILE, a .csv or .parquet with columns path and label")
    setting = f"data.root={printable(root)}"
    file = find_path(root, setting)
    columns = open_columns(file, setting)
    rows, notes = _read_rows(columns, group)
    entries = tuple(list_rows(rows, file.parent, setting))
    paths = [os.path.normpath(entry.path) for entry in entries]
    first_row = {path: number for number, path in reversed([*enumerate(paths)])}
    repeated = [entries[number].name for number, path in enumerate(paths) if first_row[path] != number]
    if repeated:
        raise UserError(f"{setting}: paths that are listed twice: {abbreviate(repeated)}")
    learned = [entry for entry in entries if only_test or entry.part in {"train", ALL}]
    classes = sort_classes(entry.label for entry in learned if entry.label)
    if only_test and not classes:
        raise UserError(f"{setting}: no row has a label; column 'label' says what each image shows")
    if len(classes) < fewest:
        raise UserError(
            f"{setting}: found {describe_classes(classes)} to learn from; at least {fewest} "
            f"{'is' if fewest == 1 else 'are'} needed" + hint_at_second_class(classes)
        )
    untrained = sorted({e.label for e in entries if e.label and e.part in {"val", "test"}} - set(classes))
    if untrained:
        similar = describe_similar({*classes, *untrained})
        raise UserError(
            f"{setting}: classes in val or test that no training row has: {abbreviate(untrained)}"
            + (f" (alike: {similar})" if similar else "")
        )
    has_groups = group is not None and columns.find(group) is not None
    return Listing(setting, file, entries, classes, (*notes, *similar_notes(classes, setting)), has_groups=has_groups)


def _read_rows(columns: Columns, group: str | None) -> tuple[list[Row], list[str]]:
    """Return the part, path, label and group of each row of a table, and notes on them; ``group`` names a column."""
    no_classes = (*COLUMNS, *filter(None, [group]))  # columns that are no classes
    texts, setting = columns.texts(no_classes), columns.setting
    paths = [path or "" for path in texts["path"]]
    parts = _read_parts(texts["split"], paths, setting) if "split" in texts else [ALL] * len(paths)
    labels, notes = (texts["label"], []) if "label" in texts else _read_one_hot(columns, paths, parts, no_classes)
    shown = {label: printable(label) for label in set(labels) if label and not label.isspace()}
    if len(set(shown.values())) < len(shown):
        raise UserError(f"{setting}: two labels differ only in characters that are not shown; write them in one way")
    rows: list[Row] = []
    groups = texts.get(group or "", [None] * len(paths))
    shown_labels = (shown.get(label or "") for label in labels)
    for part, path, label, own_group in zip(parts, paths, shown_labels, groups, strict=True):
        if label is None and part in {"val", "test"}:
            raise UserError(f"{setting}: {printable(path)} has split {part} but no label")
        rows.append((UNLABELLED if label is None else part, path, label, own_group or None))
    return rows, notes


def _read_parts(splits: Sequence[str | None], paths: Sequence[str], setting: str) -> list[str]:
    """Return the part that each row's split names."""
    allowed = {*LABELLED_PARTS, UNLABELLED}
    parts = {split: find_part((split or "").strip()) for split in set(splits)}
    wrong = {split for split, part in parts.items() if part not in allowed}
    for split, path in zip(splits, paths, strict=True):
        if split in wrong:
            names = ", ".join(sorted(allowed))
            found = f"split {split!r}" if split else "no split"
            raise UserError(f"{setting}: {printable(path)} has {found}; allowed are {names}")
    return [parts[split] or "" for split in splits]


def _read_one_hot(
    columns: Columns, paths: Sequence[str], parts: Sequence[str], no_classes: Sequence[str]
) -> tuple[list[str | None], list[str]]:
    """Return the name of the one column that is 1 in each row, and a note on these columns."""
    setting = columns.setting
    names, all_rows = columns.one_hot(no_classes)
    which = all_rows[: len(paths)]
    if len(names) < 2:  # noqa: PLR2004 - a classifier needs two classes
        raise UserError(
            f"{setting}: no column 'label', nor a column of 0 and 1 for each class (there are {columns.describe()}); "
            "rename that of the classes"
        )
    if len(set(names)) < len(names):
        raise UserError(f"{setting}: two columns have one name (there are {columns.describe()})")
    for row in np.flatnonzero(which < 0).tolist():
        if which[row] != NONE or parts[row] != UNLABELLED:
            count = "none" if which[row] == NONE else "several"
            raise UserError(
                f"{setting}: no column 'label', and {count} of the columns of 0 and 1 ({abbreviate(names)}) "
                f"is 1 for {printable(paths[row])}; each row needs exactly one 1"
            )
    labels: list[str | None] = [*names, None]  # NONE is the last
    note = f"{setting}: no column 'label': the classes are the columns of 0 and 1 ({abbreviate(names)})"
    known = {*names, *map(str.casefold, no_classes)}
    unused = [name for name in columns.names if known.isdisjoint((name, name.casefold()))]
    note += f"; not read: {abbreviate(unused)}" if unused else ""
    never = [names[number] for number in np.setdiff1d(np.arange(len(names)), which).tolist()]
    note += f"; without a 1, so no class: {abbreviate(never)}" if never else ""
    return [labels[number] for number in which.tolist()], [note]


def list_rows(rows: Iterable[Row], folder: Path, setting: str) -> Iterator[Entry]:
    """Yield an entry for each row; raise a UserError that names the files that do not exist."""
    missing = []
    for part, name, label, group in rows:
        path = os.path.join(folder, os.path.expanduser(name))  # noqa: PTH111, PTH118 - many times faster than Path
        try:
            state = os.stat(path)  # noqa: PTH116
        except (OSError, ValueError):  # the latter for a path with a zero byte
            missing.append(name)
            continue
        require_regular(path, state)
        yield Entry(part, printable(name), label, path, FileState.of(state), group)
    if missing:
        names = abbreviate(missing)
        hint = "; folders are separated by /, not by \\" if all("\\" in name for name in missing) else ""
        raise UserError(
            f"{setting}: {len(missing)} files do not exist (paths are relative to {printable(str(folder))}): "
            f"{names}{hint}"
        )
