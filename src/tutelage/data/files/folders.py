"""Listings of folders: ``train/CLASS/`` and its like, or ``CLASS/`` alone."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from tutelage.data.files.listing import IMAGE_SUFFIXES, Entry, LeftOut, Listing, find_path, list_images
from tutelage.data.files.names import (
    ALL,
    LABELLED_PARTS,
    UNLABELLED,
    WITHOUT_DUPLICATES,
    abbreviate,
    describe_classes,
    describe_similar,
    find_part,
    hint_at_second_class,
    is_junk,
    printable,
    similar_notes,
)
from tutelage.errors import UserError

Layout = Literal["auto", "classes", "splits"]
PARTS = "train, val, test, test-NAME, unlabelled"
OTHER = ""  # of folders that are no part


def list_folder(
    root: str | None,
    val_is_test: bool = False,
    layout: Layout = "auto",
    only_test: bool = False,
    fewest: int = 2,
) -> Listing:
    """Return the images under ``root``: ``train/CLASS/``, ``val/``, ``test/`` and ``unlabelled/``; or ``CLASS/`` alone.

    Beside ``train/`` there may be further test sets, ``test-NAME/CLASS/``. The parts may have other usual names, in any
    case (``names.PART_OF_NAME``).

    Args:
        root: the folder.
        val_is_test: ``val/`` is the test set, as is usual for ImageNet.
        layout: classes: each top folder but ``unlabelled/`` is a class; splits: those that are no part are left out;
            auto: splits if the name of any top folder is that of a part, and then each must be one.
        only_test: nothing is learned from the images, so that ``train/`` may be missing.
        fewest: classes that are needed.

    Raises:
        UserError: no folder, no class or no image; folders or images that are neither a part nor in a class.
    """
    if root is None:
        name = "imagenet" if val_is_test else "image_folder"
        raise UserError(f"data={name} needs data.root=FOLDER (with train/CLASS/..., or CLASS/... to be split)")
    setting, left_out = f"data.root={printable(root)}", LeftOut()
    folder = find_path(root, setting)
    if not folder.is_dir():
        raise UserError(f"{setting}: {'a file, not a folder' if folder.exists() else 'no such folder'}")
    tops, notes = _find_tops(folder, layout, setting, left_out, only_test)
    entries: list[Entry] = []
    for part, top in tops.items():
        part_entries = _list_part("test" if part == "val" and val_is_test else part, top, folder, left_out)
        if not part_entries and part not in {"train", ALL}:
            notes.append(f"{setting}: no images in {printable(top.name)}/")
        entries += part_entries
    learned = [entry for entry in entries if only_test or entry.part in {"train", ALL}]
    classes = tuple(sorted({entry.label for entry in learned if entry.label}))
    if len(classes) < fewest:
        parent = f"{printable(tops['train'].name)}/CLASS/" if "train" in tops else "CLASS/"
        raise UserError(
            f"{setting}: found {describe_classes(classes)} under {parent}; at least {fewest} "
            f"{'is' if fewest == 1 else 'are'} needed"
            f"{_suggest_folder(folder, classes) or hint_at_second_class(classes)}"
        )
    _check_all_trained(classes, {entry.label for entry in entries if entry.label}, setting)
    notes += [*left_out.notes(setting), *similar_notes(classes, setting)]
    return Listing(setting, folder, tuple(entries), classes, tuple(notes))


def _suggest_folder(folder: Path, classes: Sequence[str]) -> str:
    """Return a hint at the folder below that has the classes, or the parts; nothing if there is none."""
    inner = folder / classes[0] if classes else folder
    below = [child for child in inner.iterdir() if child.is_dir()] if classes and inner.is_dir() else []
    return f"; is it data.root={printable(str(inner))}?" if len(below) > 1 else ""


def _check_all_trained(classes: Iterable[str], used: Iterable[str], setting: str) -> None:
    """Raise a UserError if val/ or test/ have classes that train/ lacks."""
    untrained = sorted(set(used) - set(classes))
    if untrained:
        similar = describe_similar({*classes, *untrained})
        hint = f" (alike: {similar})" if similar else ""
        raise UserError(f"{setting}: classes in val/ or test/ that train/ lacks: {abbreviate(untrained)}{hint}")


def _find_tops(
    folder: Path, layout: Layout, setting: str, left_out: LeftOut, only_test: bool
) -> tuple[dict[str, Path], list[str]]:
    """Return the folder of each part, training first, and notes on what lies beside them."""
    named: dict[str, list[Path]] = {}
    for path in _subfolders(folder, left_out):
        named.setdefault(find_part(path.name) or OTHER, []).append(path)
    if layout == "classes" or (layout == "auto" and not named.keys() - {UNLABELLED, OTHER}):
        _check_images(folder, left_out, "")
        parts = {ALL: [folder], **{part: paths for part, paths in named.items() if part == UNLABELLED}}
        return _one_each(parts, setting), []
    others = named.pop(OTHER, [])
    if "train" not in named and not only_test:
        present = " and ".join(f"{printable(path.name)}/" for part in sorted(named, key=_place) for path in named[part])
        raise UserError(
            f"{setting}: {present and f'{present}, but '}no train/; put the images to learn from into train/CLASS/, "
            "or set data.layout=classes if each folder is a class"
        )
    _check_names(named, setting)
    tops = _one_each({part: named[part] for part in sorted(named, key=_place)}, setting)
    notes = _check_others(folder, others, layout, setting, left_out)
    for part, top in tops.items():
        if part != UNLABELLED:
            _check_images(top, left_out, f", or set data.layout=classes if {printable(top.name)} is a class")
    return tops, notes


def _check_names(parts: Iterable[str], setting: str) -> None:
    """Raise a UserError if the name of a test set is that of another test set's score without duplicates."""
    for part in parts:
        if part.lower().endswith(WITHOUT_DUPLICATES):
            raise UserError(
                f"{setting}: {part}/: names with {WITHOUT_DUPLICATES} at the end are kept for the scores of test sets "
                "without images that are learned from too; rename the folder"
            )


