"""An older run that learning without forgetting goes on from: its network, and its test images to measure it on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tutelage.config import Config, LwFConfig
from tutelage.data import ImageDataModule, Plain, data_module
from tutelage.errors import UserError
from tutelage.models import ImageClassifier, load_classifier
from tutelage.models.pretrained import pretrained
from tutelage.runs.folder import RunFolder, read_record, stored_config
from tutelage.runs.given import weights


@dataclass(frozen=True)
class Older:
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

    def images(self, first: int) -> Iterator[Plain]:
        """Return its test images, labelled from ``first`` on."""
        for batch in self.data.plain(self.test) if self.data is not None else ():
            yield batch._replace(labels=batch.labels + first)


def older(config: Config, tell: Callable[[str, float], None]) -> Older | None:
    """Return the older run whose network comes with the first task; None where the config gives all tasks itself.

    Raises:
        UserError: ``init_from`` is no network of ours.
    """
    if not isinstance(config.strategy, LwFConfig) or config.strategy.tasks:
        return None
    given = config.init_from or ""
    file = weights(given, "init_from")
    if isinstance(file, str) or pretrained(file).classes is None:
        raise UserError(f"init_from={given}: it is not known what its classes are; give the folder of a finished run")
    network, nothing = load_classifier(file), np.empty(0, dtype=np.int64)
    folder = RunFolder(Path(given).expanduser())
    if not folder.config_file.is_file():
        return Older(network, None, nothing, f"{given} is no run's folder")
    try:
        data = data_module(stored_config(folder).data)
        data.tell = tell
        recorded = (read_record(folder) or {}).get("identity", {}).get("data", {}).get("fingerprint", "")
        if recorded != data.fingerprint():
            return Older(network, None, nothing, "its data has changed since")
        return Older(network, data, data.splits.test)
    except (UserError, OSError, ValueError) as error:
        return Older(network, None, nothing, str(error))
