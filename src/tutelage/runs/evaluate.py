"""The evaluation of a run's networks, and of teachers that it was given, once, after the last stage."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tutelage.data import OLD_CLASSES, WITHOUT_DUPLICATES, ImageDataModule, Predictions
from tutelage.errors import UserError
from tutelage.models import (
    ImageSpec,
    Teacher,
    compute_metrics,
    compute_task_metrics,
    compute_validation_metrics,
    evaluation_batch,
    predict,
    predict_from_logits,
    weight_hash,
)
from tutelage.runs.context import RunContext
from tutelage.runs.integrity import list_files
from tutelage.runs.predictions import write_predictions
from tutelage.runs.teachers import load_teacher, stages_of_given_teachers, teacher_without_weights
from tutelage.strategies import TrainStage

Predict = Callable[[np.ndarray], Predictions]  # from the indices of images


def evaluate_networks(context: RunContext) -> None:
    """Evaluate every network, and every given teacher, on the test sets and finish the record."""
    for number, stage in enumerate(context.train_stages):
        _evaluate_stage(context, stage, number)
    given = enumerate(stages_of_given_teachers(context), start=len(context.train_stages))
    teachers = [_evaluate_teacher(context, stage, number) for number, stage in given]
    _finish(context, context.record.finished_entry(context.main_stage.name)["result"], teachers)


def finish_untested(context: RunContext) -> None:
    """Finish the record with the validation metrics; the test set stays untouched."""
    result = context.record.finished_entry(context.main_stage.name)["result"]
    validated = {key: value for key, value in result.items() if not key.startswith("test")}
    _finish(context, validated, [_evaluate_teacher(context, stage) for stage in stages_of_given_teachers(context)])


def _finish(context: RunContext, result: dict[str, float], given_teachers: list[dict[str, Any]]) -> None:
    names = [stage.name for stage in context.stages]
    context.record.finish(result, names, list_files(context.folder), given_teachers)


def count_test_images(context: RunContext) -> int:
    """Return the number of images in all test sets of a run."""
    previous = 0 if context.previous_run is None else len(context.previous_run.test)
    return len(context.data.splits.test) + sum(map(len, context.data.splits.further_tests.values())) + previous


def _evaluate_stage(context: RunContext, stage: TrainStage, number: int) -> None:
    """Evaluate the network of the training stage ``number`` on the test sets; add the metrics to its ledger entry."""
    entry = context.record.finished_entry(stage.name)
    network, data, started = context.load_network(stage.name), context.data_for(stage), time.monotonic()
    on_batch = context.on_images(count_test_images(context), work=number)
    batch_size = evaluation_batch(network)

    def predict_images(indices: np.ndarray) -> Predictions:
        return predict(network, data.eval_dataloader(indices, batch_size), context.device, on_batch)

    predictions = predict_images(context.data.splits.test)
    entry["test_seconds"] = round(time.monotonic() - started, 3)
    write_predictions(context.stage_folder(stage).test_file, predictions, network.spec.classes, data.source)
    entry["result"] |= _test_metrics(context, predictions, network.spec, "test")
    if context.previous_run is not None and len(context.previous_run.test):
        images = context.previous_run.test_batches(first_label=len(context.data.source.classes))
        predictions = predict(network, images, context.device, on_batch)
        entry["result"] |= _previous_test_metrics(predictions, network.spec)
        if network.spec.added:
            tested = set(predictions.labels.tolist())
            old_classes = list(enumerate(network.spec.classes))[1:]
            entry["untested_classes"] = [name for label, name in old_classes if label not in tested]
    entry["result"] |= _further_test_metrics(context, predict_images, network.spec)
    context.record.finish_stage(entry)


def _previous_test_metrics(predictions: Predictions, spec: ImageSpec) -> dict[str, float]:
    """Return the metrics on the test images of the previous run: of the first task, or of all older classes.

    The newest class alone takes pictures from the others: without it, each is of the most probable of these.
    """
    if not spec.added:
        return compute_task_metrics(predictions, spec, "test")
    predicted, before = predictions.probabilities.argmax(axis=1), predictions.probabilities[:, 1:].argmax(axis=1) + 1
    return compute_metrics(predictions, spec.classes, OLD_CLASSES) | {
        f"{OLD_CLASSES}/accuracy_before": round(float((before == predictions.labels).mean()), 6),
        f"{OLD_CLASSES}/taken": round(float((predicted == 0).mean()), 6),
    }


def _evaluate_teacher(context: RunContext, stage: TrainStage, number: int | None = None) -> dict[str, Any]:
    """Return the ledger's entry of the teacher that a stage was given: where it is from, and its metrics.

    It sees images as it does while it teaches. Where its classes are not the run's, or its weights are no longer those
    that taught, the entry has a reason instead.

    Args:
        context: the run.
        stage: the first that the teacher teaches in.
        number: the index of the work in the part that tests; None for validation alone, without the test sets.
    """
    spec, data = stage.teacher, context.data_for(stage)
    if spec is None or isinstance(spec.networks, str):
        raise TypeError(f"stage {stage.name} was given no teacher")
    networks = teacher_without_weights(context, spec).networks  # as read at the start: the files may be gone since
    entry: dict[str, Any] = {
        "names": [str(path) for path in spec.networks],
        "models": [network.model_config for network in networks],
        "parameters": sum(p.numel() for network in networks for p in network.parameters()),
        "result": {},
    }
    classes = networks[0].spec.classes
    if classes != context.image_spec.classes:
        return {**entry, "reason": f"its classes ({len(classes)}) differ from the run's, by name or order"}
    try:
        teacher = load_teacher(context, spec)
    except UserError:  # not at the start of the run, which read them
        return {**entry, "reason": "its weights are missing or damaged since it taught"}
    taught = context.record.finished_entry(stage.name)["teacher_sha256"]
    if [weight_hash(network) for network in teacher.networks] != taught:
        return {**entry, "reason": "its weights have changed since it taught"}
    return {**entry, "result": _teacher_metrics(context, teacher.to(context.device), data, number)}


def _teacher_metrics(
    context: RunContext, teacher: Teacher, data: ImageDataModule, number: int | None
) -> dict[str, float]:
    """Return a teacher's metrics on validation and, where that is the work ``number``, on the test sets."""
    spec, result = teacher.networks[0].spec, dict[str, float]()
    batch_size = min(map(evaluation_batch, teacher.networks))

    def predict_images(indices: np.ndarray, after_batch: Callable[[int], None] = context.after_batch) -> Predictions:
        batches = data.eval_dataloader(indices, batch_size)
        return predict_from_logits(lambda images, labels: teacher(images), batches, context.device, after_batch)

    if context.has_validation:
        result |= compute_validation_metrics(predict_images(data.splits.validation), teacher.classes)
    if number is not None:
        on_batch = context.on_images(count_test_images(context), work=number)
        predict_test = partial(predict_images, after_batch=on_batch)
        result |= _test_metrics(context, predict_test(context.data.splits.test), spec, "test")
        result |= _further_test_metrics(context, predict_test, spec)
    return result


def _further_test_metrics(context: RunContext, predict_images: Predict, spec: ImageSpec) -> dict[str, float]:
    """Return the metrics on the further test sets of the data."""
    metrics: dict[str, float] = {}
    for name, indices in context.data.splits.further_tests.items():
        metrics |= _test_metrics(context, predict_images(indices), spec, f"test-{name}")
    return metrics


def _test_metrics(context: RunContext, predictions: Predictions, spec: ImageSpec, prefix: str) -> dict[str, float]:
    """Return the metrics on a test set, and where some of its images are also learned from, those on the others."""
    metrics, is_leaked = _all_metrics(predictions, spec, prefix), np.isin(predictions.indices, context.data.leaked)
    if is_leaked.any() and not is_leaked.all():
        metrics |= _all_metrics(predictions.select(~is_leaked), spec, f"{prefix}{WITHOUT_DUPLICATES}")
    return metrics


def _all_metrics(predictions: Predictions, spec: ImageSpec, prefix: str) -> dict[str, float]:
    return compute_metrics(predictions, spec.classes, prefix) | compute_task_metrics(predictions, spec, prefix)
