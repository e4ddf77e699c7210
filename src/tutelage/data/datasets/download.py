"""Download of public datasets: each file once, resumed where it stopped, checked, and unpacked whole or not at all.

torchvision.datasets.utils downloads and unpacks too. It starts again from the first byte after a broken connection, and
knows nothing of other processes that download the same file; ours resumes, and lets one process work while others wait.
"""

import gzip
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.errors import UserError, quote_error
from tutelage.storage import BLOCK, PARTIAL_PREFIX, cache_folder, flush_folder, format_size

if TYPE_CHECKING:
    from http.client import HTTPResponse

LOCK_POLL_SECONDS = 1.0
STALLED_SECONDS = 60.0  # a download from a server that sends nothing for so long fails
OTHER_FOLDER_HINT = "let XDG_CACHE_HOME name a folder that can, or set data.root=FOLDER with the dataset's files"

OnProgress = Callable[[str, float], None]  # receives what is being done and the fraction of it that is done, 0 to 1


def ignore_progress(message: str, fraction: float) -> None:
    """Do nothing; the default ``OnProgress``."""


@dataclass(frozen=True)
class Remote:
    """A file on the network: its URL, the MD5 of its content and its size in bytes."""

    url: str
    md5: str
    bytes: int

    def __post_init__(self) -> None:
        if not self.url.startswith(("https://", "http://")):
            raise ValueError(f"{self.url}: only http and https are fetched")

    @property
    def name(self) -> str:
        """The file's name, the last part of the URL."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Archive:
    """A dataset that is published as one .tar.gz.

    Attributes:
        title: its name in messages.
        cache_name: its folder in the cache.
        remote: the archive.
        top_folder: the folder at the top of the archive.
        marker: a file in that folder, by which the folder is recognised.
    """

    title: str
    cache_name: str
    remote: Remote
    top_folder: str
    marker: str


def fetch(remote: Remote, folder: Path, title: str, on_progress: OnProgress = ignore_progress) -> Path:
    """Return the path of ``remote`` in ``folder``; download it there if it is missing.

    An unfinished download is kept as ``NAME.part``, and the next call asks the server for the rest. The MD5 of the
    whole file is checked before the file gets its name. Of several processes one downloads and the others wait.

    Args:
        remote: the file.
        folder: created if it does not exist.
        title: the dataset's name in messages.
        on_progress: receives the progress.

    Raises:
        UserError: the download failed, the file is damaged, or it cannot be stored.
    """
    target = folder / remote.name
    if target.is_file():
        return target
    with wait_for_lock(folder, remote.name, f"{title}: another process is fetching {remote.name}", on_progress):
        if not target.is_file():
            partial = folder / f"{remote.name}.part"
            _download(remote, partial, title, on_progress)
            _verify(remote, partial, title)
            partial.replace(target)
            flush_folder(folder)
    return target


def unpack(archive: Path, folder: Path, top_folder: str, on_progress: OnProgress = ignore_progress) -> Path:
    """Return ``folder/top_folder``; unpack it from a .tar.gz if it is missing. It is whole or absent.

    Args:
        archive: the .tar.gz.
        folder: created if it does not exist.
        top_folder: the folder at the top of the archive.
        on_progress: called while another process unpacks.

    Raises:
        UserError: the archive is damaged or is another one, or the files cannot be stored.
    """
    target = folder / top_folder
    if target.is_dir():
        return target
    with wait_for_lock(folder, top_folder, f"another process is unpacking {archive}", on_progress):
        if not target.is_dir():
            partial = folder / f"{PARTIAL_PREFIX}{top_folder}"
            shutil.rmtree(partial, ignore_errors=True)  # from a killed process
            try:
                _extract(archive, partial)
                if not (partial / top_folder).is_dir():
                    raise UserError(f"{archive}: holds no folder {top_folder}; it is another archive: remove it")
                (partial / top_folder).replace(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            flush_folder(folder)
    return target


def fetch_and_unpack(archive: Archive, root: str | None, on_progress: OnProgress = ignore_progress) -> Path:
    """Return the folder with the files of a dataset that is published as one archive; download and unpack if needed.

    Args:
        archive: the dataset.
        root: the folder with the archive, the unpacked folder or its parent; None for our cache, into which the archive
            is downloaded. An archive in a folder without write permission is unpacked into our cache.
        on_progress: receives the progress.

    Raises:
        UserError: the dataset is not at ``root``, cannot be downloaded, or cannot be unpacked.
    """
    folder = cache_folder(archive.cache_name) if root is None else Path(root).expanduser()
    writable = folder if root is None or os.access(folder, os.W_OK) else cache_folder(archive.cache_name)
    for candidate in (folder, folder / archive.top_folder, writable / archive.top_folder):
        if (candidate / archive.marker).is_file():
            return candidate
    if root is not None and not (folder / archive.remote.name).is_file():
        names = f"{archive.top_folder}/{archive.marker} and {archive.remote.name}"
        raise UserError(f"data.root={root}: no {archive.title} there (looked for {names})")
    file = fetch(archive.remote, folder, archive.title, on_progress)
    on_progress(f"unpacking {archive.title}", 0.0)
    return unpack(file, writable, archive.top_folder, on_progress)


def _download(remote: Remote, partial: Path, title: str, on_progress: OnProgress) -> None:
    """Download the bytes that ``partial`` still lacks."""
    from http.client import HTTPException

    done = partial.stat().st_size if partial.is_file() else 0
    if done == remote.bytes:
        return
    try:
        with _request(remote, done) as response:
            if response.status != HTTPStatus.PARTIAL_CONTENT:  # the server sends the whole file
                done = 0
            total = done + int(response.headers.get("Content-Length") or remote.bytes - done)
            _announce(remote, partial.parent, title, done)
            with partial.open("ab" if done else "wb") as file:
                while block := response.read1(BLOCK):  # what has come: a slow server does not keep signals waiting
                    file.write(block)
                    done += len(block)
                    on_progress(f"fetching {title}", min(1.0, done / total))
        if done < total:  # http.client does not report this
            raise ConnectionError(f"the connection broke off at {format_size(done)} of {format_size(total)}")
    except (OSError, HTTPException) as error:
        raise UserError(
            f"{title}: {remote.url} cannot be fetched ({_reason(error)}): the same command goes on from where it "
            f"stopped, or get {remote.name} by hand and set data.root=FOLDER"
        ) from None


def _request(remote: Remote, start: int) -> "HTTPResponse":
    """Return the server's response to a request for the bytes from ``start`` on; for the whole file if it refuses."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    headers = {"User-Agent": "tutelage"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        # the URL's scheme was checked when the Remote was made
        return urlopen(Request(remote.url, headers=headers), timeout=STALLED_SECONDS)  # type: ignore[no-any-return]  # noqa: S310
    except HTTPError as error:
        if start and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _request(remote, 0)
        raise


