"""What a strategy builds its stages from: config and data, streams, lengths, supervised training and the control."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from tutelage.config import ArchitectureConfig, Config
from tutelage.data import UNKNOWN, Source, Splits, Stream
from tutelage.errors import UserError
from tutelage.models import FineTuning
from tutelage.strategies.stages import NO_RESULTS, SCRATCH, Results, TrainStage

MAX_EPOCHS = 100  # rows of metrics.csv of a stage whose passes are shorter than a hundredth of it
CONTROL_NOTE = "Control: the same network and augmentation on the labels alone, for as many steps."


@dataclass(frozen=True)
class Length:
    """The optimizer steps of a stage, and of each of its epochs."""

    steps: int
    epoch_steps: int


def stage_length(config: Config, fraction: float, *sizes: tuple[int, int]) -> Length:
    """Return a stage's length, a fraction of the schedule.

    An epoch is a pass over the stream that takes longest, or a hundredth of the stage where a pass is shorter.

    Args:
        config: has ``schedule.epochs``, whose steps are ``schedule.min_steps`` or more, or ``schedule.steps``.
        fraction: the stage's fraction of the schedule.
        sizes: (images of a pass, batch size) of each stream.
    """
    pass_steps = max(-(-images // batch_size) for images, batch_size in sizes)
    total = max(1, round(fraction * config.schedule.count_steps(pass_steps)))
    return Length(total, min(total, max(pass_steps, -(-total // MAX_EPOCHS))))


@dataclass(frozen=True)
class StageContext:
    """What a strategy's stages follow from, and the builders of what most strategies have in common.

    Attributes:
        config: the whole config.
        source: the data.
        splits: which images are labelled, unlabelled (the pool), for validation, for testing.
        results: of the finished training stages, by name.
    """

    config: Config
    source: Source
    splits: Splits
    results: Results = field(default_factory=lambda: NO_RESULTS)

    @cached_property
    def labelled(self) -> Stream:
        """The stream of the labelled images; under ``data.balance=sampling`` each class comes equally often."""
        indices, even = self.splits.labelled, self.config.data.balance == "sampling"
        return Stream("labelled", indices, self.source.labels[indices], self.config.data.batch_size, even=even)

    def pool_batch_size(self, ratio: float) -> int:
        """Return the number of unlabelled images of a step, ``ratio`` for each labelled one.

        Raises:
            UserError: there are no unlabelled images.
        """
        if not len(self.splits.pool):
            raise UserError(
                f"strategy={self.config.strategy.name}: no unlabelled images; use fewer labels "
                "(data.labels_per_class=10) or give unlabelled ones by data.unlabelled or an unlabelled/ in the folder"
            )
        return max(1, round(ratio * self.config.data.batch_size))

    def unlabelled_stream(self, batch_size: int, beside: str = "") -> Stream:
        """Return the stream of the pool, without labels even where the source has them (see ``Stream.beside``)."""
        unknown = np.full(len(self.splits.pool), UNKNOWN, dtype=np.int8)
        return Stream("pool", self.splits.pool, unknown, batch_size, beside=beside, blocks=self.splits.blocks)

    def length(self, fraction: float, *streams: Stream) -> Length:
        """Return the length of a stage on some streams, a fraction of the schedule (see ``stage_length``)."""
        return stage_length(self.config, fraction, *((stream.length, stream.batch_size) for stream in streams))

    def fine_tuning(self, model: ArchitectureConfig, starts_from: str | None = None) -> FineTuning:
        """Return which layers of a network learn, and how fast: as the config says, if it starts from trained weights.

        A layer that learns more slowly, or not at all, keeps what it has learned before. Random weights have learned
        nothing (``starts_from=SCRATCH``, or neither a stage nor ``init_from`` to start from): they learn at one rate.

        Args:
            model: the architecture.
            starts_from: as in ``TrainStage``.
        """
        if starts_from == SCRATCH or (starts_from is None and self.config.init_from is None):
            return FineTuning()
        optimizer = self.config.optimizer
        return FineTuning(model.frozen_layers, optimizer.backbone_lr_scale, optimizer.layer_decay)

    def supervised_stage(
        self, name: str, length: Length, *streams: Stream, fine_tuning: FineTuning | None = None, **changes: Any
    ) -> TrainStage:
        """Return plain supervised training of the config's network.

        Args:
            name: of the stage.
            length: its steps.
            streams: what it trains on.
            fine_tuning: which layers learn, and how fast; None for what the config says (see ``fine_tuning``).
            changes: further fields of the stage.
        """
        stage = TrainStage(
            name=name,
            model=self.config.model,
            steps=length.steps,
            epoch_steps=length.epoch_steps,
            images_per_step=sum(stream.batch_size for stream in streams),
            streams=lambda selections: streams,
            module=lambda network: network,
        )
        stage = replace(stage, **changes)
        return replace(stage, fine_tuning=fine_tuning or self.fine_tuning(stage.model, stage.starts_from))

    def control(self, length: Length, note: str = CONTROL_NOTE, **changes: Any) -> TrainStage:
        """Return the stage that a method is compared with: supervised training on the labelled images."""
        return self.supervised_stage("control", length, self.labelled, control=True, note=note, **changes)
