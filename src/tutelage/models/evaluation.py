"""What a network answers on a set of images, and how good the answers are."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
)

from tutelage.data import Plain
from tutelage.models.base import ImageClassifier
from tutelage.models.heads import Heads

TOP_K = 5
CALIBRATION_BINS = 15  # Guo et al. 2017


@dataclass(frozen=True)
class Answers:
    """A network's answers: probabilities (N, C) float32, labels (N,) int64, indices (N,) int64 into the source.

    Where it has a head a task, ``told`` (N,) int64 are its answers once it is told the task that the label is of.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    told: np.ndarray | None = None


def answers(
    network: ImageClassifier,
    batches: Iterable[Plain],
    device: torch.device,
    after_batch: Callable[[int], None] = lambda images: None,
) -> Answers:
    """Return the un-noised answers of ``network`` (in eval mode, without gradients).

    Args:
        network: moved to ``device`` and put into eval mode.
        batches: un-augmented images.
        device: where to compute.
        after_batch: called with the number of images just answered; may raise to stop.
    """
    network.eval().to(device)
    probabilities, labels, indices, told = [], [], [], []
    heads = network.head if isinstance(network.head, Heads) else None
    with torch.inference_mode():
        for batch in batches:
            logits = network(batch.images.to(device, non_blocking=True))
            probabilities.append(logits.float().softmax(dim=1).cpu().numpy())
            if heads is not None:
                told.append(heads.of_own_task(logits, batch.labels.to(device)).argmax(dim=1).cpu().numpy())
            labels.append(batch.labels.numpy())
            indices.append(batch.indices.numpy())
            after_batch(len(batch.images))
    return Answers(
        probabilities=np.concatenate(probabilities),
        labels=np.concatenate(labels),
        indices=np.concatenate(indices),
        told=np.concatenate(told) if told else None,
    )


def confusion(found: Answers) -> np.ndarray:
    """Return the confusion matrix (C, C) int64: rows are true classes, columns are answers."""
    probabilities, labels = torch.from_numpy(found.probabilities), torch.from_numpy(found.labels)
    matrix: np.ndarray = multiclass_confusion_matrix(probabilities, labels, probabilities.shape[1]).numpy()
    return matrix


def measure(found: Answers, classes: Sequence[str], prefix: str) -> dict[str, float]:
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


def measure_tasks(found: Answers, network: ImageClassifier, prefix: str) -> dict[str, float]:
    """Return the accuracy on each task that a network has learned, told the task, keyed ``prefix/task-1`` and so on."""
    if found.told is None or not isinstance(network.head, Heads):
        return {}
    result = {}
    for number, (task, learned) in enumerate(zip(network.spec.tasks, network.head.learned.tolist(), strict=True), 1):
        of_task = np.isin(found.labels, task)
        if learned and of_task.any():
            right = (found.told == found.labels)[of_task]
            result[f"{prefix}/task-{number}"] = round(float(right.mean()), 6)
    return result
