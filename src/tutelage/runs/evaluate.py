"""The evaluation of a run's networks on the test sets, once, after the last stage."""

import time

import numpy as np

from tutelage.data import WITHOUT_DUPLICATES
from tutelage.models import ImageClassifier, Predictions, compute_metrics, compute_task_metrics, predict
from tutelage.runs.context import RunContext
from tutelage.runs.integrity import list_files
from tutelage.runs.predictions import write_predictions
from tutelage.strategies import TrainStage


def evaluate_networks(context: RunContext) -> None:
    """Evaluate every network on the test sets and finish the record."""
    for number, stage in enumerate(context.train_stages):
        _evaluate_stage(context, stage, number)
    _finish(context, context.record.finished_entry(context.main_stage.name)["result"])


def finish_untested(context: RunContext) -> None:
    """Finish the record with the validation metrics; the test set stays untouched."""
    result = context.record.finished_entry(context.main_stage.name)["result"]
    _finish(context, {key: value for key, value in result.items() if not key.startswith("test")})


def _finish(context: RunContext, result: dict[str, float]) -> None:
    names = [stage.name for stage in context.stages]
    context.record.finish(result, names, list_files(context.folder))


def count_test_images(context: RunContext) -> int:
    """Return the number of images in all test sets of a run."""
    previous = 0 if context.previous_run is None else len(context.previous_run.test)
    return len(context.data.splits.test) + sum(map(len, context.data.splits.further_tests.values())) + previous


def _evaluate_stage(context: RunContext, stage: TrainStage, number: int) -> None:
    """Evaluate the network of the training stage ``number`` on the test sets; add the metrics to its ledger entry."""
    entry, splits = context.record.finished_entry(stage.name), context.data.splits
    network, data, started = context.load_network(stage.name), context.data_for(stage), time.monotonic()
    on_batch = context.on_images(count_test_images(context), work=number)
    predictions = predict(network, data.eval_dataloader(splits.test), context.device, on_batch)
    entry["test_seconds"] = round(time.monotonic() - started, 3)
    write_predictions(context.stage_folder(stage).test_file, predictions, network.spec.classes, data.source)
    entry["result"] |= _test_metrics(context, predictions, network, "test")
    if context.previous_run is not None and len(context.previous_run.test):
        images = context.previous_run.test_batches(first_label=len(context.data.source.classes))
        predictions = predict(network, images, context.device, on_batch)
        entry["result"] |= compute_task_metrics(predictions, network, "test")
    for name, indices in splits.further_tests.items():
        predictions = predict(network, data.eval_dataloader(indices), context.device, on_batch)
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
