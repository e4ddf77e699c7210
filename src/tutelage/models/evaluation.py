"""A network's predictions on a set of images, and their metrics.

The metrics are torchmetrics' functions, over the whole set at once: its classes would add up counts batch by batch,
while the probabilities are stored here anyway. Balanced accuracy and F1 are computed from each class's counts:
torchmetrics counts a class without images into the mean recall where it is predicted, and its counts take C x C memory.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from tutelage.config import MONITORS
from tutelage.data import EVALUATION_BATCH, EvalBatch, Predictions
from tutelage.models.base import ImageClassifier, ImageSpec
from tutelage.models.heads import Heads
from tutelage.models.weights.files import make_classifier

TOP_K = 5
CALIBRATION_BINS = 15  # Guo et al. 2017
LAYER_BYTES = 1 << 30  # of the input and the output of a layer for a batch, at most
FLOAT32_BYTES = 4  # of a value, whatever the precision: a batch's size does not depend on it


def evaluation_batch(network: ImageClassifier) -> int:
    """Return how many images a network evaluates at once: ``EVALUATION_BATCH``, or half of it, or a quarter, ...

    It is as many as keep the input and the output of each layer below ``LAYER_BYTES``. That depends on the image size
    and the architecture alone, never on free memory: rounding differs among batch sizes, and pseudo-labels are stored.
    The layers are measured on the meta device, so nothing is computed.

    Args:
        network: one that ``make_classifier`` has made.
    """
    spec, sizes = network.spec, [0]

    def measure(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        sizes.append(sum(value.numel() for value in (*inputs, output) if isinstance(value, Tensor)))

    shape = (1, spec.channels, spec.image_size, spec.image_size)
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.inference_mode():
        same = make_classifier(network.model_config, spec).eval()
        for module in same.backbone.modules():
            if not any(module.children()):
                module.register_forward_hook(measure)
        same.features(torch.empty(shape, dtype=torch.uint8))
    image_bytes = FLOAT32_BYTES * max(2 * math.prod(shape), *sizes)
    return min(EVALUATION_BATCH, 1 << max(1, LAYER_BYTES // image_bytes).bit_length() - 1)


def task_logits(network: ImageClassifier, images: Tensor, labels: Tensor) -> Tensor:
    """Return logits (B, C) of images; with several heads, each image is classified by the head of its label's task.

    The logits of the other tasks' classes are then minus infinity.

    Args:
        network: has one head, or a head for each task.
        images: (B, C', H, W) uint8.
        labels: (B,) int64, from which the task of each image follows.
    """
    logits: Tensor = network(images)
    return network.head.mask_other_tasks(logits, labels) if isinstance(network.head, Heads) else logits


def predict(
    network: ImageClassifier,
    batches: Iterable[EvalBatch],
    device: torch.device,
    after_batch: Callable[[int], None] = lambda images: None,
) -> Predictions:
    """Return a network's predictions without noise: in eval mode, without gradients, from ``task_logits``.

    With several heads, only the images of tasks that the network has learned are kept.

    Args:
        network: moved to ``device`` and put into eval mode.
        batches: un-augmented images.
        device: where to compute.
        after_batch: called with the number of images of each batch; may raise to stop.
    """
    network.eval().to(device)
    predictions = predict_from_logits(partial(task_logits, network), batches, device, after_batch)
    if not isinstance(network.head, Heads):
        return predictions
    learned = np.isin(predictions.labels, network.head.learned_classes())
    return predictions.select(learned)


def predict_from_logits(
    logits_of: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[EvalBatch],
    device: torch.device,
    after_batch: Callable[[int], None] = lambda images: None,
) -> Predictions:
    """Return the predictions whose logits (B, C) a function gives for images (B, C', H, W) uint8 and labels (B,) int64.

    Args:
        logits_of: called without gradients.
        batches: un-augmented images.
        device: where the function gets them.
        after_batch: called with the number of images of each batch; may raise to stop.
    """
    probabilities, labels, indices = [], [], []
    with torch.inference_mode():
        for batch in batches:
            logits = logits_of(batch.images.to(device, non_blocking=True), batch.labels.to(device))
            probabilities.append(logits.float().softmax(dim=1).cpu().numpy())
            labels.append(batch.labels.numpy())
            indices.append(batch.indices.numpy())
            after_batch(len(batch.images))
    return Predictions(np.concatenate(probabilities), np.concatenate(labels), np.concatenate(indices))


def compute_confusion_matrix(predictions: Predictions) -> np.ndarray:
    """Return the confusion matrix (C, C) int64: rows are true classes, columns are predicted classes."""
    probabilities, labels = torch.from_numpy(predictions.probabilities), torch.from_numpy(predictions.labels)
    matrix: np.ndarray = multiclass_confusion_matrix(probabilities, labels, probabilities.shape[1]).numpy()
    return matrix


@dataclass(frozen=True)
class ClassCounts:
    """What accuracies are computed from: of each class the number of images, correct ones and predictions.

    Attributes:
        images: (C,) float64, images of each class.
        correct: (C,) float64, those among them that are predicted correctly.
        predicted: (C,) float64, images that are predicted as the class.
    """

    images: Tensor
    correct: Tensor
    predicted: Tensor

    def measures(self) -> dict[str, float]:
        """Return ``accuracy``, ``balanced_accuracy`` and ``f1``.

        Balanced accuracy is the mean recall over the classes that have images; F1 is the mean over the classes that
        have images or predictions, as in scikit-learn's ``balanced_accuracy_score`` and ``f1_score(average="macro")``.
        """
        occurs = self.images > 0
        f1 = 2 * self.correct / (self.images + self.predicted)
        return {
            "accuracy": float(self.correct.sum() / self.images.sum()),
            "balanced_accuracy": float((self.correct / self.images)[occurs].mean()),
            "f1": float(f1[occurs | (self.predicted > 0)].mean()),
        }


def count_classes(scores: Tensor, labels: Tensor) -> ClassCounts:
    """Return the counts of each class, from logits or probabilities (N, C) and labels (N,) int64 on one device."""
    predicted, classes = scores.argmax(dim=1), scores.shape[1]
    parts = (labels, labels[predicted == labels], predicted)
    images, correct, predictions = (torch.bincount(part, minlength=classes).cpu().double() for part in parts)
    return ClassCounts(images, correct, predictions)


def compute_metrics(predictions: Predictions, classes: Sequence[str], prefix: str) -> dict[str, float]:
    """Return the metrics of predictions, keyed ``prefix/...``.

    Accuracy, balanced accuracy and macro F1 (see ``ClassCounts``), top-5 accuracy (above 5 classes), expected
    calibration error (15 bins, Guo et al. 2017) and the accuracy within each class that occurs.
    """
    probabilities, labels = torch.from_numpy(predictions.probabilities), torch.from_numpy(predictions.labels)
    count, counts = len(classes), count_classes(probabilities, labels)
    error = multiclass_calibration_error(probabilities, labels, count, n_bins=CALIBRATION_BINS)
    result = {**counts.measures(), "calibration_error": float(error)}
    if count > TOP_K:
        result["top5"] = float(multiclass_accuracy(probabilities, labels, count, average="micro", top_k=TOP_K))
    for name, images, correct in zip(classes, counts.images.tolist(), counts.correct.tolist(), strict=True):
        if images:
            result[f"accuracy/{name}"] = correct / images
    return {f"{prefix}/{name}": round(value, 6) for name, value in result.items()}


def compute_validation_metrics(predictions: Predictions, classes: Sequence[str]) -> dict[str, float]:
    """Return the metrics on validation that one pass over its images gives: those of ``callbacks.monitor``."""
    metrics = compute_metrics(predictions, classes, "val")
    return {name: metrics[name] for name in MONITORS}


def compute_task_metrics(predictions: Predictions, spec: ImageSpec, prefix: str) -> dict[str, float]:
    """Return the accuracy on each of a network's tasks that has predictions, keyed ``prefix/task-1`` and so on."""
    correct, result = predictions.probabilities.argmax(axis=1) == predictions.labels, {}
    for number, task in enumerate(spec.tasks, start=1):
        in_task = np.isin(predictions.labels, task)
        if in_task.any():
            result[f"{prefix}/task-{number}"] = round(float(correct[in_task].mean()), 6)
    return result
