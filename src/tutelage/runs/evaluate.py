"""The evaluation of a run's networks, and of teachers that it was given, once, after the last stage."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tutelage.data import WITHOUT_DUPLICATES, EvalBatch, ImageDataModule
from tutelage.models import (
    ImageSpec,
    Predictions,
    Teacher,
    compute_metrics,
    compute_task_metrics,
    compute_validation_metrics,
    predict,
    predict_from_logits,
    read_architecture,
)
from tutelage.runs.context import RunContext
from tutelage.runs.integrity import list_files
from tutelage.runs.predictions import write_predictions
from tutelage.runs.teachers import TEACHERS_KEY, load_teacher, stages_of_given_teachers
from tutelage.runs.weight_sources import find_network
from tutelage.strategies import TrainStage

Predict = Callable[[Iterable[EvalBatch], Callable[[int], None]], Predictions]  # batches, and what to call after each
Scale = Callable[[float], float]  # the fraction of a set of images that is done to that of the whole evaluation


def evaluate_networks(context: RunContext) -> None:
    """Evaluate every network on the test sets and finish the record."""
    stages, taught = context.train_stages, stages_of_given_teachers(context)
    count = len(stages) + len(taught)
    for number, stage in enumerate(stages):
        _evaluate_stage(context, stage, lambda fraction, number=number: (number + fraction) / count)  # type: ignore[misc]
    result = context.record.finished_entry(context.main_stage.name)["result"]
    scales = [lambda fraction, number=number: (number + fraction) / count for number in range(len(stages), count)]
    _finish(context, result, [_evaluate_teacher(context, *each) for each in zip(taught, scales, strict=True)])


def finish_untested(context: RunContext) -> None:
    """Finish the record with the validation metrics; the test set stays untouched."""
    result = context.record.finished_entry(context.main_stage.name)["result"]
    validated = {key: value for key, value in result.items() if not key.startswith("test")}
    _finish(context, validated, [_evaluate_teacher(context, stage) for stage in stages_of_given_teachers(context)])


def _finish(context: RunContext, result: dict[str, float], given_teachers: list[dict[str, Any]]) -> None:
    names = [stage.name for stage in context.stages]
    context.record.finish(result, names, list_files(context.folder), given_teachers)


def _evaluate_stage(context: RunContext, stage: TrainStage, scale: Scale) -> None:
    """Evaluate a stage's network on the test sets, and add the metrics to the stage's entry in the ledger."""
    entry = context.record.finished_entry(stage.name)
    network, data, started = context.load_network(stage.name), context.data_for(stage), time.monotonic()

    def predict_batches(batches: Iterable[EvalBatch], after_batch: Callable[[int], None]) -> Predictions:
        return predict(network, batches, context.device, after_batch)

    predictions = _predict_test(context, predict_batches, data, scale)
    entry["test_seconds"] = round(time.monotonic() - started, 3)
    write_predictions(context.stage_folder(stage).test_file, predictions, network.spec.classes, data.source)
    entry["result"] |= _test_metrics(context, predictions, network.spec, "test")
    if context.previous_run is not None and len(context.previous_run.test):
        images = context.previous_run.test_batches(first_label=len(context.data.source.classes))
        entry["result"] |= compute_task_metrics(predict_batches(images, context.after_batch), network.spec, "test")
    entry["result"] |= _further_test_metrics(context, predict_batches, data, network.spec, scale)
    context.record.finish_stage(entry)


def _evaluate_teacher(context: RunContext, stage: TrainStage, scale: Scale | None = None) -> dict[str, Any]:
    """Return the ledger's entry of the teacher that a stage was given: where it is from, and its metrics.

    It sees images as it does while it teaches. Where its classes are not the run's, the entry has a reason instead.

    Args:
        context: the run.
        stage: the first that the teacher teaches in.
        scale: None for validation alone, without the test sets.
    """
    spec, data = stage.teacher, context.data_for(stage)
    if spec is None or isinstance(spec.networks, str):
        raise TypeError(f"stage {stage.name} was given no teacher")
    teacher = load_teacher(context, spec)
    names = [str(path) for path in spec.networks]
    entry: dict[str, Any] = {
        "names": names,
        "models": [read_architecture(find_network(name, TEACHERS_KEY)) for name in names],
        "parameters": sum(p.numel() for network in teacher.networks for p in network.parameters()),
        "result": {},
    }
    if teacher.classes != context.image_spec.classes:
        return {**entry, "reason": f"its classes ({len(teacher.classes)}) differ from the run's, by name or order"}
    return {**entry, "result": _teacher_metrics(context, teacher.to(context.device), data, scale)}


def _teacher_metrics(
    context: RunContext, teacher: Teacher, data: ImageDataModule, scale: Scale | None
) -> dict[str, float]:
    """Return a teacher's metrics on validation and, with a ``scale`` of progress, on the test sets."""
    spec, result = teacher.networks[0].spec, dict[str, float]()

    def predict_batches(batches: Iterable[EvalBatch], after_batch: Callable[[int], None]) -> Predictions:
        return predict_from_logits(lambda images, labels: teacher(images), batches, context.device, after_batch)

    if context.has_validation:
        predictions = predict_batches(data.eval_dataloader(data.splits.validation), context.after_batch)
        result |= compute_validation_metrics(predictions, teacher.classes)
    if scale is not None:
        predictions = _predict_test(context, predict_batches, data, scale)
        result |= _test_metrics(context, predictions, spec, "test")
        result |= _further_test_metrics(context, predict_batches, data, spec, scale)
    return result


def _predict_test(context: RunContext, predict_batches: Predict, data: ImageDataModule, scale: Scale) -> Predictions:
    """Return the predictions on the test images; show progress and check signals."""
    indices = context.data.splits.test
    return predict_batches(data.eval_dataloader(indices), context.on_images(len(indices), scale))


def _further_test_metrics(
    context: RunContext, predict_batches: Predict, data: ImageDataModule, spec: ImageSpec, scale: Scale
) -> dict[str, float]:
    """Return the metrics on the further test sets of the data."""
    metrics: dict[str, float] = {}
    for name, indices in context.data.splits.further_tests.items():
        after_batch = context.on_images(len(indices), lambda fraction: scale(1.0))
        predictions = predict_batches(data.eval_dataloader(indices), after_batch)
        metrics |= _test_metrics(context, predictions, spec, f"test-{name}")
    return metrics


def _test_metrics(context: RunContext, predictions: Predictions, spec: ImageSpec, prefix: str) -> dict[str, float]:
    """Return the metrics on a test set, and where some of its images are also learned from, those on the others."""
    metrics, is_leaked = _all_metrics(predictions, spec, prefix), np.isin(predictions.indices, context.data.leaked)
    if is_leaked.any() and not is_leaked.all():
        metrics |= _all_metrics(predictions.select(~is_leaked), spec, f"{prefix}{WITHOUT_DUPLICATES}")
    return metrics


def _all_metrics(predictions: Predictions, spec: ImageSpec, prefix: str) -> dict[str, float]:
    return compute_metrics(predictions, spec.classes, prefix) | compute_task_metrics(predictions, spec, prefix)
