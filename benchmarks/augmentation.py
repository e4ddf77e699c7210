"""Measure images a second of the augmentation engine against timm, torchvision v2 and plain OpenCV calls, on one core.

Every library turns the same images into a batch (B, H, W, 3) uint8: it draws crops from the same distribution (8 % to
100 % of the area, ratio 3/4 to 4/3), mirrors an image with probability 1/2, and applies every operation that it draws.
RandAugment draws two of the paper's operations without Identity, which timm does not have; torchvision's includes it.
"plain" is a bilinear crop without antialiasing, and operations sampled at the nearest pixel; "smooth" is an antialiased
bilinear crop, and operations sampled bilinearly. PIL always antialiases its bilinear crops, and these are faster than
its plain ones (Image.transform), so timm and torchvision crop PIL images the same way in both. torchvision runs on PIL
images and on tensors; the faster of the two counts.

A figure is CPU time, the median of 9 rounds in which the libraries take turns. The script ends with an error if a
promised ratio is missed.

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
SECONDS_PER_ROUND = length(0.15, 0.03)  # of CPU time for one library
TOLERANCE = length(1.0, 0.7)  # the fraction of a promised ratio below which the script fails
LARGE, SMALL = (500, 224), (40, 32)  # side of the stored image, side of the view
BATCH = 256  # images of a batch at most
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
TIMM_OPERATIONS = [
    *("AutoContrast", "Equalize", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "ColorIncreasing"),
    *("ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY"),
    *("TranslateXRel", "TranslateYRel"),
]

Batch = Callable[[Sequence[Any], np.ndarray], None]  # writes the augmented images into the array


@dataclass(frozen=True)
class Row:
    """A pipeline, its input images, its implementation by each library, and the promised ratio to one of them."""

    name: str
    side: int
    images: dict[str, Sequence[Any]]  # by form: array, pil, tensor, file, number
    sides: dict[str, tuple[str, Batch]]  # by library: the form of its input, its function
    against: str
    promised: float
    rates: dict[str, float] = field(default_factory=dict)


def draw_photographs(side: int, count: int) -> list[np.ndarray]:
    """Draw images (side, side, 3) uint8 with structure at every scale, like photographs."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        noise = (rng.normal(0, 2.0**-k, (2 << k, 2 << k, 3)).astype(np.float32) for k in range(7))
        layers = [cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC) for grid in noise]
        images.append(np.clip(128 + 60 * sum(layers), 0, 255).astype(np.uint8))
    return images


def apply_to_each(transform: Callable[[Any], np.ndarray]) -> Batch:
    """Return a batch function that applies ``transform`` to one image after the other."""

    def batch(images: Sequence[Any], out: np.ndarray) -> None:
        for number, image in enumerate(images):
            out[number] = transform(image)

    return batch


def make_tutelage_batch(
    side: int, smooth: bool, randaugment: bool, read: Callable[[Any], Any] = lambda image: image
) -> Batch:
    """Return Tutelage's batch function: what its loader does for a batch."""
    transforms: list[dict[str, Any]] = [
        {"_target_": "tutelage.augmentation.RandomResizedCrop", "size": [side, side], "antialias": smooth},
        {"_target_": "albumentations.HorizontalFlip", "p": 0.5},
    ]
    if randaugment:
        names, interpolation = [name for name in OPERATIONS if name != "Identity"], "bilinear" if smooth else "nearest"
        transforms.append(
            {"_target_": "tutelage.augmentation.RandAugment", "operations": names, "interpolation": interpolation}
        )
    pipeline, passes = Pipeline(transforms, Key(0, "bench")), iter(range(1 << 30))

    def batch(images: Sequence[Any], out: np.ndarray) -> None:
        pass_number = next(passes)
        draws = np.array([(pass_number, index, 0) for index in range(len(images))])
        pipeline.fill(out[None], [read(image) for image in images], draws)

    return batch


def make_opencv_batch(stored: int, side: int) -> Batch:
    """Return a batch function of OpenCV's calls alone; boxes and flips are drawn beforehand."""
    transform, rng = albumentations.RandomResizedCrop(size=(side, side)), np.random.default_rng(0)

    def batch(images: Sequence[Any], out: np.ndarray) -> None:
        for image, view, ((left, top, right, bottom), flip) in zip(images, out, crops[: len(images)], strict=True):
            cv2.resize(image[top:bottom, left:right], (side, side), dst=view)
            if flip:
                cv2.flip(view, 1, dst=view)

    boxes = draw_boxes(transform, [(stored, stored)] * BATCH, rng.random((BATCH, NUMBERS_PER_CROP)))
    crops = list(zip(boxes, (rng.random(BATCH) < 0.5).tolist(), strict=True))
    return batch


def make_timm_transform(side: int, smooth: bool, randaugment: bool) -> Callable[[Image.Image], Image.Image]:
    """Return timm's pipeline on a PIL image."""
    crop = RandomResizedCropAndInterpolation(side, scale=SCALE, ratio=RATIO, interpolation="bilinear")
    parts: list[Any] = [crop, v2.RandomHorizontalFlip()]
    if randaugment:
        sampled = {"interpolation": Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST}
        parts.append(rand_augment_transform("rand-m9-n2-p1.0-inc1", sampled, list(TIMM_OPERATIONS)))
    return v2.Compose(parts)


