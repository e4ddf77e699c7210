"""A teacher labels the pool: one process, or several at once, shard by shard."""

import hashlib
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tutelage.data import ImageDataModule, Labels, LabelStore, abbreviate, read_labels, write_summary, write_table
from tutelage.data.pseudo_labels.labels import EVALUATION_BATCH, SHARD
from tutelage.errors import UserError
from tutelage.models import ImageClassifier, tta_probabilities, weight_hash
from tutelage.runs.teacher_cache import LOWER
from tutelage.storage import digest
from tutelage.strategies import PseudoLabelStage, TrainStage

if TYPE_CHECKING:
    from tutelage.runs.context import RunContext

WAIT = 0.2  # seconds between two looks at what other processes have done
AHEAD = 2  # batches that are computed while one is brought to its form in the store
FLOAT32 = "float32"


def label(context: "RunContext", stage: PseudoLabelStage) -> dict[str, Any]:
    """Let a stage's teacher label the pool, without noise, and return the stage's entry in the ledger.

    Of several processes of the run each labels the shards that it comes to first. What other processes label meanwhile
    (``tutelage label``) is waited for.

    Raises:
        Stopped: a signal asked for it; the shards that are done are kept.
        UserError: the answers are no numbers, or the disk has no room.
    """
    place, pool, source = context.place(stage).path, context.data.splits.pool, context.data.source
    started = time.monotonic()
    network = context.network(stage.teacher)
    its = about(context, stage, network)
    store = context.group.by_turns(lambda: LabelStore(place, len(pool), len(source.classes), its))
    told = False
    while not store.complete:
        answered = 0
        with closing(fill(store, network, context.data, context.device)) as batches:
            for answered in batches:
                context.observer.progress(answered / len(pool), {"images": f"{answered}/{len(pool)}"})
                context.answer()
        if not answered:  # other processes are at what is left
            if not told and context.group.size == 1:
                context.observer.say(f"note: stage {stage.name}: other processes label what is left; waiting for them")
            told = True
            context.answer()
            time.sleep(WAIT)
    return context.group.broadcast_from_rank0(lambda: _finished(context, stage, store, started))


def _finished(context: "RunContext", stage: PseudoLabelStage, store: LabelStore, started: float) -> dict[str, Any]:
    """Select among the labels of a complete store, write the table, and return the stage's entry in the ledger."""
    place, pool, source = context.place(stage).path, context.data.splits.pool, context.data.source
    store.finish()
    labels = labels_of(context, stage)  # what the student will see, also in a run that resumes here
    chosen = stage.select(labels)
    _warn_of_silence(context, stage, labels)
    write_table(place, source, pool, labels, chosen)
    return {
        "name": stage.name,
        "kind": "label",
        "teacher": stage.teacher,
        "teacher_sha256": store.about["weights"],
        "seconds": round(time.monotonic() - started, 3),
        "result": write_summary(place, source, pool, labels, chosen, _before(context, stage)),
    }


def _warn_of_silence(context: "RunContext", stage: PseudoLabelStage, labels: Labels) -> None:
    """Say which classes the teacher answers for no image of the pool: its student sees no pool image of them."""
    classes = context.data.source.classes
    silent = [classes[c] for c in np.flatnonzero(np.bincount(labels.answers, minlength=len(classes)) == 0)]
    if silent:
        context.observer.say(f"warning: stage {stage.name}: the teacher calls no pool image {abbreviate(silent)}")


def labels_of(context: "RunContext", stage: PseudoLabelStage) -> Labels:
    """Return the labels that a finished stage left."""
    return read_labels(context.place(stage).path)


def _before(context: "RunContext", stage: PseudoLabelStage) -> Labels | None:
    """Return the labels of the round before; None in the first."""
    return next(
        (
            labels_of(context, one)
            for one in context.plan
            if isinstance(one, PseudoLabelStage) and one.name == stage.previous
        ),
        None,
    )


def about(context: "RunContext", stage: PseudoLabelStage, network: ImageClassifier) -> dict[str, Any]:
    """Return what a stage's labels depend on, and where its teacher lies below the run's folder."""
    lower = LOWER.get(context.config.trainer.precision) if context.device.type == "cuda" else None
    teacher = next(fit for fit in context.plan if isinstance(fit, TrainStage) and fit.name == stage.teacher)
    return {
        "teacher": str(context.weights(teacher).relative_to(context.folder.path)),
        "weights": weight_hash(network),
        "data": data_key(context.record.content, context.data.splits.pool),
        "views": stage.tta_views,
        "device": context.device.type,
        "precision": FLOAT32 if lower is None else str(lower).removeprefix("torch."),
    }


