"""The stages of strategies on small datasets, and batches for their modules."""

from collections.abc import Sequence

import numpy as np
import torch

from helpers.configs import data_config
from helpers.sources import make_source
from tutelage.config import Config
from tutelage.config.compose import compose
from tutelage.data import StreamBatch, split
from tutelage.strategies import Stage, StageContext


def plan_stages(strategy: str, *overrides: str, **data: int) -> tuple[Config, Sequence[Stage]]:
    """Return the config and the stages of a strategy's run of 10 steps on 120 images of 4 classes."""
    config = compose([f"strategy={strategy}", "schedule.epochs=null", "schedule.steps=10", *overrides])
    source = make_source(np.repeat(np.arange(4), 30), test=8, unlabelled=0)
    return config, config.strategy.stages(StageContext(config, source, split(source, data_config(**data))))


def make_batches(
    labelled: int = 4, pool: int = 9, labelled_views: int = 1, pool_views: int = 1
) -> dict[str, StreamBatch]:
    """Return random grey images (N, 1, 28, 28) uint8 of two streams; the pool's targets are no labels but zeros."""
    generator = torch.Generator().manual_seed(0)

    def draw_images(count: int) -> torch.Tensor:
        return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)

    targets = torch.randint(0, 10, (labelled,), generator=generator).repeat(labelled_views)
    return {
        "labelled": StreamBatch(draw_images(labelled_views * labelled), targets),
        "pool": StreamBatch(draw_images(pool_views * pool), torch.zeros(pool_views * pool, dtype=torch.int64)),
    }
