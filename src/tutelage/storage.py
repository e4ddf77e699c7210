"""Atomic writes, checksums, and locks that name the process that holds them."""

import glob
import hashlib
import json
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from tutelage.errors import UserError
from tutelage.waiting import OnWait, WaitLines

PARTIAL_PREFIX, REMOVED_PREFIX = ".partial-", ".removing-"  # of what is being written or removed
TRAILER = b"\nsha256:"
TRAILER_LENGTH = len(TRAILER) + 64
BLOCK = 1 << 20
KILO, MEGA, GIGA = 10**3, 10**6, 10**9  # bytes
LOCK_POLL_SECONDS = 1.0  # between two calls while a lock is waited for
LOOK_SECONDS = 0.2  # for so long, at most, a process holds a lock only to see whether another one does (``is_held``)
STALE_SECONDS = 3600.0  # a partial file that did not grow for so long belongs to no process any more


def cache_folder(name: str) -> Path:
    """Return the folder ``name`` of our cache: below ``$XDG_CACHE_HOME``, else ``~/.cache``. It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tutelage" / name


def format_size(count: int) -> str:
    """Return a number of bytes in GB, MB or kB, as text."""
    if count >= GIGA:
        return f"{count / GIGA:,.1f} GB"
    return f"{count / MEGA:,.0f} MB" if count >= MEGA else f"{count / KILO:.1f} kB"


def write_whole(path: Path, write: Callable[[IO[bytes]], object], keep: Path | None = None) -> None:
    """Write a file atomically: a reader, also after a crash at any instant, finds the old content or the new.

    The temporary file is in the target's folder (a move across file systems is a copy). It is flushed to the disk and
    renamed to the target; then the folder is flushed, too.

    Args:
        path: the target; its folder is made where it is missing.
        write: writes the content to an open binary file.
        keep: the new name of the file that was at ``path`` before; None to replace that file.
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


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Make a folder atomically: it appears with all of its files, or not at all.

    Args:
        path: the folder, which may be there if it is empty.
        write: writes the files into an empty folder beside it.

    Raises:
        UserError: something is there, or the folder or its files cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_old_partials(path.parent, f"{path.name}-")
        partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{PARTIAL_PREFIX}{path.name}-"))
        _fill_folder(partial, path, write)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written ({reason}); make room for it, or name another folder") from None
    flush_folder(path.parent)


def _fill_folder(partial: Path, path: Path, write: Callable[[Path], object]) -> None:
    """Write the files into the temporary folder and rename it to ``path``; remove it where that fails."""
    try:
        write(partial)
        for file in partial.iterdir():
            file.chmod(0o644)
            with file.open("rb") as written:
                os.fsync(written.fileno())
        partial.chmod(0o755)
        flush_folder(partial)
        refuse_taken_folder(path)
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def refuse_taken_folder(path: Path) -> None:
    """Raise a UserError where a path is that of a file, or of a folder with something in it."""
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise UserError(f"{path}: there already; name another folder, or remove it first")


class _HashingFile:
    """A binary file whose content is hashed while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self._hash.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def write_checked(path: Path, write: Callable[[Any], object], keep: Path | None = None) -> str:
    """Write a file atomically with the SHA-256 of its content at its end (see ``is_sound``); return that digest.

    Zip archives, which torch writes, stay readable: a reader searches their directory from the end backwards.

    Args:
        path: the target.
        write: writes the content from its start to its end, without going back.
        keep: the new name of the file that was at ``path`` before, once the new file is complete.
    """

    def write_with_trailer(file: IO[bytes]) -> None:
        hashing_file = _HashingFile(file)
        write(hashing_file)
        file.write(TRAILER + hashing_file.hexdigest().encode())
        digests.append(hashing_file.hexdigest())

    digests: list[str] = []
    write_whole(path, write_with_trailer, keep)
    return digests[0]


def is_sound(path: Path) -> bool:
    """Return whether a file that ``write_checked`` wrote exists and matches its checksum."""
    return sound_digest(path) is not None


def sound_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file that ``write_checked`` wrote; None where it is missing or damaged."""
    try:
        with path.open("rb") as file:
            remaining = path.stat().st_size - TRAILER_LENGTH
            content_hash = hashlib.sha256()
            while remaining > 0 and (block := file.read(min(remaining, BLOCK))):
                content_hash.update(block)
                remaining -= len(block)
            sound = remaining == 0 and file.read() == TRAILER + content_hash.hexdigest().encode()
            return content_hash.hexdigest() if sound else None
    except OSError:
        return None


