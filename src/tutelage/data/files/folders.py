"""Listings of folders: ``train/CLASS/`` and its like, or ``CLASS/`` alone."""

from collections import Counter
from pathlib import Path

from tutelage.data.files.listing import (
    ALL,
    FURTHER_TEST_PREFIX,
    IMAGE_SUFFIXES,
    LABELLED_PARTS,
    UNLABELLED,
    Entry,
    Listing,
    abbreviate,
    describe_classes,
    list_images,
    unsupported_notes,
)
from tutelage.errors import UserError


def list_folder(root: str | None, val_is_test: bool = False) -> Listing:
    """Return the images under ``root``: ``train/CLASS/``, ``val/``, ``test/`` and ``unlabelled/``; or ``CLASS/`` alone.

    Beside ``train/`` there may be further test sets, ``test-NAME/CLASS/``.

    Args:
        root: the folder.
        val_is_test: ``val/`` is the test set, as is usual for ImageNet.

    Raises:
        UserError: no folder, no class or no image.
    """
    if root is None:
        name = "imagenet" if val_is_test else "image_folder"
        raise UserError(f"data={name} needs data.root=FOLDER (with train/CLASS/..., or CLASS/... to be split)")
    setting, folder = f"data.root={root}", Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"{setting}: {'a file, not a folder' if folder.exists() else 'no such folder'}")
    in_parts = (folder / "train").is_dir()
    _check_parts(folder, in_parts, setting)
    unsupported: Counter[str] = Counter()
    entries = _list_labelled(folder, in_parts, val_is_test, unsupported)
    if (folder / UNLABELLED).is_dir():
        entries += list_images(folder / UNLABELLED, folder, UNLABELLED, None, unsupported)
    classes = tuple(sorted({entry.label for entry in entries if entry.part in {"train", ALL} and entry.label}))
    if len(classes) < 2:  # noqa: PLR2004 - a classifier needs two classes
        parent = "train/CLASS/" if in_parts else "CLASS/"
        raise UserError(f"{setting}: found {describe_classes(classes)} under {parent}; at least 2 are needed")
    untrained = sorted({entry.label for entry in entries if entry.label} - set(classes))
    if untrained:
        raise UserError(f"{setting}: classes in val/ or test/ that train/ lacks: {abbreviate(untrained)}")
    notes = unsupported_notes(unsupported, setting)
    return Listing(setting, folder, tuple(entries), classes, notes)


def _check_parts(folder: Path, in_parts: bool, setting: str) -> None:
    """Raise a UserError if images are outside class folders, two parts are one folder, or train/ is missing."""
    present = [folder / part for part in LABELLED_PARTS if (folder / part).is_dir()]
    if not in_parts and {path.name for path in present} >= {"val", "test"}:
        raise UserError(f"{setting}: val/ and test/, but no train/; put the images to learn from into train/CLASS/")
    if len({path.resolve() for path in present}) < len(present):
        raise UserError(
            f"{setting}: two of train/, val/ and test/ are the same folder; do not test on images learned from"
        )
    for top in present if in_parts else [folder]:
        stray = [path.name for path in top.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
        if stray:
            raise UserError(
                f"{top}: {len(stray):,} images outside class folders: {abbreviate(sorted(stray))}; "
                f"move them into {top.name}/CLASS/, or into {UNLABELLED}/ beside the classes"
            )


def _list_labelled(folder: Path, in_parts: bool, val_is_test: bool, unsupported: Counter[str]) -> list[Entry]:
    """Return the images in class folders, part by part and class by class."""
    tops = {part: folder / part for part in LABELLED_PARTS} if in_parts else {ALL: folder}
    if in_parts:
        tops |= {top.name: top for top in sorted(folder.glob(f"{FURTHER_TEST_PREFIX}?*")) if top.is_dir()}
    entries: list[Entry] = []
    for part, top in tops.items():
        entry_part = "test" if part == "val" and val_is_test else part
        for label in sorted(p.name for p in top.iterdir() if p.is_dir()) if top.is_dir() else ():
            if label.startswith(".") or (not in_parts and label == UNLABELLED):
                continue
            files = list(list_images(top / label, folder, entry_part, label, unsupported))
            if not files:
                suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
                raise UserError(f"{top / label}: a class without images (looked for {suffixes}); fill or remove it")
            entries += files
    return entries
