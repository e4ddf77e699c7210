"""Writes that are whole or absent, hashes, and locks that name their holder."""

import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from tutelage.errors import UserError

PARTIAL_PREFIX = ".partial-"
TRAILER = b"\nsha256:"
TRAILER_LENGTH = len(TRAILER) + 64
BLOCK = 1 << 20


def write_whole(path: Path, write: Callable[[IO[bytes]], object], keep: Path | None = None) -> None:
    """Write a file so that a reader, or a crash at any instant, meets the old content or the new, never a part.

    The temporary file lies beside the target (a move across file systems is a copy), is flushed to the disk and takes
    the target's name; then the folder is flushed too. With ``keep``, what was there before goes on under that name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=PARTIAL_PREFIX)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


class _Hashed:
    """A file that is written and hashed at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, part: bytes) -> int:
        self._hash.update(part)
        return self._file.write(part)

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def write_checked(path: Path, write: Callable[[Any], object], keep: Path | None = None) -> str:
    """Write a file whole or absent, followed by its own SHA-256 (see ``is_sound``), and return that.

    Zip archives, which torch writes, are read from their end backwards and do not mind what follows.

    Args:
        path: the target.
        write: writes the content, in sequence.
        keep: takes the file that was at ``path`` before, once the new one is complete.
    """

    def write_both(file: IO[bytes]) -> None:
        hashed = _Hashed(file)
        write(hashed)
        file.write(TRAILER + hashed.hexdigest().encode())
        digests.append(hashed.hexdigest())

    digests: list[str] = []
    write_whole(path, write_both, keep)
    return digests[0]


def is_sound(path: Path) -> bool:
    """Return whether a file that ``write_checked`` wrote is there and as it was written."""
    return sound_digest(path) is not None


def sound_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file that ``write_checked`` wrote; None where it is not as it was written."""
    try:
        with path.open("rb") as file:
            left = path.stat().st_size - TRAILER_LENGTH
            whole = hashlib.sha256()
            while left > 0 and (part := file.read(min(left, BLOCK))):
                whole.update(part)
                left -= len(part)
            sound = left == 0 and file.read() == TRAILER + whole.hexdigest().encode()
            return whole.hexdigest() if sound else None
    except OSError:
        return None


def has_checksum(path: Path) -> bool:
    """Return whether a file ends as those that ``write_checked`` wrote; ``is_sound`` says whether it is as written."""
    try:
        with path.open("rb") as file:
            file.seek(-TRAILER_LENGTH, os.SEEK_END)
            return file.read().startswith(TRAILER)
    except OSError:
        return False


def flush_folder(folder: Path) -> None:
    """Make renames within ``folder`` durable (a no-op where folders cannot be opened)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or absent."""
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or absent."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def remove_partials(folder: Path) -> None:
    """Remove what killed writers left in ``folder`` and below it; call only while holding the folder's lock."""
    for path in folder.rglob(f"{PARTIAL_PREFIX}*"):
        path.unlink(missing_ok=True)


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path, key: str) -> str:
    """Return the SHA-256 of a file that the config's ``key`` names.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be read as a file ({error.strerror})") from None


@contextmanager
def locked(path: Path, what: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock at ``path``; where another process holds it, raise a UserError that says which.

    The operating system gives the lock up when the process ends, however it ends.

    Args:
        path: the lock.
        what: is locked, for the message.
        patience: seconds that another process is waited for.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be made ({error.strerror}); choose another paths.outputs") from None
    holder = path.with_suffix(".holder.json")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise UserError(f"{what} is in use by {_describe(holder)}: wait for it, or stop it first") from None
    try:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": started})
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock at ``path``."""
    from filelock import FileLock, Timeout

    if not path.exists():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _describe(holder: Path) -> str:
    try:
        held = json.loads(holder.read_text())
        return f"process {held['pid']} on {held['host']} (since {held['since']})"
    except (OSError, ValueError, KeyError):
        return "another process"
