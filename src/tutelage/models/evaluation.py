"""What a network answers on a set of images, and how good the answers are."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
)

from tutelage.data import EvalBatch
from tutelage.models.base import ImageClassifier
from tutelage.models.heads import Heads

TOP_K = 5
CALIBRATION_BINS = 15  # Guo et al. 2017


@dataclass(frozen=True)
class Predictions:
    """A network's answers: probabilities (N, C) float32, labels (N,) int64, indices (N,) int64 into the source."""

    probabilities: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


def task_logits(network: ImageClassifier, images: Tensor, labels: Tensor) -> Tensor:
    """Return logits (B, C) of images; a network with a head a task is told the task that each of ``labels`` (B,) is of.

    The classes of other tasks are then at minus infinity.
    """
    logits: Tensor = network(images)
    return network.head.of_own_task(logits, labels) if isinstance(network.head, Heads) else logits


def answers(
    network: ImageClassifier,
    batches: Iterable[EvalBatch],
    device: torch.device,
    after_batch: Callable[[int], None] = lambda images: None,
) -> Predictions:
    """Return the un-noised answers of ``network`` (in eval mode, without gradients), ``task_logits`` of the task.

    A network with a head a task is asked only about the tasks that it has learned.

    Args:
        network: moved to ``device`` and put into eval mode.
        batches: un-augmented images.
        device: where to compute.
        after_batch: called with the number of images just answered; may raise to stop.
    """
    network.eval().to(device)
    probabilities, labels, indices = [], [], []
    with torch.inference_mode():
        for batch in batches:
            logits = task_logits(network, batch.images.to(device, non_blocking=True), batch.labels.to(device))
            probabilities.append(logits.float().softmax(dim=1).cpu().numpy())
            labels.append(batch.labels.numpy())
            indices.append(batch.indices.numpy())
            after_batch(len(batch.images))
    found = Predictions(np.concatenate(probabilities), np.concatenate(labels), np.concatenate(indices))
    if not isinstance(network.head, Heads):
        return found
    known = np.isin(found.labels, _learned_classes(network))
    return Predictions(found.probabilities[known], found.labels[known], found.indices[known])


def _learned_classes(network: ImageClassifier) -> list[int]:
    """Return the classes of the tasks that a network has learned."""
    assert isinstance(network.head, Heads)  # noqa: S101 - the caller has looked
    learned = network.head.learned.tolist()
    return [c for task, known in zip(network.spec.tasks, learned, strict=True) if known for c in task]


def confusion(found: Predictions) -> np.ndarray:
    """Return the confusion matrix (C, C) int64: rows are true classes, columns are answers."""
    probabilities, labels = torch.from_numpy(found.probabilities), torch.from_numpy(found.labels)
    matrix: np.ndarray = multiclass_confusion_matrix(probabilities, labels, probabilities.shape[1]).numpy()
    return matrix


def compute_metrics(found: Predictions, classes: Sequence[str], prefix: str) -> dict[str, float]:
    """Return the metrics of some answers, keyed ``prefix/...``.

    Accuracy, top-5 accuracy (above 5 classes), macro F1, expected calibration error (15 bins, Guo et al. 2017) and the
    accuracy within each class that occurs.
    """
    probabilities, labels = torch.from_numpy(found.probabilities), torch.from_numpy(found.labels)
    count = len(classes)
    result = {
        "accuracy": multiclass_accuracy(probabilities, labels, count, average="micro"),
        "macro_f1": multiclass_f1_score(probabilities, labels, count, average="macro"),
        "calibration_error": multiclass_calibration_error(probabilities, labels, count, n_bins=CALIBRATION_BINS),
    }
    if count > TOP_K:
        result["top5"] = multiclass_accuracy(probabilities, labels, count, average="micro", top_k=TOP_K)
    matrix = confusion(found)
    for c, name in enumerate(classes):
        if matrix[c].sum():
            result[f"accuracy/{name}"] = torch.tensor(matrix[c, c] / matrix[c].sum())
    return {f"{prefix}/{name}": round(float(value), 6) for name, value in result.items()}


def compute_task_metrics(found: Predictions, network: ImageClassifier, prefix: str) -> dict[str, float]:
    """Return the accuracy on each task that a network has learned, keyed ``prefix/task-1`` and so on."""
    right, result = found.probabilities.argmax(axis=1) == found.labels, {}
    for number, task in enumerate(network.spec.tasks, start=1):
        of_task = np.isin(found.labels, task)
        if of_task.any():
            result[f"{prefix}/task-{number}"] = round(float(right[of_task].mean()), 6)
    return result
