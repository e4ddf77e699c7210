"""Accuracy over the strength of a shift: the test images made darker, cropped, turned or moved."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.config import Shift
from tutelage.data import ImageDataModule, data_module
from tutelage.errors import UserError
from tutelage.models import ImageClassifier, load_classifier, task_logits
from tutelage.report.curves import Curve, read_curve, write_curve
from tutelage.runs import RunFolder, trained

PIXEL_MAX = 255

STRENGTHS: dict[Shift, tuple[float, ...]] = {
    "brightness": (-0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8),
    "crop": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    "rotate": (-90, -75, -60, -45, -30, -15, 0, 15, 30, 45, 60, 75, 90),
    "translate": (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5),
}
TOLD: dict[Shift, str] = {
    "brightness": "with this share of white added to every pixel and clipped",
    "crop": "with this share of each side cut away around the centre, enlarged to size again",
    "rotate": "turned by so many degrees, black at the corners",
    "translate": "moved by this share of the side, the mean of right, left, down and up, black where they were",
}


def shifted(images: Tensor, shift: Shift, strength: float) -> list[Tensor]:
    """Return uint8 images (B, C, H, W) under a shift; several where directions are averaged over.

    Args:
        images: (B, C, H, W) uint8.
        shift: which.
        strength: brightness: the share of 255 added; crop: the share of the side cut away; rotate: degrees; translate:
            the share of the side, to the nearest pixel.
    """
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as transforms

    height, width = images.shape[-2:]
    if shift == "brightness":
        return [(images.int() + round(strength * PIXEL_MAX)).clamp(0, PIXEL_MAX).byte()]
    if shift == "crop":
        kept = [max(1, round(side * (1 - strength))) for side in (height, width)]
        return [transforms.resize(transforms.center_crop(images, kept), [height, width], antialias=True)]
    if shift == "rotate":
        return [transforms.rotate(images, strength, InterpolationMode.BILINEAR)]
    down, right = round(strength * height), round(strength * width)
    if not (down or right):
        return [images]
    padded = torch.nn.functional.pad(images, (right, right, down, down))
    starts = ((down, 0), (down, 2 * right), (0, right), (2 * down, right))
    return [padded[..., top : top + height, left : left + width] for top, left in starts]


def curve(folder: RunFolder, record: Mapping[str, Any], data: ImageDataModule, shift: Shift) -> Curve:
    """Return a finished run's accuracy under a shift: measured once, then read from its folder.

    Raises:
        UserError: the data is not what it was.
    """
    weights = {entry["name"]: entry["weights_sha256"] for entry in record["stages"] if entry["kind"] == "fit"}
    stored = read_curve(folder, shift)
    if stored is not None and stored.weights == weights and list(stored.strengths) == list(STRENGTHS[shift]):
        return stored
    if record["identity"]["data"].get("fingerprint", "") != data.fingerprint():
        raise UserError(f"{folder.path}: its data has changed since; data.root=FOLDER says where the run's data is now")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    accuracy = {
        name: _accuracies(load_classifier(file).eval().to(device), data, shift)
        for name, file in trained(folder, record).items()
    }
    found = Curve(shift, TOLD[shift], STRENGTHS[shift], accuracy, len(data.splits.test), weights)
    write_curve(folder, found)
    return found


def _accuracies(network: ImageClassifier, data: ImageDataModule, shift: Shift) -> list[float]:
    """Return the network's accuracy on the test images at each strength."""
    strengths, size = STRENGTHS[shift], network.spec.image_size
    if size != data.config.image_size:  # fine-tuned at another one
        data = data_module(data.config.model_copy(update={"image_size": size}))
    right = np.zeros(len(strengths))
    with torch.inference_mode():
        for batch in data.plain(data.splits.test):
            images, labels = batch.images.to(network.device), batch.labels.to(network.device)
            for place, strength in enumerate(strengths):
                views = shifted(images, shift, strength)
                answers = [task_logits(network, view, labels).argmax(dim=1) for view in views]
                right[place] += sum(float((given == labels).sum()) for given in answers) / len(views)
    return [round(float(share), 6) for share in right / max(1, len(data.splits.test))]
