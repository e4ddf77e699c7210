"""Views of images: Albumentations pipelines keyed by the draw, and mixing of whole batches."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.augmentation.affine import ThreePoints
    from tutelage.augmentation.crop import Picture, RandomResizedCrop
    from tutelage.augmentation.mixing import Mixing, mixed, plan
    from tutelage.augmentation.pipeline import Pipeline
    from tutelage.augmentation.randaugment import AugMix, RandAugment, TrivialAugment

_HOMES = {
    "AugMix": "randaugment",
    "Mixing": "mixing",
    "Picture": "crop",
    "Pipeline": "pipeline",
    "RandAugment": "randaugment",
    "RandomResizedCrop": "crop",
    "ThreePoints": "affine",
    "TrivialAugment": "randaugment",
    "mixed": "mixing",
    "plan": "mixing",
}

__all__ = [
    "AugMix",
    "Mixing",
    "Picture",
    "Pipeline",
    "RandAugment",
    "RandomResizedCrop",
    "ThreePoints",
    "TrivialAugment",
    "mixed",
    "plan",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: Albumentations takes seconds to load."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"tutelage.augmentation.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
