"""An older run that learning without forgetting goes on from: its network, and its test images to measure it on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tutelage.config import Config, LwFConfig
from tutelage.data import EvalBatch, ImageDataModule, data_module
from tutelage.errors import UserError
from tutelage.models import ImageClassifier, load_classifier
from tutelage.models.weights.sources import read_pretrained
from tutelage.runs.weight_sources import first_data, weights


@dataclass(frozen=True)
class PreviousRun:
    """What is left of an older run.

    Attributes:
        network: what it trained.
        data: its dataset, where that is at hand still.
        test: (N,) int64, its test images.
        told: why its data is not at hand.
    """

    network: ImageClassifier
    data: ImageDataModule | None
    test: np.ndarray
    told: str = ""

    def images(self, first: int) -> Iterator[EvalBatch]:
        """Return its test images, labelled from ``first`` on."""
        for batch in self.data.plain(self.test) if self.data is not None else ():
            yield batch._replace(labels=batch.labels + first)


def older(config: Config, tell: Callable[[str, float], None]) -> PreviousRun | None:
    """Return the older run whose network comes with the first task; None where the config gives all tasks itself.

    Raises:
        UserError: ``init_from`` is no network of ours.
    """
    if not isinstance(config.strategy, LwFConfig) or config.strategy.tasks:
        return None
    given = config.init_from or ""
    file = weights(given, "init_from")
    if isinstance(file, str) or read_pretrained(file).classes is None:
        raise UserError(f"init_from={given}: it is not known what its classes are; give the folder of a finished run")
    network, nothing = load_classifier(file), np.empty(0, dtype=np.int64)
    seen, told = first_data(given)
    if seen is None:
        return PreviousRun(network, None, nothing, told)
    data = data_module(seen)
    data.tell = tell
    return PreviousRun(network, data, data.splits.test)
