"""Pictures that a program hands over: files, Pillow's images, arrays and tensors, brought to size as in training."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tutelage.config import DataConfig
from tutelage.data.datasets.image_files import FileImages
from tutelage.data.files.conversion import to_pixels
from tutelage.data.files.large import shrink_pixels
from tutelage.data.files.names import printable
from tutelage.data.fitting import fit_image
from tutelage.data.source import IMAGE_AXES, convert_channels
from tutelage.errors import UserError

Picture: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor
Pictures: TypeAlias = Picture | Iterable[Picture]

IMAGE_SHAPES = "(H, W), (H, W, C) or (N, H, W, C), where C is 1, 3 or 4"
MATRIX_AXES = 2
CHANNELS, ALPHA_CHANNELS = (1, 3), 4


def read_batches(pictures: Pictures, data: DataConfig, batch_size: int) -> Iterator[Tensor]:
    """Yield images (B, C, S, S) uint8, as a network of ``data`` sees them, B being at most ``batch_size``.

    Args:
        pictures: one, or several: files; images of Pillow; arrays (H, W), (H, W, C) or (N, H, W, C) uint8, C being 1,
            3, or 4 with transparency; tensors (C, H, W) or (N, C, H, W) uint8, C being 1 or 3.
        data: how pictures are read and brought to size.
        batch_size: how many images are in memory at once.

    Raises:
        UserError: a file cannot be read, or an array is no uint8 image.
    """
    images: list[np.ndarray] = []
    for picture in _list_pictures(pictures):
        images.append(_read_image(picture, data))
        if len(images) == batch_size:
            yield _stack(images)
            images = []
    if images:
        yield _stack(images)


def _stack(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _list_pictures(pictures: Pictures) -> Iterator[str | Path | Image.Image | np.ndarray]:
    """Yield pictures one by one, each a file, an image of Pillow, or an array (H, W, C) uint8."""
    if isinstance(pictures, str | Path | Image.Image):
        yield pictures
    elif isinstance(pictures, np.ndarray | Tensor):
        yield from _split_array(pictures)
    elif isinstance(pictures, Iterable):
        for picture in pictures:
            yield from _list_pictures(picture)
    else:
        raise UserError(
            f"{type(pictures).__name__}: no picture; give files, images of Pillow, or uint8 arrays {IMAGE_SHAPES}"
        )


def _split_array(array: np.ndarray | Tensor) -> Iterator[np.ndarray]:
    """Yield the images (H, W, C) of an array or a tensor."""
    if array.dtype not in {np.dtype(np.uint8), torch.uint8}:
        conversion = ".to(torch.uint8)" if isinstance(array, Tensor) else '.astype("uint8")'
        raise UserError(
            f"images are uint8, from 0 to 255, not {array.dtype}: the network normalises them itself. Convert floats "
            f"from 0 to 1 by (images * 255).round(){conversion}"
        )
    if isinstance(array, Tensor):
        if array.ndim not in {IMAGE_AXES - 1, IMAGE_AXES} or array.shape[-3] not in CHANNELS:
            shape = tuple(array.shape)
            raise UserError(f"a tensor {shape} is no image: it is (C, H, W) or (N, C, H, W), where C is 1 or 3")
        pixels = array.cpu().movedim(-3, -1).numpy()
    else:
        pixels = array[..., None] if array.ndim == MATRIX_AXES else array
        if pixels.ndim not in {IMAGE_AXES - 1, IMAGE_AXES} or pixels.shape[-1] not in {*CHANNELS, ALPHA_CHANNELS}:
            raise UserError(f"an array {array.shape} is no image: it is {IMAGE_SHAPES}")
    yield from pixels.reshape(-1, *pixels.shape[-3:])


def _read_image(picture: str | Path | Image.Image | np.ndarray, data: DataConfig) -> np.ndarray:
    """Return a picture as a network sees it: (S, S, C) uint8, S being ``data.image_size`` and C ``data.channels``."""
    if not isinstance(picture, str | Path):
        return fit_image(shrink_pixels(_convert(picture, data), data), data)
    file = Path(picture).expanduser()
    if file.is_dir():
        name = printable(str(picture))
        raise UserError(f"{name}: a folder, no picture; give its files, as in sorted(Path({name!r}).glob('*.jpg'))")
    return FileImages((str(file),), data)[0]


def _convert(picture: Image.Image | np.ndarray, data: DataConfig) -> np.ndarray:
    """Return pixels (H, W, C) uint8, upright and without transparency, C being ``data.channels``."""
    if isinstance(picture, np.ndarray) and picture.shape[-1] in CHANNELS:
        return convert_channels(np.ascontiguousarray(picture), data.channels)
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    if image.mode in {"F", "I"}:
        raise UserError(f"an image of mode {image.mode}: 32 bits have no fixed range of values; convert it to 8 bits")
    image.load()  # of 16 bits of a colour Pillow keeps the upper 8
    return to_pixels(image, b"", data.channels, data.background, data.white)
