"""Further processes that help a run to label its pool: ``tutelage label RUN``."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import torch

from tutelage.config import Config, DataConfig
from tutelage.data import ImageDataModule, LabelStore, data_module, fingerprint, read_metadata, shard_files
from tutelage.data.datasets.download import OnProgress
from tutelage.errors import UserError
from tutelage.models import load_classifier, weight_hash
from tutelage.runs.cluster.signals import Signals
from tutelage.runs.folder import RunFolder, read_record, stored_config
from tutelage.runs.label import data_key, fill
from tutelage.runs.observer import Observer, StageWork
from tutelage.runs.runner import prepare_torch
from tutelage.storage import is_sound


def join(path: Path, lies: Mapping[str, str], observer: Observer) -> int:
    """Label what nobody else is at, in every labelling stage of a run that is under way; return how many images.

    No lock of the run is taken, and nothing is waited for: what other processes are at is left to them, and what they
    leave half done to whoever comes next.

    Args:
        path: the run's folder.
        lies: where the data lies here, by root or unlabelled; else where it lay when the run was begun.
        observer: is told what goes on.

    Raises:
        UserError: the run's data is not here, or this machine cannot compute as it does.
        Stopped: a signal asked for it; the shards that are done are kept.
    """
    folder = RunFolder(path)
    record = read_record(folder) or {}
    places = [place for place in sorted(path.glob("stages/*")) if _lacks_shards(place)]
    begun = {place.name: LabelStore.open_existing(place) for place in places}
    under_way = {name: store for name, store in begun.items() if store is not None}
    stores = [store for store in under_way.values() if is_sound(path / store.metadata["teacher"])]
    if not stores:
        return 0
    config = stored_config(folder)
    config = config.model_copy(update={"data": config.data.model_copy(update=dict(lies))})
    prepare_torch(record.get("threads") or config.trainer.threads or 1)
    device = _device(config, stores)
    with Signals().watched() as signals:

        def tell(what: str, share: float) -> None:
            observer.reading(what, share)
            signals.answer()

        data = _data(config.data, record, stores, tell)
        data.device = device
        observer.begin([StageWork(name, len(store.missing)) for name, store in under_way.items() if store in stores])
        labelled = 0
        for number, store in enumerate(stores, 1):
            observer.stage(number)
            labelled += _fill(path, store, data, device, observer, signals)
    return labelled


def _lacks_shards(place: Path) -> bool:
    """Return whether labelling has begun in a stage's folder and some of it is not there; nothing is read for it."""
    about = read_metadata(place)
    return about is not None and not all(file.exists() for file in shard_files(place, about["images"]))


def _fill(
    path: Path, store: LabelStore, data: ImageDataModule, device: torch.device, observer: Observer, signals: Signals
) -> int:
    """Label what is free of a store; return how many images."""
    network = load_classifier(path / store.metadata["teacher"])
    if weight_hash(network) != store.metadata["weights"]:
        return 0  # the teacher was trained again since; its run begins the store anew
    before = set(store.missing)
    with closing(fill(store, network, data, device)) as batches:
        for answered in batches:
            observer.progress(answered / store.count, {"images": f"{answered}/{store.count}"})
            signals.answer()
    return sum(last - first for first, last in map(store.bounds, before & store.written))


def _data(config: DataConfig, record: dict[str, object], stores: list[LabelStore], tell: OnProgress) -> ImageDataModule:
    """Return the run's data.

    Raises:
        UserError: what lies here is something else.
    """
    begun = record.get("identity")
    known = begun.get("data", {}).get("fingerprint", "") if isinstance(begun, dict) else ""
    data = data_module(config)
    data.tell = tell
    if fingerprint(config, tell) != known or any(
        store.metadata["data"] != data_key(record, data.splits.pool) for store in stores
    ):
        where = f"data.root={config.root}" + (f" data.unlabelled={config.unlabelled}" if config.unlabelled else "")
        raise UserError(
            f"{where}: other images than the run has; say where these lie by data.root= or data.unlabelled="
        )
    return data


def _device(config: Config, stores: list[LabelStore]) -> torch.device:
    """Return where to compute.

    Raises:
        UserError: the run labels on another kind of device.
    """
    gpu = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    if other := next((kind for store in stores if (kind := store.metadata["device"]) != device.type), None):
        raise UserError(
            f"the run labels on {other}, here it would be {device.type}, which rounds otherwise: help from {other}"
        )
    return device
