"""Images a second of the augmentation engine, against timm, torchvision v2 and bare OpenCV calls, on one core.

Every side turns the same images into a batch (B, H, W, 3) uint8, and draws crops from the same distribution (8 % to
100 % of the area, ratio 3/4 to 4/3), mirrors every second image, and lets every drawn operation fire. RandAugment draws
two of the paper's operations without Identity, which timm does not have; torchvision's includes it. "plain": a bilinear
crop without antialiasing, operations sampled at the nearest pixel; "smooth": an antialiased bilinear crop, operations
sampled bilinearly. PIL's bilinear crops are always antialiased, and faster so than its plain ones (Image.transform), so
that timm and torchvision on PIL images crop alike in both. torchvision runs on PIL images and on tensors; the faster of
the two counts.

A figure counts the processor's time, and is the median of 9 rounds, in which the sides take turns. Ends with an error
where a promised ratio is missed.

    make bench
"""

import io
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import cv2
import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import InterpolationMode, v2

from lengths import length
from tutelage.augmentation import Pipeline
from tutelage.augmentation.crop import NUMBERS_PER_CROP, draw_boxes
from tutelage.augmentation.library import albumentations
from tutelage.augmentation.operations import OPERATIONS
from tutelage.config.compose import compose
from tutelage.data.datasets.image_files import FileImages
from tutelage.randomness import Key

ROUNDS = length(9, 3)
SECONDS = length(0.15, 0.03)  # of a side in a round
LEAST = length(1.0, 0.7)  # of what is promised
LARGE, SMALL = (500, 224), (40, 32)  # side of the stored image, side of the view
BATCH = 256  # images of a batch at most
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
TIMM_OPERATIONS = [
    *("AutoContrast", "Equalize", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "ColorIncreasing"),
    *("ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY"),
    *("TranslateXRel", "TranslateYRel"),
]

Batch = Callable[[Sequence[Any], np.ndarray], None]  # turns images into views, in place


@dataclass(frozen=True)
class Row:
    """One pipeline: what it starts from, our side, the others, and how many times as fast as one of them we must be."""

    name: str
    side: int
    images: dict[str, Sequence[Any]]  # by form: array, pil, tensor, file
    sides: dict[str, tuple[str, Batch]]  # by name: the form that it takes, and what it does
    against: str
    promised: float
    rates: dict[str, float] = field(default_factory=dict)


def photographs(side: int, count: int) -> list[np.ndarray]:
    """Return images (side, side, 3) uint8 with structure at every scale, as photographs have it."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        noise = (rng.normal(0, 2.0**-k, (2 << k, 2 << k, 3)).astype(np.float32) for k in range(7))
        layers = [cv2.resize(one, (side, side), interpolation=cv2.INTER_CUBIC) for one in noise]
        found.append(np.clip(128 + 60 * sum(layers), 0, 255).astype(np.uint8))
    return found


def one_by_one(view: Callable[[Any], np.ndarray]) -> Batch:
    """Return a batch of what ``view`` makes of single images."""

    def batch(images: Sequence[Any], out: np.ndarray) -> None:
        for place, image in enumerate(images):
            out[place] = view(image)

    return batch


def ours(side: int, smooth: bool, randaugment: bool, read: Callable[[Any], Any] = lambda image: image) -> Batch:
    """Return our side: what the loader does for a batch."""
    transforms: list[dict[str, Any]] = [
        {"_target_": "tutelage.augmentation.RandomResizedCrop", "size": [side, side], "antialias": smooth},
        {"_target_": "albumentations.HorizontalFlip", "p": 0.5},
    ]
    if randaugment:
        names, how = [name for name in OPERATIONS if name != "Identity"], "bilinear" if smooth else "nearest"
        transforms.append({"_target_": "tutelage.augmentation.RandAugment", "operations": names, "interpolation": how})
    pipeline, passes = Pipeline(transforms, Key(0, "bench")), iter(range(1 << 30))

    def batch(images: Sequence[Any], out: np.ndarray) -> None:
        pass_ = next(passes)
        draws = np.array([(pass_, index, 0) for index in range(len(images))])
        pipeline.fill(out[None], [read(image) for image in images], draws)

    return batch


def bare(stored: int, side: int) -> Batch:
    """Return OpenCV's calls alone; boxes and flips are drawn beforehand."""
    transform, drawn = albumentations.RandomResizedCrop(size=(side, side)), np.random.default_rng(0)

    def batch(images: Sequence[Any], out: np.ndarray) -> None:
        for image, view, ((left, top, right, bottom), flip) in zip(images, out, plans[: len(images)], strict=True):
            cv2.resize(image[top:bottom, left:right], (side, side), dst=view)
            if flip:
                cv2.flip(view, 1, dst=view)

    boxes = draw_boxes(transform, [(stored, stored)] * BATCH, drawn.random((BATCH, NUMBERS_PER_CROP)))
    plans = list(zip(boxes, (drawn.random(BATCH) < 0.5).tolist(), strict=True))
    return batch


def timm(side: int, smooth: bool, randaugment: bool) -> Callable[[Image.Image], Image.Image]:
    """Return timm's pipeline on a PIL image."""
    crop = RandomResizedCropAndInterpolation(side, scale=SCALE, ratio=RATIO, interpolation="bilinear")
    parts: list[Any] = [crop, v2.RandomHorizontalFlip()]
    if randaugment:
        sampled = {"interpolation": Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST}
        parts.append(rand_augment_transform("rand-m9-n2-p1.0-inc1", sampled, list(TIMM_OPERATIONS)))
    return v2.Compose(parts)


