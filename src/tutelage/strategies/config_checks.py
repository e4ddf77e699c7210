"""What several strategies ask of the other groups."""

from tutelage.config import AugmentationConfig


def check_unmixed(strategy: str, augmentation: AugmentationConfig) -> None:
    """Raise a ValueError where images are mixed: ``strategy`` compares views of one image."""
    if augmentation.mix is not None:
        raise ValueError(
            f"strategy={strategy} compares views of one image, and mixing would put other images into them: set "
            "augmentation.mix=null"
        )


def check_one_view(strategy: str, augmentation: AugmentationConfig) -> None:
    """Raise a ValueError where images have a second, strong view: ``strategy`` takes one."""
    if augmentation.strong:
        raise ValueError(f"strategy={strategy} takes one view of an image: set augmentation.strong=[]")
