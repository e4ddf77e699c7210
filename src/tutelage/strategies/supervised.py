"""Supervised training: cross-entropy on the labelled images, or their neighbours, and nothing else."""

from collections.abc import Sequence

from tutelage.config import Config, NearestNeighboursConfig
from tutelage.data import Source, Splits
from tutelage.strategies.stages import Fit, Stage, labelled_stream, length


def stages(config: Config, source: Source, splits: Splits) -> Sequence[Stage]:
    """Return the one stage."""
    stream = labelled_stream(config, source, splits)
    extent = length(config, 1.0, (stream.length, stream.batch_size))
    return [
        Fit(
            name="supervised",
            model=config.model,
            steps=extent.steps,
            epoch_steps=extent.epoch_steps,
            images_per_step=stream.batch_size,
            streams=lambda selections: [stream],
            module=lambda network: network,
            one_pass=isinstance(config.model, NearestNeighboursConfig),
        )
    ]