def torchvision(side: int, smooth: bool, randaugment: bool) -> Callable[[Any], Any]:
    """Return torchvision v2's pipeline, for PIL images and for tensors (3, H, W) uint8."""
    parts: list[Any] = [v2.RandomResizedCrop(side, SCALE, RATIO, antialias=smooth), v2.RandomHorizontalFlip()]
    if randaugment:
        how = InterpolationMode.BILINEAR if smooth else InterpolationMode.NEAREST
        parts.append(v2.RandAugment(2, 9, 31, how))
    return v2.Compose(parts)


def decoded(file: Path) -> Image.Image:
    """Return a file's image as PIL reads it."""
    with Image.open(io.BytesIO(file.read_bytes())) as image:
        return image.convert("RGB")


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor (3, H, W) as an array (H, W, 3)."""
    view: np.ndarray = tensor.permute(1, 2, 0).numpy()
    return view


def rows(folder: Path) -> list[Row]:
    """Return what is measured; image files are written below ``folder``."""
    found = []
    for (stored, side), count, promises in ((LARGE, 32, (0.8, 4.0, 1.5)), (SMALL, BATCH, (0.5, 7.0, 1.5))):
        arrays = photographs(stored, count)
        images: dict[str, Sequence[Any]] = {
            "array": arrays,
            "pil": [Image.fromarray(array) for array in arrays],
            "tensor": [torch.from_numpy(array.transpose(2, 0, 1).copy()) for array in arrays],
        }
        kinds = (("crop, flip", False, False), ("crop, flip, RandAugment(2, 9)", False, True))
        kinds += (("crop, flip, RandAugment(2, 9)", True, True),)
        for (name, smooth, augmented), promised in zip(kinds, promises, strict=True):
            sides = {
                "tutelage": ("array", ours(side, smooth, augmented)),
                "timm": ("pil", one_by_one(timm(side, smooth, augmented))),
                "torchvision (PIL)": ("pil", one_by_one(torchvision(side, smooth, augmented))),
                "torchvision (tensor)": ("tensor", one_by_one(_last(torchvision(side, smooth, augmented)))),
            }
            if not augmented:
                sides["OpenCV"] = ("array", bare(stored, side))
            kind = "smooth" if smooth else "plain"
            found.append(Row(f"{name}, {kind}", side, images, sides, "timm" if augmented else "OpenCV", promised))
    return found + ([jpegs(folder)] if hasattr(FileImages, "picture") else [])


def _last(view: Callable[[Any], torch.Tensor]) -> Callable[[Any], np.ndarray]:
    return lambda image: channels_last(view(image))


def jpegs(folder: Path) -> Row:
    """Return the row that starts from JPEG files."""
    stored, side = LARGE
    paths = []
    for number, array in enumerate(photographs(stored, 32)):
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(array).save(paths[-1], quality=90)
    config = compose(["data=image_folder", f"data.image_size={side}", f"data.root={folder}"]).data
    files = FileImages([str(path) for path in paths], config)
    by_timm, by_torchvision = timm(side, False, True), torchvision(side, False, True)
    images: dict[str, Sequence[Any]] = {"file": paths, "number": range(len(paths))}
    sides = {
        "tutelage": ("number", ours(side, False, True, files.picture)),
        "timm": ("file", one_by_one(lambda path: by_timm(decoded(path)))),
        "torchvision (PIL)": ("file", one_by_one(lambda path: by_torchvision(decoded(path)))),
    }
    return Row("JPEG files, crop, flip, RandAugment(2, 9), plain", side, images, sides, "timm", 1.8)


def measure(row: Row) -> None:
    """Fill in the images a second of the processor's time of every side: medians of interleaved rounds."""
    count = len(next(iter(row.images.values())))
    out = np.empty((count, row.side, row.side, 3), dtype=np.uint8)
    calls = {}
    for name, (form, batch) in row.sides.items():
        batch(row.images[form], out)
        started = time.process_time()
        batch(row.images[form], out)
        calls[name] = max(1, round(SECONDS / (time.process_time() - started)))
    seconds: dict[str, list[float]] = {name: [] for name in row.sides}
    for number in range(ROUNDS):
        for name in list(row.sides) if number % 2 else reversed(row.sides):
            form, batch = row.sides[name]
            started = time.process_time()
            for _ in range(calls[name]):
                batch(row.images[form], out)
            seconds[name].append((time.process_time() - started) / calls[name])
    row.rates.update({name: count / statistics.median(times) for name, times in seconds.items()})


def main() -> int:
    """Print a line a pipeline, the ratio last; return 1 where a promise is missed."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Anti-alias option is always applied")  # said above
    heads = f"{'side':>4} {'tutelage':>9} {'OpenCV':>8} {'timm':>7} {'torchvision':>11}  ratio"
    print(f"{'images a second, one core':<50} {heads}")
    missed = 0
    with tempfile.TemporaryDirectory() as top:
        for row in rows(Path(top)):
            measure(row)
            rates = row.rates
            ratio = rates["tutelage"] / rates[row.against]
            vision = max(rate for name, rate in rates.items() if name.startswith("torchvision"))
            floor = f"{rates['OpenCV']:,.0f}" if "OpenCV" in rates else "-"
            print(
                f"{row.name:<50} {row.side:>4} {rates['tutelage']:>9,.0f} {floor:>8} {rates['timm']:>7,.0f} "
                f"{vision:>11,.0f}  {ratio:.2f} of {row.against} (at least {row.promised:g})",
                flush=True,
            )
            missed += ratio < LEAST * row.promised
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
