"""The start of a run: torch, data, the checks, then the run's folder and the record of a run in progress."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from tutelage.config import Config
from tutelage.config.foreign_code import list_code_packages
from tutelage.data import DataRuntime, ImageDataModule, abbreviate, absolute_pool, data_module, describe_duplicates
from tutelage.data.loading.workers import worker_deaths
from tutelage.models import fetch_weights
from tutelage.process_group import ALONE, ProcessGroup
from tutelage.runs.checks import check_before_data, check_stages
from tutelage.runs.cluster.crash_guard import new_session
from tutelage.runs.cluster.process_checks import propagate_failure
from tutelage.runs.cluster.signals import Signals, Stopped
from tutelage.runs.code import describe_current_code, describe_other_code
from tutelage.runs.context import RunContext, batch_shard, choose_device
from tutelage.runs.folder import Record, RunFolder, write_config
from tutelage.runs.observer import Observer
from tutelage.runs.torch_setup import available_threads, lightning_silenced, set_up_torch
from tutelage.runs.trackers import FAILED, KILLED
from tutelage.runs.weight_sources import TEST_IDENTITY, check_tested_by_sources, find_weights
from tutelage.storage import remove_partials
from tutelage.waiting import WaitLines


@contextmanager
def started_run(
    config: Config,
    folder: RunFolder,
    identity: dict[str, Any],
    command: str,
    observer: Observer,
    group: ProcessGroup = ALONE,
) -> Iterator[RunContext]:
    """Start a run, or go on with it, while the block runs its stages; note in the record how the block ends.

    The caller holds the folder's lock; of several processes rank 0 does. Where the block ends well, the run's loggers
    stay open, for ``RunTracking.finish``.

    Args:
        config: the whole config.
        folder: the run's folder; made here, once the config has proved to fit the data.
        identity: the scientific part of the config, for the record.
        command: the command line, for the record.
        observer: shows progress.
        group: the processes of the run, each of which calls this.

    Raises:
        UserError: the config does not fit the data.
        Stopped: a signal asks for it; the state is saved.
    """
    record = Record(folder, group)
    record.content = group.broadcast_from_rank0(lambda: record.content)
    set_up_torch(config.trainer.threads or record.threads or available_threads(group.world.local_size))
    if group.size > 1:  # where it is not set, Lightning takes as many threads as there are cores
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    with Signals().installed() as signals, lightning_silenced():
        context = _make_context(config, folder, record, signals, observer, group)
        group.check_signals = context.check_signals
        check_before_data(config)
        context.tracking.check()
        group.first_on_each_node(partial(_fetch_initial_weights, config))
        group.first_on_each_node(lambda: (context.data.source, context.previous_run))
        context.follow_results()
        check_stages(context)
        check_tested_by_sources(config, context.data.test_identity)
        if record.content and group.is_rank0 and (other_code := describe_other_code(record.content)):
            observer.say(f"warning: begun by other code, goes on: {other_code}; attempt=2 begins anew")
        record.content = group.broadcast_from_rank0(lambda: _begin_record(context, identity, command))
        observer.say(f"run: {folder.path}")
        _say_data_notes(context)
        try:
            with propagate_failure(group), worker_deaths():
                context.tracking.start()
                yield context
        except Stopped:
            record.stop()
            context.tracking.end(KILLED)
            raise
        except Exception as error:
            record.fail(f"{type(error).__name__}: {error}")
            context.tracking.end(FAILED)
            raise


def _fetch_initial_weights(config: Config) -> None:
    """Bring the weights that ``init_from`` names by a tag to the cache, before data is read."""
    source = None if config.init_from is None else find_weights(config.init_from, "init_from")
    if isinstance(source, str):
        fetch_weights(source)


def _make_context(
    config: Config, folder: RunFolder, record: Record, signals: Signals, observer: Observer, group: ProcessGroup
) -> RunContext:
    """Return the context of a run whose data is not read yet."""

    def on_progress(what: str, fraction: float) -> None:
        observer.reading(what, fraction)
        context.check_signals()

    group.on_wait = WaitLines(observer.say)
    on_wait = signals.make_on_wait(observer.say)
    device, neighbours = choose_device(config, group.world.local_rank), group.world.local_size
    data = data_module(config.data, DataRuntime(device, batch_shard(config, group), on_progress, neighbours, on_wait))
    evaluates_test = config.evaluate_test or record.was_tested
    context = RunContext(config, folder, record, data, signals, observer, group, evaluates_test)
    return context


def _begin_record(context: RunContext, identity: dict[str, Any], command: str) -> dict[str, Any]:
    """Make the run's folder, or remove what a killed process left in it; return the record of a run in progress."""
    session, folder = new_session(context), context.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    remove_partials(folder.path)
    config = _with_absolute_paths(context.config).model_dump(mode="json")
    write_config(folder, {**config, "logger": {}})  # an address may hold a password
    code = describe_current_code(list_code_packages(context.config.model_dump()))
    context.record.begin(identity, command, code, torch.get_num_threads(), _describe_data(context.data), session)
    return context.record.content