def _subfolders(folder: Path, left_out: LeftOut) -> list[Path]:
    """Return the folders in a folder by name, except hidden ones and those that programs keep for themselves."""
    folders = [path for path in _read_folder(folder) if path.is_dir()]
    for path in folders:
        if is_junk(path.name):
            left_out.count_junk(str(path))
    return [path for path in folders if not path.name.startswith(".") and not is_junk(path.name)]


def _read_folder(folder: Path) -> list[Path]:
    """Return what is in a folder, by name."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{printable(str(folder))}: cannot be read ({error.strerror}); repair or remove it") from None


def _place(part: str) -> tuple[int, str]:
    """Return where a part comes in a listing: training, validation, test, further test sets, unlabelled images."""
    order = (*LABELLED_PARTS, part, UNLABELLED)
    return order.index(part), part


def _one_each(named: Mapping[str, Sequence[Path]], setting: str) -> dict[str, Path]:
    """Return the one folder of each part; raise a UserError if there are two, or if two parts are one folder."""
    parts_of_folder: dict[Path, str] = {}
    for paths in named.values():
        if len(paths) > 1:
            names = " and ".join(f"{printable(path.name)}/" for path in paths)
            raise UserError(f"{setting}: {names} are the same part; join them, or move one of them away")
        other = parts_of_folder.setdefault(paths[0].resolve(), paths[0].name)
        if other != paths[0].name:
            raise UserError(
                f"{setting}: {printable(other)}/ and {printable(paths[0].name)}/ are the same folder; "
                "each part needs images of its own"
            )
    return {part: paths[0] for part, paths in named.items()}


def _check_images(top: Path, left_out: LeftOut, hint: str) -> None:
    """Raise a UserError, which ends in a hint, if images lie in a folder that is to hold folders of classes."""
    stray = _find_images(top, left_out)
    if stray:
        raise UserError(
            f"{printable(str(top))}: {_count_images(stray)} outside class folders: {abbreviate(stray)}; "
            f"move them into {printable(top.name)}/CLASS/, or into {UNLABELLED}/ beside the classes{hint}"
        )


def _count_images(names: Sequence[str]) -> str:
    return "1 image" if len(names) == 1 else f"{len(names):,} images"


def _find_images(top: Path, left_out: LeftOut) -> list[str]:
    """Return the names of the images directly in a folder."""
    return [
        path.name
        for path in _read_folder(top)
        if not path.name.startswith(".") and not path.is_dir() and left_out.is_image(path.name)
    ]


def _check_others(folder: Path, others: Sequence[Path], layout: Layout, setting: str, left_out: LeftOut) -> list[str]:
    """Return notes on what lies beside the parts; raise a UserError about it unless ``layout`` is splits."""
    names, images = [path.name for path in others], _find_images(folder, left_out)
    found = [f"folders that are no part of the data: {abbreviate(names)}"] if names else []
    found += [f"{_count_images(images)} beside the parts: {abbreviate(images)}"] if images else []
    if found and layout == "auto":
        raise UserError(
            f"{setting}: {'; '.join(found)} (parts are {PARTS}); set data.layout=splits to leave them out"
            + (", or data.layout=classes if each folder is a class" if names else "")
        )
    return [f"{setting}: left out: {line}" for line in found]


def _list_part(part: str, top: Path, folder: Path, left_out: LeftOut) -> list[Entry]:
    """Return the images of a part: class by class, or of the whole folder if it is the unlabelled one."""
    if part == UNLABELLED:
        return list(list_images(top, folder, part, None, left_out))
    entries: list[Entry] = []
    folder_of_class: dict[str, str] = {}
    for path in _subfolders(top, left_out):
        if part == ALL and find_part(path.name) == UNLABELLED:
            continue
        label = printable(path.name)
        if folder_of_class.setdefault(label, path.name) != path.name:
            raise UserError(f"{printable(str(top))}: two folders are shown as {label}; rename one of them")
        files = list(list_images(path, folder, part, label, left_out))
        if not files:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise UserError(
                f"{printable(str(path))}: a class without images (looked for {suffixes}); fill or remove it"
            )
        entries += files
    return entries
