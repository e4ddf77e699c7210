"""Folders of image files."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tutelage.data.source import UNKNOWN, Source, resized
from tutelage.data.stratify import stratified
from tutelage.errors import UserError
from tutelage.randomness import Key
from tutelage.storage import digest

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})
PARTS = ("train", "val", "test", "unlabelled")


class FileImages:
    """Image files, read when asked for and brought to one size."""

    def __init__(self, paths: Sequence[Path], image_size: int, channels: int) -> None:
        self._paths = paths
        self._size = image_size
        self._mode = "L" if channels == 1 else "RGB"

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        from PIL import Image, ImageOps

        try:
            with Image.open(self._paths[index]) as image:
                pixels = np.asarray(ImageOps.exif_transpose(image).convert(self._mode))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{self._paths[index]}: cannot be read as an image ({error}); mend or remove it") from None
        return resized(pixels.reshape(*pixels.shape[:2], -1), self._size)


@dataclass(frozen=True)
class FolderListing:
    """What an image folder holds: (part, relative path, class or None) of each image, sorted."""

    root: Path
    entries: tuple[tuple[str, str, str | None], ...]
    classes: tuple[str, ...]

    def fingerprint(self) -> str:
        """Return a digest of the sorted relative names, sizes and labels: what the folder *is*, wherever it lies."""
        whole = hashlib.sha256()
        for part, name, label in self.entries:
            whole.update(digest([part, name, label, (self.root / name).stat().st_size]).encode())
        return whole.hexdigest()


def list_folder(root: str | None) -> FolderListing:
    """Return the images under ``root``: ``train/CLASS/``, ``val/``, ``test/`` and ``unlabelled/``; or ``CLASS/`` alone.

    Raises:
        UserError: no folder, no class or no image.
    """
    if root is None:
        raise UserError("data=image_folder needs data.root=FOLDER (with train/CLASS/..., or CLASS/... to be split)")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.root={root}: no such folder")
    entries: list[tuple[str, str, str | None]] = []
    in_parts = (folder / "train").is_dir()
    labelled_parts = {part: folder / part for part in ("train", "val", "test")} if in_parts else {"all": folder}
    for part, top in labelled_parts.items():
        for label in sorted(p.name for p in top.iterdir() if p.is_dir()) if top.is_dir() else ():
            if not in_parts and label == "unlabelled":
                continue
            files = _image_files(folder, top / label)
            if not files:
                known = ", ".join(sorted(IMAGE_SUFFIXES))
                raise UserError(f"{top / label}: a class without images (looked for {known}); fill or remove it")
            entries += [(part, path, label) for path in files]
    entries += [("unlabelled", path, None) for path in _image_files(folder, folder / "unlabelled")]
    classes = tuple(sorted({label for part, _, label in entries if label is not None and part in {"train", "all"}}))
    if len(classes) < 2:  # noqa: PLR2004 - one class is nothing to tell apart
        where = "train/CLASS/" if in_parts else "CLASS/"
        raise UserError(
            f"data.root={root}: images of {len(classes)} classes found under {where}; at least 2 are needed"
        )
    strange = sorted({label for _, _, label in entries if label is not None} - set(classes))
    if strange:
        raise UserError(f"data.root={root}: classes in val/ or test/ that train/ lacks: {', '.join(strange[:5])}")
    return FolderListing(folder, tuple(entries), classes)


def _image_files(root: Path, folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(
        path.relative_to(root).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )


def image_folder(listing: FolderListing, image_size: int, channels: int) -> Source:
    """Return a folder's images as a source; a folder without ``test/`` has a fifth of each class set aside for it."""
    number = {label: index for index, label in enumerate(listing.classes)}
    labels = np.array([UNKNOWN if label is None else number[label] for _, _, label in listing.entries], dtype=np.int64)
    parts = np.array([part for part, _, _ in listing.entries])
    indices = {part: np.flatnonzero(parts == part) for part in (*PARTS, "all")}
    train, test = np.concatenate([indices["train"], indices["all"]]), indices["test"]
    if not len(test):
        test = stratified(train, labels, max(1, len(train) // 5), Key(0, "image_folder", "test"))
        train = np.setdiff1d(train, test)
        for c, label in enumerate(listing.classes):
            if not (labels[train] == c).any():
                raise UserError(f"{listing.root}: class {label!r} has too few images to set some aside for a test set")
    paths = [listing.root / name for _, name, _ in listing.entries]
    return Source(
        images=FileImages(paths, image_size, channels),
        labels=labels,
        classes=listing.classes,
        train=train,
        test=test,
        val=indices["val"],
        unlabelled=indices["unlabelled"],
        names=[name for _, name, _ in listing.entries],
    )
