"""A pseudo-labelling stage: a teacher labels the pool, shard by shard, in one process or several at once."""

import hashlib
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.data import (
    EVALUATION_BATCH,
    ImageDataModule,
    Labels,
    LabelStore,
    abbreviate,
    read_labels,
    write_summary,
    write_table,
)
from tutelage.data.pseudo_labels.labels import SHARD
from tutelage.errors import UserError
from tutelage.models import ImageClassifier, evaluation_batch, tta_probabilities, weight_hash
from tutelage.runs.context import RunContext
from tutelage.runs.folder import PSEUDO_LABEL
from tutelage.runs.teachers import LOWER_PRECISION
from tutelage.storage import digest
from tutelage.strategies import PseudoLabelStage

POLL_SECONDS = 0.2  # between two looks at what other processes have written
MOST_PENDING = 2  # batches that are computed while an older one is converted to the store's format
FLOAT32 = "float32"


def label_pool(context: RunContext, stage: PseudoLabelStage) -> dict[str, Any]:
    """Label the pool with the stage's teacher, without noise, and return the stage's entry in the ledger.

    Of several processes of the run each labels the shards that it claims first. Shards that other processes label
    meanwhile (``tutelage label``) are waited for.

    Raises:
        Stopped: a signal asks for it; finished shards are kept.
        UserError: probabilities are not finite, or the disk is full.
    """
    folder, pool, source = context.stage_folder(stage).path, context.data.splits.pool, context.data.source
    started, count = time.monotonic(), len(pool)
    teacher = context.load_network(stage.teacher)
    metadata = store_metadata(context, stage, teacher)
    store = context.group.first_on_each_node(lambda: LabelStore(folder, count, len(source.classes), metadata))
    labelled = count if store.complete else store.count_present()  # known once the store has looked for its shards
    context.say_position(stage.name, f"{labelled:,} of {count:,} pool images are labelled")
    has_waited = False
    while not store.complete:
        context.observer.progress(store.count_present() / count, {})
        labelled = 0
        with closing(fill_store(store, teacher, context.data, context.device)) as counts:
            for labelled in counts:
                context.observer.progress(labelled / count, {"images": f"{labelled}/{count}"})
                context.check_signals()
        if not labelled:  # other processes have claimed the shards that are left
            if not has_waited and context.group.size == 1:
                context.observer.say(f"note: stage {stage.name}: other processes label what is left; waiting for them")
            has_waited = True
            context.check_signals()
            time.sleep(POLL_SECONDS)
    return context.group.broadcast_from_rank0(lambda: _finish(context, stage, store, started))


def _finish(context: RunContext, stage: PseudoLabelStage, store: LabelStore, started: float) -> dict[str, Any]:
    """Select pseudo-labels from a complete store, write the table, and return the stage's entry in the ledger."""
    folder, pool, source = context.stage_folder(stage).path, context.data.splits.pool, context.data.source
    store.finish()
    labels = read_labels(folder)  # as the student reads them, in a resumed run too
    selection = stage.select(labels)
    _warn_of_missing_classes(context, stage, labels)
    write_table(folder, source, pool, labels, selection)
    result = write_summary(folder, source, pool, labels, selection, _previous_labels(context, stage))
    return {
        "name": stage.name,
        "kind": PSEUDO_LABEL,
        "teacher": stage.teacher,
        "teacher_sha256": store.metadata["weights"],
        "seconds": round(time.monotonic() - started, 3),
        **context.describe_outputs(stage),
        "result": result,
    }


def _warn_of_missing_classes(context: RunContext, stage: PseudoLabelStage, labels: Labels) -> None:
    """Name the classes that the teacher predicts for no image of the pool: its student sees no pool image of them."""
    classes = context.data.source.classes
    counts = np.bincount(labels.predictions, minlength=len(classes))
    missing = [classes[c] for c in np.flatnonzero(counts == 0)]
    if missing:
        context.observer.say(f"warning: stage {stage.name}: the teacher calls no pool image {abbreviate(missing)}")


def _previous_labels(context: RunContext, stage: PseudoLabelStage) -> Labels | None:
    """Return the pseudo-labels of the round before; None in the first round."""
    previous = next((other for other in context.stages if other.name == stage.previous), None)
    return None if previous is None else read_labels(context.stage_folder(previous).path)


def store_metadata(context: RunContext, stage: PseudoLabelStage, teacher: ImageClassifier) -> dict[str, Any]:
    """Return what a stage's pseudo-labels depend on, and the path of its teacher below the run's folder."""
    lower = LOWER_PRECISION.get(context.config.trainer.precision) if context.device.type == "cuda" else None
    batch_size = evaluation_batch(teacher)
    teacher_stage = next(other for other in context.train_stages if other.name == stage.teacher)
    return {
        "teacher": str(context.weights_file(teacher_stage).relative_to(context.folder.path)),
        "weights": weight_hash(teacher),
        "data": data_key(context.record.content, context.data.splits.pool),
        "views": stage.tta_views,
        "device": context.device.type,
        "precision": FLOAT32 if lower is None else str(lower).removeprefix("torch."),
        **({} if batch_size == EVALUATION_BATCH else {"batch_size": batch_size}),
    }


