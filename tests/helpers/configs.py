"""Data configs."""

from tutelage.config import DataConfig


def data_config(**changes) -> DataConfig:
    """Return the config of grey 28 x 28 images in batches of 8, without validation, with some fields changed."""
    base = dict(
        _target_="tutelage.data.Digits",
        image_size=28,
        channels=1,
        mean=[0.3],
        std=[0.3],
        batch_size=8,
        validation="none",
    )
    return DataConfig(**{**base, **changes})


def rgb_config(**changes) -> DataConfig:
    """Return the same of 16 x 16 images in colour."""
    return data_config(**{"image_size": 16, "channels": 3, "mean": [0.3] * 3, "std": [0.3] * 3, **changes})