def has_checksum(path: Path) -> bool:
    """Return whether a file ends in a checksum of ``write_checked``; whether it matches is for ``is_sound``."""
    try:
        with path.open("rb") as file:
            file.seek(-TRAILER_LENGTH, os.SEEK_END)
            return file.read().startswith(TRAILER)
    except OSError:
        return False


def flush_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that renames in it survive a crash (a no-op where folders cannot be opened)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def remove_partials(folder: Path) -> None:
    """Remove what killed processes were writing below ``folder``; call it only while holding the folder's lock."""
    for path in sorted(folder.rglob(f"{PARTIAL_PREFIX}*")):
        remove(path)


def remove_old_partials(folder: Path, name: str = "") -> None:
    """Remove what ``find_old_partials`` finds; what cannot be removed stays."""
    for path in find_old_partials(folder, name):
        with suppress(OSError):  # another process may remove it first
            remove(path)


def find_old_partials(folder: Path, name: str = "") -> Iterator[Path]:
    """Yield what killed processes were writing in ``folder``, where live ones may be writing without a lock.

    That is files that did not grow for ``STALE_SECONDS``, and folders to which no file was added for so long.

    Args:
        folder: of the targets.
        name: with which the names of the temporary files go on after ``PARTIAL_PREFIX``.
    """
    for path in folder.glob(f"{PARTIAL_PREFIX}{glob.escape(name)}*"):
        with suppress(OSError):  # it is gone
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                yield path


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder, which is either whole or gone from view at any instant: at first it gets a hidden name.

    A process that is killed meanwhile leaves a folder whose name begins with ``REMOVED_PREFIX``.
    """
    hidden = tempfile.mkdtemp(dir=path.parent, prefix=REMOVED_PREFIX)
    path.replace(hidden)
    flush_folder(path.parent)
    shutil.rmtree(hidden)


def digest(value: Any) -> str:
    """Return the SHA-256 of a value that JSON can hold; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path, key: str) -> str:
    """Return the SHA-256 of a file that the config's ``key`` names.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be read as a file ({error.strerror})") from None


def require_file(path: Path, key: str) -> None:
    """Raise a UserError where the config's ``key`` names a device or a pipe, whose content may never end or come."""
    with suppress(OSError):
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{key}={path}: a device, a pipe or a socket, not a file; name a regular file")


@contextmanager
def hold_lock(path: Path, resource: str, timeout: float = 0.0, on_wait: OnWait | None = None) -> Iterator[None]:
    """Hold the lock at ``path`` while the block runs.

    The operating system releases the lock when the process ends, however it ends.

    Args:
        path: the lock's file.
        resource: what the lock is for, for the error message.
        timeout: seconds to wait for another process that holds the lock.
        on_wait: called every second of it; may raise to stop.

    Raises:
        UserError: another process holds the lock, or the lock's folder cannot be made.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be made ({error.strerror}); choose another paths.outputs") from None
    holder = path.with_suffix(".holder.json")
    lock = FileLock(path)
    on_wait, since = on_wait or WaitLines(), time.monotonic()
    while not lock.is_locked:
        waited = time.monotonic() - since
        try:
            lock.acquire(timeout=max(LOOK_SECONDS, min(LOCK_POLL_SECONDS, timeout - waited)))
        except Timeout:
            used = f"{resource} is in use by {_describe_holder(holder)}"
            if waited >= timeout:
                raise UserError(f"{used}: wait for it, or stop it first") from None
            on_wait(f"a lock: {used}", waited)
    try:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": started})
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Return whether any process holds the lock at ``path``."""
    from filelock import FileLock, Timeout

    if not path.exists():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _describe_holder(holder: Path) -> str:
    try:
        process = json.loads(holder.read_text())
        return f"process {process['pid']} on {process['host']} (since {process['since']})"
    except (OSError, ValueError, KeyError):
        return "another process"
