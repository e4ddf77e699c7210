"""Public datasets are fetched once: resumed where they stopped, checked, and unpacked whole or not at all."""

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

from tutelage.errors import UserError
from tutelage.storage import BLOCK, PARTIAL_PREFIX, flush_folder

if TYPE_CHECKING:
    from http.client import HTTPResponse

SECONDS_BETWEEN_LOOKS = 1.0
STALLED_SECONDS = 60.0  # a server that is silent for so long is given up
SHOWN_REASON = 160  # characters of a library's own message
KILO, MEGA = 1_000, 1_000_000
ELSEWHERE = "let XDG_CACHE_HOME name a folder that can, or set data.root=FOLDER with the dataset's files"

OnProgress = Callable[[str, float], None]  # is told what goes on and the share of it that is done, 0 to 1


def silent(what: str, share: float) -> None:
    """OnProgress nobody."""


@dataclass(frozen=True)
class Remote:
    """A file on the network: where it is, the MD5 of its content and its size in bytes."""

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
        what: its name, for messages.
        name: its folder in the cache.
        remote: the archive.
        inner: the folder at its top.
        marker: a file in that folder, by which it is known.
    """

    what: str
    name: str
    remote: Remote
    inner: str
    marker: str


def cache_folder(name: str) -> Path:
    """Return where downloads of the name lie: below ``$XDG_CACHE_HOME``, else ``~/.cache``. It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tutelage" / name


def fetch(remote: Remote, folder: Path, what: str, tell: OnProgress = silent) -> Path:
    """Return the path of ``remote`` in ``folder``, where it is downloaded to unless it is there.

    What has come is kept as ``NAME.part``, and the next call asks the server for the rest. The whole file's MD5 is
    checked before the file takes its name. Of several processes one downloads, and the others wait for it.

    Args:
        remote: the file.
        folder: made if need be.
        what: the dataset's name, for messages.
        tell: is told of the progress.

    Raises:
        UserError: the download failed, came damaged, or cannot be stored.
    """
    target = folder / remote.name
    if target.is_file():
        return target
    with alone(folder, remote.name, f"{what}: another process is fetching {remote.name}", tell):
        if not target.is_file():
            part = folder / f"{remote.name}.part"
            _transfer(remote, part, what, tell)
            _verify(remote, part, what)
            part.replace(target)
            flush_folder(folder)
    return target


