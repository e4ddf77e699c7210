"""A digest of the contents of all files at a path; the digests of unchanged files are remembered in a cache."""

import hashlib
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from tutelage.data.datasets.download import OnProgress, cache_folder
from tutelage.data.files.listing import walk_files
from tutelage.errors import UserError
from tutelage.storage import BLOCK, digest, write_whole

MARK_BYTES, DIGEST_BYTES = 16, 32
MAX_REMEMBERED = 4  # times the number of files: the cache also holds files as they were before
SECONDS_BETWEEN_SAVES = 20.0  # of reading that is lost at most when it is stopped
SECONDS_BETWEEN_REPORTS = 0.1  # of progress
SETTLED_NS = 2_000_000_000  # a file may change again within one tick of its clock: younger ones are not remembered


def digest_contents(path: Path, setting: str, on_progress: OnProgress) -> str:
    """Return a digest of the names below ``path``, sizes and contents of its files; of a single file, of its content.

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
        files = sorted((name[start:], name, state) for name, state in walk_files(str(path)))
    elif path.exists():
        files = [("", str(path), path.stat())]
    else:
        raise UserError(f"{setting}: no such file or folder")
    cache = _ContentCache(cache_folder("contents") / f"{digest(str(path.resolve()))[:MARK_BYTES]}.npy")
    total, done, reported_at = max(1, sum(state.st_size for _, _, state in files)), 0, 0.0
    whole = hashlib.sha256()

    def on_bytes(count: int) -> None:
        nonlocal done, reported_at
        done += count
        if time.monotonic() - reported_at > SECONDS_BETWEEN_REPORTS:
            reported_at = time.monotonic()
            on_progress(f"reading {setting}", min(1.0, done / total))

    try:
        for name, file, state in files:
            if stat.S_ISREG(state.st_mode):
                content = cache.read_digest(file, state, on_bytes)
                whole.update(digest([name, state.st_size, content.hex()]).encode())
    finally:
        cache.save()
    return whole.hexdigest()


class _ContentCache:
    """The SHA-256 of files, by a mark of their path, size and times, in one file of the cache."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = _read_known(file)
        self._used: dict[bytes, bytes] = {}
        self._saved_at = time.monotonic()

    def read_digest(self, path: str, state: os.stat_result, on_bytes: Callable[[int], None]) -> bytes:
        """Return the SHA-256 of a file's content; call ``on_bytes`` with the number of bytes of each part of it."""
        location = os.path.abspath(path)  # noqa: PTH100 - many times faster than Path
        text = f"{location}\0{state.st_size}\0{state.st_mtime_ns}\0{state.st_ctime_ns}"
        mark = hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=MARK_BYTES).digest()
        known = self._known.get(mark)
        if known is not None:
            on_bytes(state.st_size)
            self._used[mark] = known
            return known
        content = hashlib.sha256()
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - many times faster than Path
                while block := file.read(BLOCK):
                    content.update(block)
                    on_bytes(len(block))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); repair or remove it") from None
        if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > SETTLED_NS:
            self._used[mark] = content.digest()
        if time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES:
            self.save()
        return content.digest()

    def save(self) -> None:
        """Write the digests that were used; with those that were known before, unless these are many."""
        if self._used.keys() <= self._known.keys():
            return
        others = self._known if len(self._known) <= MAX_REMEMBERED * len(self._used) else {}
        self._known = others | self._used
        rows = b"".join(mark + content for mark, content in self._known.items())
        array = np.frombuffer(rows, dtype=np.uint8).reshape(-1, MARK_BYTES + DIGEST_BYTES)
        with suppress(OSError):  # in a folder without write permission every start reads all files
            write_whole(self._file, lambda out: np.save(out, array))
        self._saved_at = time.monotonic()


def _read_known(file: Path) -> dict[bytes, bytes]:
    """Return the digests in a cache file, by mark; none if it is missing or damaged, which costs reading."""
    try:
        rows = np.load(file, allow_pickle=False).reshape(-1, MARK_BYTES + DIGEST_BYTES)
        return {bytes(row[:MARK_BYTES]): bytes(row[MARK_BYTES:]) for row in rows}
    except (OSError, ValueError, EOFError):
        return {}
