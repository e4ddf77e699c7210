"""The evaluation of a run's networks on the test sets, once, after the last stage."""

import time
from collections.abc import Callable

import numpy as np

from tutelage.data import WITHOUT_DUPLICATES, ImageDataModule
from tutelage.models import (
    ImageClassifier,
    Predictions,
    compute_metrics,
    compute_task_metrics,
    evaluation_batch,
    predict,
)
from tutelage.runs.context import RunContext
from tutelage.runs.integrity import list_files
from tutelage.runs.predictions import write_predictions
from tutelage.strategies import TrainStage


def evaluate_networks(context: RunContext) -> None:
    """Evaluate every network on the test sets and finish the record."""
    stages = context.train_stages
    for number, stage in enumerate(stages):
        _evaluate_stage(context, stage, lambda fraction, number=number: (number + fraction) / len(stages))  # type: ignore[misc]
    _finish(context, context.record.finished_entry(context.main_stage.name)["result"])


def finish_untested(context: RunContext) -> None:
    """Finish the record with the validation metrics; the test set stays untouched."""
    result = context.record.finished_entry(context.main_stage.name)["result"]
    _finish(context, {key: value for key, value in result.items() if not key.startswith("test")})


def _finish(context: RunContext, result: dict[str, float]) -> None:
    names = [stage.name for stage in context.stages]
    context.record.finish(result, names, list_files(context.folder))


def _evaluate_stage(context: RunContext, stage: TrainStage, scale: Callable[[float], float]) -> None:
    """Evaluate a stage's network on the test sets, and add the metrics to the stage's entry in the ledger."""
    entry, splits = context.record.finished_entry(stage.name), context.data.splits
    network, data, started = context.load_network(stage.name), context.data_for(stage), time.monotonic()
    predictions = _predict_split(context, network, data, splits.test, scale)
    entry["test_seconds"] = round(time.monotonic() - started, 3)
    write_predictions(context.stage_folder(stage).test_file, predictions, network.spec.classes, data.source)
    entry["result"] |= _test_metrics(context, predictions, network, "test")
    if context.previous_run is not None and len(context.previous_run.test):
        images = context.previous_run.test_batches(first_label=len(context.data.source.classes))
        predictions = predict(network, images, context.device, lambda count: context.check_signals())
        entry["result"] |= compute_task_metrics(predictions, network, "test")
    for name, indices in splits.further_tests.items():
        predictions = _predict_split(context, network, data, indices, lambda fraction: scale(1.0))
        entry["result"] |= _test_metrics(context, predictions, network, f"test-{name}")
    context.record.finish_stage(entry)


def _test_metrics(
    context: RunContext, predictions: Predictions, network: ImageClassifier, prefix: str
) -> dict[str, float]:
    """Return the metrics on a test set, and where some of its images are also learned from, those on the others."""
    metrics, is_leaked = _all_metrics(predictions, network, prefix), np.isin(predictions.indices, context.data.leaked)
    if is_leaked.any() and not is_leaked.all():
        metrics |= _all_metrics(predictions.select(~is_leaked), network, f"{prefix}{WITHOUT_DUPLICATES}")
    return metrics


def _all_metrics(predictions: Predictions, network: ImageClassifier, prefix: str) -> dict[str, float]:
    metrics = compute_metrics(predictions, network.spec.classes, prefix)
    return metrics | compute_task_metrics(predictions, network, prefix)


def _predict_split(
    context: RunContext,
    network: ImageClassifier,
    data: ImageDataModule,
    indices: np.ndarray,
    scale: Callable[[float], float],
) -> Predictions:
    """Return a network's predictions on some images; show progress and check signals."""
    batches = data.eval_dataloader(indices, evaluation_batch(network))
    return predict(network, batches, context.device, context.on_images(len(indices), scale))
