"""Images, in memory and in files."""

from pathlib import Path

import numpy as np
from PIL import Image


def smooth_image(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Return an image (H, W, C) uint8, smooth with some noise: a wrong shift or factor shows above rounding."""
    height, width, channels = shape
    rng = np.random.default_rng(seed)
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    smooth = 120 + 80 * np.sin(x / 5 + c) + 50 * np.cos(y / 7 - c)
    return np.clip(smooth + rng.normal(0, 6, shape), 0, 255).astype(np.uint8)


def random_images(count: int, side: int, channels: int) -> np.ndarray:
    """Return random images (N, H, W, C) uint8, all different."""
    return np.random.default_rng([count, side]).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def write_images(folder: Path, count: int, mode: str = "RGB", size: tuple[int, int] = (20, 14)) -> None:
    """Write ``count`` PNG files of one colour each into a new folder; ``size`` is width and height."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new(mode, size, color=number * 9 % 255).save(folder / f"{number}.png")
