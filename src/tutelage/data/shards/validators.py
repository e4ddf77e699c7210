"""What servers say of shards without sending them: the validators by which a changed file is recognised."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tutelage.data.datasets.download import OnProgress, ignore_progress
from tutelage.data.files.threads import SECONDS_BETWEEN_REPORTS
from tutelage.data.shards.pools import Shard
from tutelage.storage import write_json

FILE = "validators.json"
SCHEMES = ("http://", "https://")
TIMEOUT_SECONDS = 10.0
MAX_THREADS = 32  # requests at the same time


def with_validators(
    shards: Sequence[Shard], folder: Path, on_progress: OnProgress = ignore_progress
) -> Sequence[Shard]:
    """Return the shards, those at http and https URLs with what their servers say of them.

    That is the ETag, or else the time of the last change with the length. Where a server does not answer, it is what it
    said last; where it has never said anything, the URL alone identifies a shard.

    Args:
        shards: the shards.
        folder: where the last answers are stored, by digests of the URLs, which may contain passwords.
        on_progress: receives the progress; may raise to stop.
    """
    urls = [shard.location for shard in shards if shard.location.startswith(SCHEMES)]
    if not urls:
        return shards
    last = _read_last(folder / FILE)
    known = last | {_key(url): answer for url, answer in _ask_in_threads(urls, on_progress) if answer}
    if known != last:
        with suppress(OSError):  # without write permission nothing is known where a server does not answer
            write_json(folder / FILE, known)
    states = [known.get(_key(shard.location)) for shard in shards]
    return [
        shard if state is None else shard._replace(state=(state,)) for shard, state in zip(shards, states, strict=True)
    ]


def _key(url: str) -> str:
    return hashlib.sha256(url.encode(errors="surrogateescape")).hexdigest()


def _ask_in_threads(urls: Sequence[str], on_progress: OnProgress) -> Iterator[tuple[str, str]]:
    """Yield URLs with their validators, as they are answered."""
    silent_hosts: set[str] = set()
    executor = ThreadPoolExecutor(min(MAX_THREADS, len(urls)))
    try:
        url_of = {executor.submit(_ask, url, silent_hosts): url for url in urls}
        while url_of:
            for future in wait(url_of, SECONDS_BETWEEN_REPORTS, FIRST_COMPLETED).done:
                yield url_of.pop(future), future.result()
            on_progress(f"asking for {len(urls):,} shards on the network", 1 - len(url_of) / len(urls))
    finally:
        executor.shutdown(cancel_futures=True)


def _read_last(file: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        content = json.loads(file.read_text())
        return content if isinstance(content, dict) else {}
    return {}


class _HeadRedirects(HTTPRedirectHandler):
    """Follows redirects without asking for the content, which urllib does before Python 3.13."""

    def redirect_request(self, *arguments: Any) -> Request | None:
        """Return the request to the new address."""
        request = super().redirect_request(*arguments)
        if request is not None:
            request.method = "HEAD"
        return request


def _ask(url: str, silent_hosts: set[str]) -> str:
    """Return the validator of a URL, empty if the server names none; do not ask again a host that did not answer."""
    host = urlsplit(url).netloc
    if host in silent_hosts:
        return ""
    try:
        opener = build_opener(_HeadRedirects)
        with opener.open(Request(url, method="HEAD"), timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 - SCHEMES
            headers = answer.headers
    except HTTPError:
        return ""
    except (OSError, HTTPException, ValueError):
        silent_hosts.add(host)
        return ""
    changed, length = headers.get("Last-Modified"), headers.get("Content-Length")
    return headers.get("ETag") or (f"{changed} {length}" if changed and length else "")
