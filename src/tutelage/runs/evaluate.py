"""How good networks are: asked about images, with progress shown and signals heeded; the test at the end."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tutelage.data import ImageDataModule
from tutelage.models import ImageClassifier, Predictions, compute_metrics, compute_task_metrics, predict
from tutelage.runs.context import RunContext
from tutelage.storage import write_whole
from tutelage.strategies import TrainStage


def test(context: RunContext) -> None:
    """Measure every network on the test sets, once, after the last stage, and finish the record."""
    result: dict[str, float] = {}
    fits, splits = [stage for stage in context.plan if isinstance(stage, TrainStage)], context.data.splits
    others = {f"test-{name}": indices for name, indices in splits.others.items()}
    for number, stage in enumerate(fits):
        entry = context.record.stage(stage.name)
        assert entry is not None  # noqa: S101 - every stage was finished before
        network, started = context.network(stage.name), time.monotonic()
        data = context.data_of(stage)
        found = answers_of(context, network, data, splits.test, lambda share, done=number: (done + share) / len(fits))  # type: ignore[misc]
        entry["answer_seconds"] = round(time.monotonic() - started, 3)
        _write_answers(context.place(stage).test_file, found)
        entry["result"] |= compute_metrics(found, network.spec.classes, "test") | compute_task_metrics(
            found, network, "test"
        )
        if context.older is not None and len(context.older.test):
            images = context.older.images(len(context.data.source.classes))
            found = predict(network, images, context.device, lambda count: context.answer())
            entry["result"] |= compute_task_metrics(found, network, "test")
        for name, indices in others.items():
            found = answers_of(context, network, data, indices, lambda share, done=number: (done + 1) / len(fits))  # type: ignore[misc]
            entry["result"] |= compute_metrics(found, network.spec.classes, name) | compute_task_metrics(
                found, network, name
            )
        context.record.finish_stage(entry)
        if not stage.control and not stage.rejected:
            result = entry["result"]
    context.record.finish(result, [stage.name for stage in context.plan])


def leave_untested(context: RunContext) -> None:
    """Finish the record with what validation says; the test set stays untouched."""
    last = [
        stage for stage in context.plan if isinstance(stage, TrainStage) and not stage.control and not stage.rejected
    ][-1]
    entry = context.record.stage(last.name)
    assert entry is not None  # noqa: S101 - every stage was finished before
    seen = {key: value for key, value in entry["result"].items() if not key.startswith("test")}
    context.record.finish(seen, [stage.name for stage in context.plan])


def answers_of(
    context: RunContext,
    network: ImageClassifier,
    data: ImageDataModule,
    indices: np.ndarray,
    of_stage: Callable[[float], float],
) -> Predictions:
    """Return a network's answers; progress is shown, signals are heeded."""
    return predict(network, data.plain(indices), context.device, heed(context, len(indices), of_stage))


def heed(context: RunContext, images: int, of_stage: Callable[[float], float]) -> Callable[[int], None]:
    """Return what to call after each batch of images: shows progress, heeds signals."""
    done = 0

    def after_batch(just_done: int) -> None:
        nonlocal done
        done += just_done
        context.observer.progress(of_stage(done / images), {"images": f"{done}/{images}"})
        context.answer()

    return after_batch


def _write_answers(file: Path, found: Predictions) -> None:
    write_whole(
        file,
        lambda out: np.savez(
            out, probabilities=found.probabilities.astype(np.float16), labels=found.labels, indices=found.indices
        ),
    )
