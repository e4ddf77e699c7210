"""The scan of files before a run: each is read once, hashed, and decoded if it is an image."""

import hashlib
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tutelage.data.datasets.download import OnProgress
from tutelage.data.files.contents import FindCheck, Scope, read_contents
from tutelage.data.files.decoding import Check, check_image
from tutelage.data.files.listing import Entry, FileState, Listing, walk_files
from tutelage.data.files.memory import CONTENTS
from tutelage.data.files.names import printable
from tutelage.data.files.threads import Tick
from tutelage.errors import UserError
from tutelage.storage import BLOCK, digest

MAX_PRINTED = 20  # unreadable images that are printed one by one
NOT_DECODED = Check("")  # of a file that is only hashed


def scan_listing(listing: Listing, max_pixels: int, on_progress: OnProgress) -> tuple[np.ndarray, dict[int, str]]:
    """Return what is in the listed image files: ``FACTS`` (N,), and why files cannot be decoded, by their numbers.

    Raises:
        UserError: a file cannot be opened, which says nothing about the image.
    """
    first = len(listing.entries) - listing.pool_count
    facts, reasons = _scan_entries(listing.entries[:first], listing.path, max_pixels, on_progress)
    if listing.pool_path is None:
        return facts, reasons
    pool_facts, pool_reasons = _scan_entries(listing.entries[first:], listing.pool_path, max_pixels, on_progress)
    reasons |= {first + number: reason for number, reason in pool_reasons.items()}
    return np.concatenate([facts, pool_facts]), reasons


def _scan_entries(
    entries: Sequence[Entry], place: Path, max_pixels: int, on_progress: OnProgress
) -> tuple[np.ndarray, dict[int, str]]:
    """Return the same as ``scan_listing``, of the files of one folder, table or list, which is at ``place``."""

    def examine(number: int, tick: Tick, find_check: FindCheck) -> tuple[bytes, Check]:
        with CONTENTS.hold(entries[number].state.size):
            content = _read_file(entries[number].path)
            tick(len(content))
            return examine_image(content, find_check, max_pixels)

    names = "\0".join([f"{entry.name}\0{entry.state.size}\0{entry.state.time}" for entry in entries])
    copy_key = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()
    keys, changed, sizes = _describe_files([entry.path for entry in entries], [entry.state for entry in entries])
    location, message = f"images\0{place.resolve()}", lambda count: f"checking {count:,} images"
    return read_contents(Scope(location, keys, changed, sizes, max_pixels, message, copy_key), examine, on_progress)


def examine_image(content: bytes, find_check: FindCheck, max_pixels: int) -> tuple[bytes, Check]:
    """Return the SHA-256 of an image file's content, and whether it can be decoded; a known content is not decoded."""
    content_hash = hashlib.sha256(content).digest()
    return content_hash, find_check(content_hash) or check_image(content, max_pixels)


def digest_contents(path: Path, setting: str, on_progress: OnProgress) -> str:
    """Return a digest of the names below ``path`` and contents of its files; of a single file, of its content.

    Hidden files are left out. A file whose size and times are those of an earlier call is not read again.

    Args:
        path: a folder or a file.
        setting: what the user typed to name it, for messages.
        on_progress: called while files are read; may raise to stop.

    Raises:
        UserError: there is nothing, or it cannot be read.
    """
    if path.is_dir():
        start = len(str(path)) + 1
        found = sorted((name[start:], name, state) for name, state in walk_files(str(path)))
    elif path.exists():
        found = [("", str(path), path.stat())]
    else:
        raise UserError(f"{setting}: no such file or folder")
    files = [(name, file, FileState.of(state)) for name, file, state in found if stat.S_ISREG(state.st_mode)]

    def examine(number: int, tick: Tick, find_check: FindCheck) -> tuple[bytes, Check]:
        return _hash_file(files[number][1], tick), NOT_DECODED

    keys, changed, sizes = _describe_files([file for _, file, _ in files], [state for _, _, state in files])
    location, message = f"files\0{path.resolve()}", lambda count: f"reading {setting}"
    scope = Scope(location, keys, changed, sizes, NOT_DECODED.pixels, message)
    facts, _ = read_contents(scope, examine, on_progress)
    whole = hashlib.sha256()
    for (name, _, _), content in zip(files, facts["content"].tolist(), strict=True):
        whole.update(digest([name, content.hex()]).encode())
    return whole.hexdigest()


def _describe_files(paths: Sequence[str], states: Sequence[FileState]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the keys, the times of the last change and the sizes of files, as a ``Scope`` has them."""
    folder = os.getcwd()  # noqa: PTH109
    absolute = [path if path.startswith("/") else f"{folder}/{path}" for path in paths]
    keys = [state.key(path) for path, state in zip(absolute, states, strict=True)]
    changed = np.fromiter((state.changed for state in states), dtype=np.int64, count=len(states))
    return keys, changed, np.fromiter((state.size for state in states), dtype=np.int64, count=len(states))


def _read_file(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - many times faster than Path
            return file.readall()
    except OSError as error:
        raise UserError(
            f"{printable(path)}: cannot be opened ({error.strerror}); make it readable or remove it"
        ) from None


def _hash_file(path: str, tick: Tick) -> bytes:
    content = hashlib.sha256()
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - many times faster than Path
            while block := file.read(BLOCK):
                content.update(block)
                tick(len(block))
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be read ({error.strerror}); repair or remove it") from None
    return content.digest()


def raise_for_unreadable(reasons: dict[int, str], names: Sequence[str], setting: str, count: int | None = None) -> None:
    """Print the images that cannot be decoded and raise a UserError, if there are any.

    Args:
        reasons: why an image cannot be decoded, by its number.
        names: the names of the images.
        setting: what the user typed to name the data, for the message.
        count: of all images; None if ``names`` has them all.

    Raises:
        UserError: ``reasons`` is not empty.
    """
    if not reasons:
        return
    lines = [f"{names[number]}: {reason}" for number, reason in reasons.items()]
    if len(lines) > MAX_PRINTED:
        lines[MAX_PRINTED:] = [f"... and {len(lines) - MAX_PRINTED:,} more"]
    print(*lines, sep=os.linesep, file=sys.stderr)
    unreadable = "1 image" if len(reasons) == 1 else f"{len(reasons):,} images"
    raise UserError(
        f"{setting}: {unreadable} of {count or len(names):,} cannot be read (listed above): "
        "repair or remove them, or leave them out with data.on_bad_image=skip"
    )
