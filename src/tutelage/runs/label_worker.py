"""A further process that helps a run to label its pool: ``tutelage label RUN``."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import torch

from tutelage.config import Config
from tutelage.data import (
    DataRuntime,
    ImageDataModule,
    LabelStore,
    data_module,
    fingerprint,
    read_metadata,
    shard_files,
)
from tutelage.data.loading.workers import worker_deaths
from tutelage.errors import UserError
from tutelage.models import load_classifier, weight_hash
from tutelage.runs.cluster.signals import Signals
from tutelage.runs.context import choose_device
from tutelage.runs.folder import RunFolder, read_config, read_record
from tutelage.runs.label import data_key, fill_store
from tutelage.runs.observer import Observer, Part, Work
from tutelage.runs.torch_setup import set_up_torch
from tutelage.storage import is_sound


def help_to_label(path: Path, locations: Mapping[str, str], observer: Observer) -> int:
    """Label unclaimed shards in every pseudo-labelling stage that has begun in a run; return how many images.

    The run's lock is not taken, and nothing is waited for: shards that other processes have claimed are left to them,
    and shards that they leave unfinished to the next process.

    Args:
        path: the run's folder.
        locations: of the data on this machine, by ``root`` or ``unlabelled``; else those of the run's config.
        observer: shows progress.

    Raises:
        UserError: the run's data is not here, or this machine rounds otherwise than the run's.
        Stopped: a signal asks for it; finished shards are kept.
    """
    folder = RunFolder(path)
    record = read_record(folder) or {}
    stage_paths = [stage_path for stage_path in sorted(path.glob("stages/*")) if _lacks_shards(stage_path)]
    begun = {stage_path.name: LabelStore.open_existing(stage_path) for stage_path in stage_paths}
    stores = {
        name: store for name, store in begun.items() if store is not None and is_sound(path / store.metadata["teacher"])
    }
    if not stores:
        return 0
    config = read_config(folder)
    config = config.model_copy(update={"data": config.data.model_copy(update=dict(locations))})
    set_up_torch(record.get("threads") or config.trainer.threads or 1)
    device = choose_device(config, local_rank=0)
    _check_same_device(device, stores)
    with Signals().installed() as signals, worker_deaths():

        def on_progress(what: str, fraction: float) -> None:
            observer.reading(what, fraction)
            signals.check()

        on_wait = signals.make_on_wait(observer.say)
        data = data_module(config.data, DataRuntime(device=device, on_progress=on_progress, on_wait=on_wait))
        _check_same_data(config, data, record, stores)
        observer.begin([Part(name, [Work((name,), len(store.missing))]) for name, store in stores.items()])
        labelled = 0
        for number, store in enumerate(stores.values(), 1):
            observer.part(number)
            labelled += _label_shards(path, store, data, observer, signals)
    return labelled


def _lacks_shards(stage_path: Path) -> bool:
    """Return whether labelling has begun in a stage's folder and shards are missing; no shard is read for it."""
    metadata = read_metadata(stage_path)
    return metadata is not None and not all(file.exists() for file in shard_files(stage_path, metadata["images"]))


def _label_shards(path: Path, store: LabelStore, data: ImageDataModule, observer: Observer, signals: Signals) -> int:
    """Label the unclaimed shards of a store; return how many images."""
    network = load_classifier(path / store.metadata["teacher"])
    if weight_hash(network) != store.metadata["weights"]:
        return 0  # the teacher was trained again since; its run begins the store anew
    missing = set(store.missing)
    with closing(fill_store(store, network, data, data.runtime.device)) as counts:
        for labelled in counts:
            observer.progress(labelled / store.count, {"images": f"{labelled}/{store.count}"})
            signals.check()
    return sum(last - first for first, last in map(store.bounds, missing & store.written))


def _check_same_data(
    config: Config, data: ImageDataModule, record: Mapping[str, object], stores: Mapping[str, LabelStore]
) -> None:
    """Raise a UserError unless the data is the run's."""
    identity = record.get("identity")
    recorded = identity.get("data", {}).get("fingerprint", "") if isinstance(identity, dict) else ""
    same = fingerprint(config.data, data.runtime.on_progress) == recorded and all(
        store.metadata["data"] == data_key(dict(record), data.splits.pool) for store in stores.values()
    )
    if not same:
        root, unlabelled = config.data.root, config.data.unlabelled
        where = f"data.root={root}" + (f" data.unlabelled={unlabelled}" if unlabelled else "")
        raise UserError(
            f"{where}: other images than the run has; say where these lie by data.root= or data.unlabelled="
        )


def _check_same_device(device: torch.device, stores: Mapping[str, LabelStore]) -> None:
    """Raise a UserError unless the run labels on this kind of device."""
    kinds = (store.metadata["device"] for store in stores.values())
    if other := next((kind for kind in kinds if kind != device.type), None):
        raise UserError(
            f"the run labels on {other}, here it would be {device.type}, which rounds otherwise: help from {other}"
        )
