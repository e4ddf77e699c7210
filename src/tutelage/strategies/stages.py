"""A strategy is a list of stages; these are the two kinds there are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from pytorch_lightning import LightningModule

from tutelage.config import Config, Targeted
from tutelage.data import UNKNOWN, Labels, Selection, Source, Splits, Stream
from tutelage.errors import UserError
from tutelage.models import FineTuning

Results = Mapping[str, Mapping[str, float]]  # of finished Fit stages, by name
NOTHING: Results = MappingProxyType({})
CONTROL = "Control: the same network and augmentation on the labels alone, for as many steps."
SCRATCH = ""  # as a stage to start from: random weights, whatever init_from says


@dataclass(frozen=True)
class TeacherSpec:
    """What frozen networks answer to the images of a stream; the stage's module finds it in ``StreamBatch.answers``.

    Attributes:
        stream: the name of the stream.
        networks: the Fit stage whose network answers, or files and runs whose logits are averaged.
        views: how many views of each image there are, which repeat; None where each pass shows new ones.
        live: nothing is kept: ``TrainStage.module`` gets the networks as a ``Teacher`` and asks them itself.
        features: the answers are features (B, D) of the backbone that the stage starts with, and no image is shown.
    """

    stream: str
    networks: str | Sequence[Path] = ()
    views: int | None = None
    live: bool = False
    features: bool = False


@dataclass(frozen=True)
class TrainStage:
    """Train a network.

    Attributes:
        name: unique within the strategy; part of the key of every draw.
        model: the architecture.
        steps: optimizer steps.
        epoch_steps: steps between two rows of metrics.csv (and two validations).
        images_per_step: for estimates of the time left.
        streams: what it trains on, given the selections of the Label stages before it.
        module: makes the LightningModule around the network; under ``teaching`` it gets the ``Teacher`` too.
        control: it is there to be compared with, not what the run is after.
        grows_from: the stage whose network must not be larger than this one's.
        one_pass: the network stores the labelled images in one pass, un-augmented, instead of optimizing.
        starts_from: the stage whose weights it starts with, or ``SCRATCH``; None for ``init_from``, where there is one.
        tuning: which parts learn, and how fast against one another.
        teaching: what it learns from other networks.
        judged: validation can tell how good its network is; where it cannot (no head has learned yet), there is none
            and the final weights are kept.
        told: what the stage is there for, as a sentence under the table.
        rejected: it did not gain on validation: not what the run is after either.
        image_size: the side of the images that it sees; None for ``data.image_size``.
        augmented: whether images are augmented; else they are shown as they are.
        lr_scale: its learning rate as a share of ``optimizer.lr``.
        averages: its module averages weights itself, which ``optimizer.ema_decay`` then does not.
    """

    name: str
    model: Targeted
    steps: int
    epoch_steps: int
    images_per_step: int
    streams: Callable[[Mapping[str, Selection]], Sequence[Stream]]
    module: Callable[..., LightningModule]
    control: bool = False
    grows_from: str | None = None
    one_pass: bool = False
    starts_from: str | None = None
    tuning: FineTuning = field(default_factory=FineTuning)
    teaching: TeacherSpec | None = None
    judged: bool = True
    told: str = ""
    rejected: bool = False
    image_size: int | None = None
    augmented: bool = True
    lr_scale: float = 1.0
    averages: bool = False


@dataclass(frozen=True)
class PseudoLabelStage:
    """Let a trained network label the pool.

    Attributes:
        name: unique within the strategy.
        teacher: the name of the Fit stage whose network answers.
        select: which answers are kept; a pure function of the store.
        views: which views of each image the teacher's probabilities are the mean of (see ``models.views``).
        before: the Label stage of the round before, to count the labels that changed.
    """

    name: str
    teacher: str
    select: Callable[[Labels], Selection]
    views: str = "one"
    before: str | None = None


Stage = TrainStage | PseudoLabelStage

MOST_EPOCHS = 100  # rows of metrics.csv of a stage whose passes are shorter than a hundredth of it


@dataclass(frozen=True)
class Length:
    """How long a stage is, and how it is cut into epochs."""

    steps: int
    epoch_steps: int


def length(config: Config, share: float, *sizes: tuple[int, int]) -> Length:
    """Return a stage's length: ``share`` of the schedule.

    An epoch is a pass over whatever takes longest, or a hundredth of the stage where a pass is shorter.

    Args:
        config: holds ``schedule.epochs`` or ``schedule.steps``.
        share: the stage's part of the schedule.
        sizes: (images, batch size) of each stream.
    """
    a_pass = max(-(-images // batch) for images, batch in sizes)
    steps = config.schedule.steps
    total = max(1, round(share * (steps if steps is not None else (config.schedule.epochs or 1) * a_pass)))
    return Length(total, min(total, max(a_pass, -(-total // MOST_EPOCHS))))


def labelled_stream(config: Config, source: Source, splits: Splits) -> Stream:
    """Return the stream of the labelled images; under ``data.balance=sampling`` each class comes equally often."""
    labelled, even = splits.labelled, config.data.balance == "sampling"
    return Stream("labelled", labelled, source.labels[labelled], config.data.batch_size, even=even)


def pool_batch(config: Config, splits: Splits, ratio: float) -> int:
    """Return how many images without labels a step shows, ``ratio`` for each labelled one.

    Raises:
        UserError: there are none.
    """
    if not len(splits.pool):
        raise UserError(
            f"strategy={config.strategy.name}: no unlabelled images; use fewer labels (data.labels_per_class=10) "
            "or give unlabelled ones by data.unlabelled or an unlabelled/ in the folder"
        )
    return max(1, round(ratio * config.data.batch_size))


def unknown_stream(splits: Splits, batch_size: int, beside: str = "") -> Stream:
    """Return the stream of the images without labels; whatever the truth is, training does not see it."""
    unknown = np.full(len(splits.pool), UNKNOWN, dtype=np.int8)
    return Stream("pool", splits.pool, unknown, batch_size, beside=beside, blocks=splits.blocks)


def supervised_on(name: str, model: Targeted, extent: Length, *streams: Stream) -> TrainStage:
    """Return plain supervised training; what else a stage is, ``dataclasses.replace`` says."""
    return TrainStage(
        name=name,
        model=model,
        steps=extent.steps,
        epoch_steps=extent.epoch_steps,
        images_per_step=sum(stream.batch_size for stream in streams),
        streams=lambda selections: streams,
        module=lambda network: network,
    )