def make_torchvision_transform(side: int, smooth: bool, randaugment: bool) -> Callable[[Any], Any]:
    """Return torchvision v2's pipeline, for PIL images and for tensors (3, H, W) uint8."""
    parts: list[Any] = [v2.RandomResizedCrop(side, SCALE, RATIO, antialias=smooth), v2.RandomHorizontalFlip()]
    if randaugment:
        interpolation = InterpolationMode.BILINEAR if smooth else InterpolationMode.NEAREST
        parts.append(v2.RandAugment(2, 9, 31, interpolation))
    return v2.Compose(parts)


def read_pil_image(file: Path) -> Image.Image:
    """Read an image file with PIL, as RGB."""
    with Image.open(io.BytesIO(file.read_bytes())) as image:
        return image.convert("RGB")


def to_channels_last(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor (3, H, W) as an array (H, W, 3)."""
    view: np.ndarray = tensor.permute(1, 2, 0).numpy()
    return view


def make_rows(folder: Path) -> list[Row]:
    """Return the pipelines to measure; write image files below ``folder``."""
    rows = []
    for (stored, side), count, promises in ((LARGE, 32, (0.8, 4.0, 1.5)), (SMALL, BATCH, (0.5, 7.0, 1.5))):
        arrays = draw_photographs(stored, count)
        images: dict[str, Sequence[Any]] = {
            "array": arrays,
            "pil": [Image.fromarray(array) for array in arrays],
            "tensor": [torch.from_numpy(array.transpose(2, 0, 1).copy()) for array in arrays],
        }
        kinds = (("crop, flip", False, False), ("crop, flip, RandAugment(2, 9)", False, True))
        kinds += (("crop, flip, RandAugment(2, 9)", True, True),)
        for (operations, smooth, randaugment), promised in zip(kinds, promises, strict=True):
            sides = {
                "tutelage": ("array", make_tutelage_batch(side, smooth, randaugment)),
                "timm": ("pil", apply_to_each(make_timm_transform(side, smooth, randaugment))),
                "torchvision (PIL)": ("pil", apply_to_each(make_torchvision_transform(side, smooth, randaugment))),
                "torchvision (tensor)": (
                    "tensor",
                    apply_to_each(with_channels_last(make_torchvision_transform(side, smooth, randaugment))),
                ),
            }
            if not randaugment:
                sides["OpenCV"] = ("array", make_opencv_batch(stored, side))
            kind = "smooth" if smooth else "plain"
            rows.append(
                Row(f"{operations}, {kind}", side, images, sides, "timm" if randaugment else "OpenCV", promised)
            )
    return rows + ([make_jpeg_row(folder)] if hasattr(FileImages, "picture") else [])


def with_channels_last(transform: Callable[[Any], torch.Tensor]) -> Callable[[Any], np.ndarray]:
    """Return ``transform`` with its result as an array (H, W, 3)."""
    return lambda image: to_channels_last(transform(image))


def make_jpeg_row(folder: Path) -> Row:
    """Return the row that starts from JPEG files."""
    stored, side = LARGE
    paths = []
    for number, array in enumerate(draw_photographs(stored, 32)):
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(array).save(paths[-1], quality=90)
    config = compose(["data=image_folder", "recipe=none", f"data.image_size={side}", f"data.root={folder}"]).data
    files = FileImages([str(path) for path in paths], config)
    timm_transform, torchvision_transform = (
        make_timm_transform(side, False, True),
        make_torchvision_transform(side, False, True),
    )
    images: dict[str, Sequence[Any]] = {"file": paths, "number": range(len(paths))}
    sides = {
        "tutelage": ("number", make_tutelage_batch(side, False, True, files.picture)),
        "timm": ("file", apply_to_each(lambda path: timm_transform(read_pil_image(path)))),
        "torchvision (PIL)": ("file", apply_to_each(lambda path: torchvision_transform(read_pil_image(path)))),
    }
    return Row("JPEG files, crop, flip, RandAugment(2, 9), plain", side, images, sides, "timm", 1.8)


def measure(row: Row) -> None:
    """Set ``row.rates``: each library's images a second of CPU time, the median of interleaved rounds."""
    count = len(next(iter(row.images.values())))
    out = np.empty((count, row.side, row.side, 3), dtype=np.uint8)
    calls = {}
    for name, (form, batch) in row.sides.items():
        batch(row.images[form], out)
        started = time.process_time()
        batch(row.images[form], out)
        calls[name] = max(1, round(SECONDS_PER_ROUND / (time.process_time() - started)))
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
    """Print one line for each pipeline, its ratio last; return 1 if a promised ratio is missed."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Anti-alias option is always applied")  # the module's docstring says so
    columns = f"{'side':>4} {'tutelage':>9} {'OpenCV':>8} {'timm':>7} {'torchvision':>11}  ratio"
    print(f"{'images a second, one core':<50} {columns}")
    missed = 0
    with tempfile.TemporaryDirectory() as top:
        for row in make_rows(Path(top)):
            measure(row)
            rates = row.rates
            ratio = rates["tutelage"] / rates[row.against]
            torchvision_rate = max(rate for name, rate in rates.items() if name.startswith("torchvision"))
            opencv = f"{rates['OpenCV']:,.0f}" if "OpenCV" in rates else "-"
            print(
                f"{row.name:<50} {row.side:>4} {rates['tutelage']:>9,.0f} {opencv:>8} {rates['timm']:>7,.0f} "
                f"{torchvision_rate:>11,.0f}  {ratio:.2f} of {row.against} (at least {row.promised:g})",
                flush=True,
            )
            missed += ratio < TOLERANCE * row.promised
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
