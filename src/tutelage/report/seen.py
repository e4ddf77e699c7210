"""What a network saw: labelled images as they are, and the views of them that augmentation made."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.config import Config
from tutelage.data import ImageDataModule
from tutelage.randomness import Key
from tutelage.report.templating import Tile, encode_image, is_small

VIEWED, VIEWS = 5, 7  # images, and their views in the first passes
UNCHANGED = 8  # images that no pass changes
TILE_SIDE = 160  # pixels


@dataclass(frozen=True)
class Seen:
    """What a network saw.

    Attributes:
        note: what the images are.
        rows: an image and its views; without augmentation there is one row of images.
    """

    note: str
    rows: Sequence[Sequence[Tile]]


def make_seen(config: Config, data: ImageDataModule, stage: str) -> Seen:
    """Return labelled images and their views in the first passes of a stage."""
    if not config.augmentation.transforms:
        tiles = [_make_tile(_read_whole(data, index), _name_class(data, index)) for index in _choose(data, UNCHANGED)]
        mixed = "; batches were mixed" if config.augmentation.mix is not None else ""
        return Seen(f"Labelled images, which no pass changed: there was no augmentation{mixed}.", [tiles])
    from tutelage.augmentation import Pipeline

    pipeline = Pipeline(config.augmentation.transforms, Key(config.seed, stage, "labelled"))
    rows = []
    for index in _choose(data, VIEWED):
        picture = data.images.picture(index)
        views = [_make_tile(pipeline(picture, number, index), f"pass {number}") for number in range(VIEWS)]
        rows.append([_make_tile(_read_whole(data, index), _name_class(data, index), "as it is"), *views])
    return Seen(f"Labelled images, and their augmented views in the first {VIEWS} passes of stage {stage}.", rows)


def _choose(data: ImageDataModule, count: int) -> list[int]:
    labelled = data.splits.labelled
    chosen: list[int] = labelled[np.linspace(0, len(labelled) - 1, min(count, len(labelled))).astype(int)].tolist()
    return chosen


def _read_whole(data: ImageDataModule, index: int) -> np.ndarray:
    picture = data.images.picture(index)
    return picture if isinstance(picture, np.ndarray) else picture.read()


def _name_class(data: ImageDataModule, index: int) -> str:
    return str(data.source.classes[data.source.labels[index]])


def _make_tile(image: np.ndarray, *lines: str) -> Tile:
    return Tile(encode_image(image, TILE_SIDE), lines, is_small(image))