def data_key(record: dict[str, Any], pool: np.ndarray) -> str:
    """Return a digest of a run's data, as its identity has it, and of which of its images are the pool."""
    indices = hashlib.sha256()
    for first in range(0, len(pool), SHARD):
        indices.update(pool[first : first + SHARD].astype("<i8").tobytes())
    return digest([record.get("identity", {}).get("data", {}), indices.hexdigest()])


class _Turns:
    """The numbers of the batches of one claimed shard after another, as a loader asks for them.

    It ends where every shard is done or somebody else is at it; it never waits: others may wait for this process.

    Attributes:
        claims: what to close once a shard is written, by shard.
        asked: the batches that were asked for and are not answered yet.
    """

    def __init__(self, store: LabelStore) -> None:
        self._store = store
        self.claims: dict[int, ExitStack] = {}
        self.asked: deque[int] = deque()

    def __iter__(self) -> Iterator[int]:
        for shard in self._store.missing:
            claim = ExitStack()
            if not claim.enter_context(self._store.claim(shard)):
                claim.close()
                continue
            self.claims[shard] = claim
            first, last = self._store.bounds(shard)
            for number in range(first // EVALUATION_BATCH, -(-last // EVALUATION_BATCH)):
                self.asked.append(number)
                yield number

    def release(self, shard: int) -> None:
        """Give up a shard that is written."""
        self.claims.pop(shard).close()

    def close(self) -> None:
        """Give up whatever is claimed."""
        for claim in self.claims.values():
            claim.close()


def fill(store: LabelStore, network: ImageClassifier, data: ImageDataModule, device: torch.device) -> Generator[int]:
    """Label the shards that nobody else is at; after each batch yield how many pool images are answered by now.

    The network answers on the device; meanwhile a thread brings the batches before to their form in the store.

    Args:
        store: says by ``about`` which views are averaged, in which precision.
        network: is moved to the device and put into eval mode.
        data: has the pool.
        device: where to compute.

    Raises:
        UserError: an answer is no number, or the disk has no room.
    """
    network.eval().to(device)
    turns, rows, under_way = _Turns(store), [], 0
    numbers = iter(turns)
    first = next(numbers, None)
    if first is None:  # before a loader is made, and processes for it
        return
    pending: deque[tuple[Future[Any], int | None]] = deque()
    with closing(turns), ThreadPoolExecutor(1) as beside:
        try:
            for batch in data.plain(data.splits.pool, chosen=chain([first], numbers)):
                number, under_way = turns.asked.popleft(), under_way + len(batch.images)
                rows.append(beside.submit(_rows, store, *_asked(store, network, batch.images, device)))
                pending.append((rows[-1], None))
                shard = number * EVALUATION_BATCH // store.shard
                last = min(store.count, (number + 1) * EVALUATION_BATCH)
                if last == store.bounds(shard)[1]:
                    pending.append((beside.submit(_write, store, shard, rows), shard))
                    rows = []
                while len(pending) > AHEAD:
                    under_way -= _settled(pending, turns, store)
                yield store.present(but=turns.claims) + under_way
            while pending:
                under_way -= _settled(pending, turns, store)
        finally:
            beside.shutdown(wait=True, cancel_futures=True)


def _settled(pending: deque[tuple[Future[Any], int | None]], turns: _Turns, store: LabelStore) -> int:
    """Wait for the oldest of what is pending; return how many images it has written."""
    future, shard = pending.popleft()
    future.result()
    if shard is None:
        return 0
    turns.release(shard)
    first, last = store.bounds(shard)
    return last - first


def _asked(
    store: LabelStore, network: ImageClassifier, images: Tensor, device: torch.device
) -> tuple[Tensor, "torch.cuda.Event | None"]:
    """Return probabilities (B, C) on their way from the device, and the event after which they are there."""
    precision, kind = getattr(torch, store.about["precision"]), device.type
    lower = torch.autocast(kind, precision, enabled=precision != torch.float32)
    with torch.inference_mode(), lower:
        found = tta_probabilities(network, images.to(device, non_blocking=True), store.about["views"])
        found = found.to("cpu", non_blocking=True)
    if kind != "cuda":
        return found, None
    there = torch.cuda.Event()  # type: ignore[no-untyped-call]
    there.record()
    return found, there


def _rows(store: LabelStore, probabilities: Tensor, there: "torch.cuda.Event | None") -> np.ndarray:
    """Return probabilities (B, C) as rows of the store."""
    if there is not None:
        there.synchronize()
    try:
        return store.packed(probabilities.numpy())
    except ValueError:
        teacher = store.about["teacher"]
        raise UserError(f"{teacher}: its answers to the pool are not finite; its weights are no good") from None


def _write(store: LabelStore, shard: int, rows: list[Future[np.ndarray]]) -> None:
    store.write(shard, np.concatenate([each.result() for each in rows]))