def data_key(record: dict[str, Any], pool: np.ndarray) -> str:
    """Return a digest of a run's data, as its identity has it, and of which of its images are the pool."""
    indices = hashlib.sha256()
    for first in range(0, len(pool), SHARD):
        indices.update(pool[first : first + SHARD].astype("<i8").tobytes())
    return digest([record.get("identity", {}).get("data", {}), indices.hexdigest()])


class _ClaimedBatches:
    """The numbers of the batches of one claimed shard after another, for a loader.

    It ends where every shard is written or claimed by another process; it never waits: others may wait for this one.

    Attributes:
        claims: what to close once a shard is written, by shard.
        requested: numbers of the batches that the loader has taken and that are not computed yet.
    """

    def __init__(self, store: LabelStore, batch_size: int) -> None:
        self._store = store
        self._batch_size = batch_size
        self.claims: dict[int, ExitStack] = {}
        self.requested: deque[int] = deque()

    def __iter__(self) -> Iterator[int]:
        for shard in self._store.missing:
            claim = ExitStack()
            if not claim.enter_context(self._store.claim(shard)):
                claim.close()
                continue
            self.claims[shard] = claim
            first, last = self._store.bounds(shard)
            for number in range(first // self._batch_size, -(-last // self._batch_size)):
                self.requested.append(number)
                yield number

    def release(self, shard: int) -> None:
        """Release a shard that is written."""
        self.claims.pop(shard).close()

    def close(self) -> None:
        """Release all claims."""
        for claim in self.claims.values():
            claim.close()


Pending = deque[tuple[Future[Any], int | None]]  # conversions (None) and writes (their shard), oldest first


def fill_store(
    store: LabelStore, network: ImageClassifier, data: ImageDataModule, device: torch.device
) -> Generator[int]:
    """Label the shards that no other process has claimed; after each batch yield how many pool images are labelled.

    The network runs on the device; meanwhile a thread converts earlier batches to the store's format and writes them.

    Args:
        store: its ``metadata`` says which views are averaged, in which precision.
        network: is moved to the device and put into eval mode.
        data: has the pool.
        device: where to compute.

    Raises:
        UserError: a probability is not finite, or the disk is full.
    """
    network.eval().to(device)
    batch_size: int = store.metadata.get("batch_size", EVALUATION_BATCH)
    claimed, rows, unwritten = _ClaimedBatches(store, batch_size), [], 0
    numbers = iter(claimed)
    first_number = next(numbers, None)
    if first_number is None:  # before a loader is made, and processes for it
        return
    pending: Pending = deque()
    with closing(claimed), ThreadPoolExecutor(1) as thread:
        try:
            for batch in data.eval_dataloader(data.splits.pool, batch_size, batches=chain([first_number], numbers)):
                number, unwritten = claimed.requested.popleft(), unwritten + len(batch.images)
                rows.append(thread.submit(_to_rows, store, *_probabilities(store, network, batch.images, device)))
                pending.append((rows[-1], None))
                shard = number * batch_size // store.shard
                last = min(store.count, (number + 1) * batch_size)
                if last == store.bounds(shard)[1]:
                    pending.append((thread.submit(_write_shard, store, shard, rows), shard))
                    rows = []
                while len(pending) > MOST_PENDING:
                    unwritten -= _wait_for_oldest(pending, claimed, store)
                yield store.count_present(exclude=claimed.claims) + unwritten
            while pending:
                unwritten -= _wait_for_oldest(pending, claimed, store)
        finally:
            thread.shutdown(wait=True, cancel_futures=True)


def _wait_for_oldest(pending: Pending, claimed: _ClaimedBatches, store: LabelStore) -> int:
    """Wait for the oldest pending work; return how many images it has written."""
    future, shard = pending.popleft()
    future.result()
    if shard is None:
        return 0
    claimed.release(shard)
    first, last = store.bounds(shard)
    return last - first


def _probabilities(
    store: LabelStore, network: ImageClassifier, images: Tensor, device: torch.device
) -> tuple[Tensor, "torch.cuda.Event | None"]:
    """Return probabilities (B, C) on their way from the device, and the event after which they have arrived."""
    precision, kind = getattr(torch, store.metadata["precision"]), device.type
    lower = torch.autocast(kind, precision, enabled=precision != torch.float32)
    with torch.inference_mode(), lower:
        probabilities = tta_probabilities(network, images.to(device, non_blocking=True), store.metadata["views"])
        probabilities = probabilities.to("cpu", non_blocking=True)
    if kind != "cuda":
        return probabilities, None
    arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrival.record()
    return probabilities, arrival


def _to_rows(store: LabelStore, probabilities: Tensor, arrival: "torch.cuda.Event | None") -> np.ndarray:
    """Return probabilities (B, C) as rows of the store."""
    if arrival is not None:
        arrival.synchronize()
    try:
        return store.encode_rows(probabilities.numpy())
    except ValueError:
        teacher = store.metadata["teacher"]
        raise UserError(f"{teacher}: its logits for the pool are not finite; its weights are unusable") from None


def _write_shard(store: LabelStore, shard: int, rows: list[Future[np.ndarray]]) -> None:
    store.write(shard, np.concatenate([future.result() for future in rows]))
