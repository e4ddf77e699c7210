"""Augmentation: Albumentations pipelines whose random draws are keyed, and CutMix and MixUp of whole batches."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.augmentation.affine import ThreePoints
    from tutelage.augmentation.crop import Picture, RandomResizedCrop
    from tutelage.augmentation.fit import FittedPicture, fit_square
    from tutelage.augmentation.mixing import Mixing, draw_mixing, mix_batch
    from tutelage.augmentation.pipeline import Pipeline
    from tutelage.augmentation.randaugment import AugMix, RandAugment, TrivialAugment

_MODULES = {
    "AugMix": "randaugment",
    "FittedPicture": "fit",
    "Mixing": "mixing",
    "Picture": "crop",
    "Pipeline": "pipeline",
    "RandAugment": "randaugment",
    "RandomResizedCrop": "crop",
    "ThreePoints": "affine",
    "TrivialAugment": "randaugment",
    "draw_mixing": "mixing",
    "fit_square": "fit",
    "mix_batch": "mixing",
}

__all__ = [
    "AugMix",
    "FittedPicture",
    "Mixing",
    "Picture",
    "Pipeline",
    "RandAugment",
    "RandomResizedCrop",
    "ThreePoints",
    "TrivialAugment",
    "draw_mixing",
    "fit_square",
    "mix_batch",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: Albumentations takes seconds to load."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"tutelage.augmentation.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