def _verify(remote: Remote, partial: Path, title: str) -> None:
    """Flush ``partial`` to the disk and compare its MD5; remove a file whose MD5 is wrong."""
    with partial.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        os.fsync(file.fileno())
    if md5 != remote.md5:
        partial.unlink()
        raise UserError(
            f"{title}: {remote.url} arrived damaged (its MD5 is {md5}, not {remote.md5}) and was removed: "
            f"type the same command again, or get {remote.name} elsewhere and set data.root=FOLDER"
        )


def _extract(archive: Path, partial: Path) -> None:
    """Unpack all of ``archive`` into the new folder ``partial`` and flush it to the disk."""
    import tarfile
    import zlib

    try:
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream) as tar:
            tar.extractall(partial, filter="data")
            while stream.read(BLOCK):  # gzip's checksum is at the end
                pass
        for path in partial.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{archive}: cannot be unpacked ({_reason(error)}): it is damaged; remove it and fetch it again"
        ) from None
    except OSError as error:
        raise UserError(
            f"{archive}: cannot be unpacked into {partial.parent} ({_reason(error)}): "
            "make room, or unpack it by hand and set data.root=FOLDER"
        ) from None


@contextmanager
def wait_for_lock(
    folder: Path, name: str, wait_message: str, on_progress: OnProgress, hint: str = OTHER_FOLDER_HINT
) -> Iterator[None]:
    """Hold the lock of ``folder/name``; if another process holds it, say so and wait.

    Args:
        folder: created if it does not exist.
        name: the file or folder to be written there.
        wait_message: printed if another process holds the lock.
        on_progress: called while waiting; may raise to stop.
        hint: what the user can do if the folder cannot be written.

    Raises:
        UserError: the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{wait_message}; waiting for it", file=sys.stderr, flush=True)
            while not lock.is_locked:
                on_progress(wait_message, 0.0)  # may stop the run
                with suppress(Timeout):
                    lock.acquire(timeout=LOCK_POLL_SECONDS)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({_reason(error)}): {hint}") from None
    try:
        yield
    finally:
        lock.release()


def _announce(remote: Remote, folder: Path, title: str, done: int) -> None:
    """Print what is downloaded from where to where."""
    home = str(Path("~").expanduser())
    short_folder = f"~{str(folder).removeprefix(home)}" if folder.is_relative_to(home) else str(folder)
    resumed = f" (going on at {format_size(done)})" if done else ""
    print(
        f"{title}: fetching {format_size(remote.bytes)} from {remote.url} to {short_folder}{resumed}",
        file=sys.stderr,
        flush=True,
    )


def _reason(error: Exception) -> str:
    """Return an error's message on one line; its type where it has none."""
    return quote_error(error).strip("<>") or type(error).__name__
