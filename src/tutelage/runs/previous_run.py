"""The previous run that learning without forgetting continues: its network, and its test images."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tutelage.config import Config
from tutelage.data import DataRuntime, EvalBatch, ImageDataModule, data_module
from tutelage.errors import UserError
from tutelage.models import (
    ImageClassifier,
    ImageSpec,
    evaluation_batch,
    load_classifier,
    load_first_task,
    load_old_classes,
    with_added_class,
    with_added_task,
)
from tutelage.models.weights.sources import read_pretrained
from tutelage.runs.weight_sources import find_run_data, find_weights


@dataclass(frozen=True)
class PreviousRun:
    """The network of a previous run, and its data where that is still there.

    Attributes:
        network: its trained network.
        data: its dataset; None where it is missing or has changed.
        test: (N,) int64, indices of its test images.
        no_data_reason: why there is no dataset.
    """

    network: ImageClassifier
    data: ImageDataModule | None
    test: np.ndarray
    no_data_reason: str = ""

    def extend(self, spec: ImageSpec) -> ImageSpec:
        """Return the spec of a network for its classes and those of ``spec``: one joins them, several are a task.

        Raises:
            UserError: that cannot be.
        """
        old = self.network.spec
        return with_added_class(spec, old) if len(spec.classes) == 1 else with_added_task(spec, old)

    def give_weights(self, network: ImageClassifier) -> str:
        """Copy its weights into a network of the extended spec; return a sentence on it.

        Raises:
            UserError: the networks differ.
        """
        return load_old_classes(network, self.network) if network.spec.added else load_first_task(network, self.network)

    def test_batches(self, first_label: int) -> Iterator[EvalBatch]:
        """Yield its test images, with labels counted from ``first_label``."""
        if self.data is None:
            return
        for batch in self.data.eval_dataloader(self.test, evaluation_batch(self.network)):
            yield batch._replace(labels=batch.labels + first_label)


def find_previous_run(config: Config, runtime: DataRuntime) -> PreviousRun | None:
    """Return the previous run that the config's strategy adds to; None where the strategy adds no task to it.

    Raises:
        UserError: ``init_from`` is no network of a run.
    """
    if not config.strategy.adds_task:
        return None
    name, no_images = config.init_from or "", np.empty(0, dtype=np.int64)
    file = find_weights(name, "init_from")
    if isinstance(file, str) or read_pretrained(file).classes is None:
        raise UserError(f"init_from={name}: it is not known what its classes are; give the folder of a finished run")
    network = load_classifier(file)
    data_config, reason = find_run_data(name)
    if data_config is None:
        return PreviousRun(network, None, no_images, reason)
    data = data_module(data_config, DataRuntime(on_progress=runtime.on_progress))
    return PreviousRun(network, data, data.splits.test)
