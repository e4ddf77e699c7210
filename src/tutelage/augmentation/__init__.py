"""Views of images: Albumentations pipelines keyed by the draw."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.augmentation.pipeline import Pipeline
    from tutelage.augmentation.randaugment import RandAugment

__all__ = ["Pipeline", "RandAugment"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: Albumentations takes seconds to load."""
    if name == "Pipeline":
        from tutelage.augmentation.pipeline import Pipeline

        return Pipeline
    if name == "RandAugment":
        from tutelage.augmentation.randaugment import RandAugment

        return RandAugment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