def _with_absolute_paths(config: Config) -> Config:
    """Return the config with absolute paths of its data, so that the run can be opened from any folder."""
    root, unlabelled = config.data.root, config.data.unlabelled
    paths = {} if unlabelled is None else {"unlabelled": absolute_pool(unlabelled)}
    # os.path, as a dataset of one's own may have any text as root, too long for a path
    if root is not None and os.path.exists(path := os.path.expanduser(root)):  # noqa: PTH110, PTH111
        paths["root"] = os.path.realpath(path)
    return config.model_copy(update={"data": config.data.model_copy(update=paths)})


def _describe_data(data: ImageDataModule) -> dict[str, Any]:
    """Return the record's entry on the data: its classes in the order of their labels, and numbers of images."""
    source = data.source
    return {
        "classes": list(source.classes),
        "images": len(source.labels),
        "test": len(data.splits.test),
        "images_per_class": _count_evaluated(data),
        "left_out": list(source.left_out),
        "leaked": [source.names[index] for index in data.leaked.tolist()],
        "notes": [*source.notes, *data.splits.notes, *describe_duplicates(source, data.splits)],
        "grouped": source.groups is not None,
        TEST_IDENTITY: list(data.test_identity),
        "labelled": np.bincount(source.labels[data.splits.labelled], minlength=len(source.classes)).tolist(),
    }


def _count_evaluated(data: ImageDataModule) -> dict[str, list[int]]:
    """Return the number of images of each class in each set that networks are evaluated on, by its metrics' prefix."""
    splits, labels = data.splits, data.source.labels
    parts = {"val": splits.validation, "test": splits.test}
    parts |= {f"test-{name}": part for name, part in splits.further_tests.items()}
    count = partial(np.bincount, minlength=len(data.source.classes))
    return {prefix: count(labels[part]).tolist() for prefix, part in parts.items() if len(part)}


def _say_data_notes(context: RunContext) -> None:
    """Print notes on the data: files left out, duplicates, classes with no labelled image or a single one."""
    source, splits = context.data.source, context.data.splits
    for note in context.record.content["data"]["notes"]:
        context.observer.say(f"note: {note}")
    if source.left_out:
        names = abbreviate(source.left_out)
        context.observer.say(f"warning: unreadable files are left out ({len(source.left_out):,}): {names}")
    untested = np.setdiff1d(source.labels[splits.labelled], source.labels[splits.test])
    if len(untested):
        context.observer.say(f"warning: no test image of {abbreviate([source.classes[c] for c in untested])}")
    counts = np.bincount(source.labels[splits.labelled], minlength=len(source.classes))
    for number, images in ((0, "no labelled image"), (1, "a single labelled image")):
        classes = [source.classes[c] for c in np.flatnonzero(counts == number)]
        if classes and (number == 0 or context.config.data.labels_per_class != 1):
            noun = "class" if len(classes) == 1 else f"{len(classes)} classes"
            context.observer.say(f"warning: {noun} with {images}: {abbreviate(classes)}")