def unpack(archive: Path, folder: Path, inner: str, tell: OnProgress = silent) -> Path:
    """Return ``folder/inner``, unpacked from a .tar.gz unless it is there; it is whole or absent.

    Args:
        archive: the .tar.gz.
        folder: made if need be.
        inner: the folder at the top of the archive.
        tell: is told where another process is waited for.

    Raises:
        UserError: the archive is damaged or another one, or the files cannot be stored.
    """
    target = folder / inner
    if target.is_dir():
        return target
    with alone(folder, inner, f"another process is unpacking {archive}", tell):
        if not target.is_dir():
            partial = folder / f"{PARTIAL_PREFIX}{inner}"
            shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
            try:
                _extract(archive, partial)
                if not (partial / inner).is_dir():
                    raise UserError(f"{archive}: holds no folder {inner}; it is another archive: remove it")
                (partial / inner).replace(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            flush_folder(folder)
    return target


def unpacked(archive: Archive, root: str | None, tell: OnProgress = silent) -> Path:
    """Return the folder with the files of a dataset that is published as one archive.

    Args:
        archive: the dataset.
        root: the folder with the archive, the unpacked folder or its parent; None: our cache, which it is fetched to.
            An archive in a folder that cannot be written is unpacked into our cache.
        tell: is told of the progress.

    Raises:
        UserError: it is not at ``root``, cannot be downloaded, or cannot be unpacked.
    """
    folder = cache_folder(archive.name) if root is None else Path(root).expanduser()
    place = folder if root is None or os.access(folder, os.W_OK) else cache_folder(archive.name)
    for candidate in (folder, folder / archive.inner, place / archive.inner):
        if (candidate / archive.marker).is_file():
            return candidate
    if root is not None and not (folder / archive.remote.name).is_file():
        looked_for = f"{archive.inner}/{archive.marker} and {archive.remote.name}"
        raise UserError(f"data.root={root}: no {archive.what} there (looked for {looked_for})")
    file = fetch(archive.remote, folder, archive.what, tell)
    tell(f"unpacking {archive.what}", 0.0)
    return unpack(file, place, archive.inner, tell)


def _transfer(remote: Remote, part: Path, what: str, tell: OnProgress) -> None:
    """Bring ``part`` to its full length, from where it stands."""
    from http.client import HTTPException

    done = part.stat().st_size if part.is_file() else 0
    if done == remote.bytes:
        return
    try:
        with _request(remote, done) as response:
            if response.status != HTTPStatus.PARTIAL_CONTENT:  # a server that sends all or nothing
                done = 0
            total = done + int(response.headers.get("Content-Length") or remote.bytes - done)
            _announce(remote, part.parent, what, done)
            with part.open("ab" if done else "wb") as file:
                while block := response.read(BLOCK):
                    file.write(block)
                    done += len(block)
                    tell(f"fetching {what}", min(1.0, done / total))
        if done < total:  # of this http.client says nothing
            raise ConnectionError(f"the connection broke off at {size_told(done)} of {size_told(total)}")
    except (OSError, HTTPException) as error:
        raise UserError(
            f"{what}: {remote.url} cannot be fetched ({_reason(error)}): the same command goes on from where it "
            f"stopped, or get {remote.name} by hand and set data.root=FOLDER"
        ) from None


def _request(remote: Remote, start: int) -> "HTTPResponse":
    """Return the server's answer to a request for the bytes from ``start`` on; for all where it has none there."""
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


def _verify(remote: Remote, part: Path, what: str) -> None:
    """Flush ``part`` to the disk and compare its MD5; one that is wrong is removed."""
    with part.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        os.fsync(file.fileno())
    if found != remote.md5:
        part.unlink()
        raise UserError(
            f"{what}: {remote.url} came damaged (its MD5 is {found}, not {remote.md5}) and was removed: type the same "
            f"command again, or get {remote.name} elsewhere and set data.root=FOLDER"
        )


def _extract(archive: Path, partial: Path) -> None:
    """Unpack all of ``archive`` into the new folder ``partial`` and flush it to the disk."""
    import tarfile
    import zlib

    try:
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream) as tar:
            tar.extractall(partial, filter="data")
            while stream.read(BLOCK):  # the checksum stands at the end
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
def alone(folder: Path, name: str, other: str, tell: OnProgress, way_out: str = ELSEWHERE) -> Iterator[None]:
    """Hold the lock of ``folder/name``; where another process holds it, say so and wait.

    Args:
        folder: made if need be.
        name: what is to be written there.
        other: what is said where another process holds the lock.
        tell: is told of the waiting; may raise to stop.
        way_out: what is advised where the folder cannot be written.

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
            print(f"{other}; waiting for it", file=sys.stderr, flush=True)
            while not lock.is_locked:
                tell(other, 0.0)  # may stop the run
                with suppress(Timeout):
                    lock.acquire(timeout=SECONDS_BETWEEN_LOOKS)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({_reason(error)}): {way_out}") from None
    try:
        yield
    finally:
        lock.release()


def _announce(remote: Remote, folder: Path, what: str, done: int) -> None:
    home = str(Path("~").expanduser())
    shown = f"~{str(folder).removeprefix(home)}" if folder.is_relative_to(home) else str(folder)
    again = f" (going on at {size_told(done)})" if done else ""
    print(
        f"{what}: fetching {size_told(remote.bytes)} from {remote.url} to {shown}{again}", file=sys.stderr, flush=True
    )


def size_told(count: int) -> str:
    """Return a number of bytes as people write it."""
    return f"{count / MEGA:,.0f} MB" if count >= MEGA else f"{count / KILO:.1f} kB"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).strip("<>")[:SHOWN_REASON] or type(error).__name__
