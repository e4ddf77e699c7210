"""Bring what a config needs from the network to this machine's caches, for runs where there is no network."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tutelage.config import Config, DataConfig
from tutelage.data import DataRuntime, data_module
from tutelage.models import fetch_weights, find_cached
from tutelage.runs.observer import Observer
from tutelage.runs.weight_sources import find_network, find_weights
from tutelage.storage import format_size

THERE, FETCHED = "already there", "fetched"


def fetch_files(configs: Sequence[Config], observer: Observer) -> Iterator[str]:
    """Bring the weights and the datasets of some configs to this machine; yield a line on each: what, size, where.

    Args:
        configs: those of a run, or of a sweep's jobs.
        observer: shows the progress of a dataset's download.

    Raises:
        UserError: something is neither here nor can it be downloaded.
    """
    initial = dict.fromkeys(config.init_from for config in configs if config.init_from is not None)
    for name in initial:
        yield _fetch_weights(name)
    for name in dict.fromkeys(name for config in configs for name in config.strategy.given_teachers):
        yield _describe(f"strategy.teachers={name}", THERE, find_network(name, "strategy.teachers"))
    data = {(config.data.target, config.data.root): config.data for config in configs}
    for each in data.values():
        yield _fetch_dataset(each, observer)


def _fetch_weights(name: str) -> str:
    """Bring the weights that ``init_from`` names to this machine; return a line on them."""
    source = find_weights(name, "init_from")
    state = FETCHED if isinstance(source, str) and find_cached(source) is None else THERE
    return _describe(f"init_from={name}", state, fetch_weights(source) if isinstance(source, str) else source)


def _fetch_dataset(config: DataConfig, observer: Observer) -> str:
    """Bring a dataset to this machine; return a line on it."""
    state = THERE

    def on_progress(what: str, fraction: float) -> None:
        nonlocal state
        state = FETCHED
        observer.reading(what, fraction)

    data = data_module(config, DataRuntime(on_progress=on_progress))
    folder, root = data.fetch(), "" if config.root is None else f" data.root={config.root}"
    title = f"data: {type(data).__name__}{root}"
    return f"{title}: nothing to fetch" if folder is None else _describe(title, state, folder)


def _describe(title: str, state: str, path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{title}: {format_size(sum(file.stat().st_size for file in files))}, {state}: {path}"
