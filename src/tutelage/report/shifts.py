"""Test accuracy over the strength of a shift: test images brightened or darkened, cropped, rotated or moved."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.config import Shift
from tutelage.data import ImageDataModule, data_module
from tutelage.data.loading.workers import worker_deaths
from tutelage.models import ImageClassifier, evaluation_batch, load_classifier, task_logits
from tutelage.report.curves import Curve, read_curve, write_curve
from tutelage.runs import RunFolder, train_entries, weights_files

PIXEL_MAX = 255

STRENGTHS: dict[Shift, tuple[float, ...]] = {
    "brightness": (-0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8),
    "crop": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    "rotate": (-90, -75, -60, -45, -30, -15, 0, 15, 30, 45, 60, 75, 90),
    "translate": (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5),
}
DESCRIPTIONS: dict[Shift, str] = {  # these follow "test images"
    "brightness": "with this share of white added to every pixel, then clipped",
    "crop": "with this share of each side cut away and the centre enlarged to full size",
    "rotate": "rotated by this many degrees, with black corners",
    "translate": "moved by this share of the side, with black behind them; the mean over right, left, down and up",
}


def shift_images(images: Tensor, shift: Shift, strength: float) -> list[Tensor]:
    """Return shifted copies (B, C, H, W) uint8 of images: one per direction for ``translate``, one otherwise.

    Args:
        images: (B, C, H, W) uint8.
        shift: the kind of shift.
        strength: brightness: the share of 255 to add; crop: the share of the side to cut away; rotate: degrees;
            translate: the share of the side to move by, rounded to whole pixels.
    """
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as transforms

    height, width = images.shape[-2:]
    if shift == "brightness":
        return [(images.int() + round(strength * PIXEL_MAX)).clamp(0, PIXEL_MAX).byte()]
    if shift == "crop":
        crop = [max(1, round(side * (1 - strength))) for side in (height, width)]
        return [transforms.resize(transforms.center_crop(images, crop), [height, width], antialias=True)]
    if shift == "rotate":
        return [transforms.rotate(images, strength, InterpolationMode.BILINEAR)]
    down, right = round(strength * height), round(strength * width)
    if not (down or right):
        return [images]
    padded = torch.nn.functional.pad(images, (right, right, down, down))
    starts = ((down, 0), (down, 2 * right), (0, right), (2 * down, right))
    return [padded[..., top : top + height, left : left + width] for top, left in starts]


@worker_deaths()
def measure_curve(folder: RunFolder, record: Mapping[str, Any], data: ImageDataModule, shift: Shift) -> Curve:
    """Return the accuracy of a finished run's networks under a shift; measured once, later read from the run's folder.

    ``data`` is to be what the run was tested on (``check_run_data``).
    """
    weights = {entry["name"]: entry["weights_sha256"] for entry in train_entries(record)}
    stored = read_curve(folder, shift)
    if stored is not None and stored.weights == weights and list(stored.strengths) == list(STRENGTHS[shift]):
        return stored
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    accuracy = {
        name: _measure_accuracies(load_classifier(file).eval().to(device), data, shift)
        for name, file in weights_files(folder, record).items()
    }
    curve = Curve(shift, DESCRIPTIONS[shift], STRENGTHS[shift], accuracy, len(data.splits.test), weights)
    write_curve(folder, curve)
    return curve


def _measure_accuracies(network: ImageClassifier, data: ImageDataModule, shift: Shift) -> list[float]:
    """Return the network's accuracy on the test images at each strength."""
    strengths, size = STRENGTHS[shift], network.spec.image_size
    if size != data.config.image_size:  # the network was fine-tuned at another image size
        data = data_module(data.config.model_copy(update={"image_size": size}), data.runtime)
    correct, done = np.zeros(len(strengths)), 0
    with torch.inference_mode():
        for batch in data.eval_dataloader(data.splits.test, evaluation_batch(network)):
            images, labels = batch.images.to(network.device), batch.labels.to(network.device)
            for i, strength in enumerate(strengths):
                copies = shift_images(images, shift, strength)
                predictions = [task_logits(network, copy, labels).argmax(dim=1) for copy in copies]
                correct[i] += sum(float((classes == labels).sum()) for classes in predictions) / len(copies)
            done += len(images)
            data.runtime.on_progress(f"shift={shift}, {len(strengths)} strengths", done / len(data.splits.test))
    return [round(float(accuracy), 6) for accuracy in correct / max(1, len(data.splits.test))]
