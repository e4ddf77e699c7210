"""The two kinds of stages that a strategy is a list of: training a network, and pseudo-labelling the pool."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from pytorch_lightning import LightningModule

from tutelage.config import ArchitectureConfig
from tutelage.config.section import FOLDER_NAME
from tutelage.data import Labels, Selection, Stream
from tutelage.errors import UserError
from tutelage.models import FineTuning

Results = Mapping[str, Mapping[str, float]]  # of finished training stages, by name
NO_RESULTS: Results = MappingProxyType({})
SCRATCH = ""  # as a stage to start from: random weights, whatever init_from says


@dataclass(frozen=True)
class TeacherSpec:
    """The frozen networks that teach in a stage, and the stream whose images they see.

    Their cached logits or features reach the stage's module as ``StreamBatch.cached``.

    Attributes:
        stream: the name of the stream.
        networks: the training stage whose network is the teacher, or files and runs whose logits are averaged.
        cached_views: number of views of each image, which repeat; None where each pass shows new ones.
        live: nothing is cached: ``TrainStage.module`` gets the networks as a ``Teacher`` and calls it in each step.
        features: features (B, D) of the backbone that the stage starts with are cached, and no images are shown.
    """

    stream: str
    networks: str | Sequence[Path] = ()
    cached_views: int | None = None
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
        streams: returns the streams to train on, given the selections of the pseudo-labelling stages before.
        module: makes the LightningModule around the network; with a ``teacher`` it gets the ``Teacher`` too.
        control: the stage is there to be compared with; its network is not the run's result.
        grows_from: the stage whose network must not be larger than this one's.
        one_pass: the network learns the labelled images in one pass, un-augmented, instead of being optimized.
        starts_from: the stage whose weights it starts with, or ``SCRATCH``; None for ``init_from``, where there is one.
        fine_tuning: which parts learn, and how fast against one another.
        teacher: the frozen networks that it learns from; None for no teacher.
        select_best: whether validation selects the best weights; where it cannot (no head has learned yet), there is no
            validation and the final weights are kept.
        note: what the stage is for, as a sentence under the table.
        rejected: it did not gain on validation: its network is not the run's result either.
        image_size: height and width of the images that it sees; None for ``data.image_size``.
        augmented: whether images are augmented.
        lr_scale: its learning rate as a fraction of ``optimizer.lr``.
        aims_at: the stage whose accuracy it is to reach: a table says how much of the gap to it is closed.
        averages_weights: its module averages weights itself, so that ``optimizer.ema_decay`` does not.
    """

    name: str
    model: ArchitectureConfig
    steps: int
    epoch_steps: int
    images_per_step: int
    streams: Callable[[Mapping[str, Selection]], Sequence[Stream]]
    module: Callable[..., LightningModule]
    control: bool = False
    grows_from: str | None = None
    one_pass: bool = False
    starts_from: str | None = None
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    teacher: TeacherSpec | None = None
    select_best: bool = True
    note: str = ""
    rejected: bool = False
    image_size: int | None = None
    augmented: bool = True
    lr_scale: float = 1.0
    aims_at: str | None = None
    averages_weights: bool = False


@dataclass(frozen=True)
class PseudoLabelStage:
    """Let a trained network label the pool.

    Attributes:
        name: unique within the strategy.
        teacher: the name of the training stage whose network labels the pool.
        select: returns the pseudo-labels to train on; a pure function of the stored ones.
        tta_views: the views of each image whose probabilities are averaged (see ``models.tta_views``).
        previous: the pseudo-labelling stage of the round before, to count the labels that changed.
    """

    name: str
    teacher: str
    select: Callable[[Labels], Selection]
    tta_views: str = "one"
    previous: str | None = None


Stage = TrainStage | PseudoLabelStage


def check_stage_list(strategy: str, stages: Sequence[Stage]) -> None:
    """Raise a UserError unless a strategy's stages can be run: their names differ, and each follows from earlier ones.

    Args:
        strategy: the strategy's name, for the message.
        stages: what its ``stages`` returned.
    """
    trained: list[str] = []
    begin = f"strategy={strategy}: stages() returned"
    if not isinstance(stages, Sequence):
        raise UserError(f"{begin} a {type(stages).__name__}, not a list of stages")
    if foreign := [stage for stage in stages if not isinstance(stage, Stage)]:
        raise UserError(f"{begin} a {type(foreign[0]).__name__}; each is a TrainStage or a PseudoLabelStage")
    for stage in stages:
        if not FOLDER_NAME.fullmatch(stage.name):
            raise UserError(f"{begin} a stage called {stage.name!r}; letters, digits, '-' and '_' make a name")
        if [other.name for other in stages].count(stage.name) > 1:
            raise UserError(f"{begin} several stages called {stage.name!r}; each needs a name of its own")
        for earlier in _list_earlier(stage):
            if earlier not in trained:
                raise UserError(
                    f"{begin} {stage.name!r}, which needs {earlier!r}: no stage of that name trains before it"
                )
        if isinstance(stage, TrainStage):
            trained.append(stage.name)
    if all(isinstance(stage, PseudoLabelStage) or stage.control or stage.rejected for stage in stages):
        raise UserError(f"{begin} no stage that trains the run's network; a TrainStage without control does")


def _list_earlier(stage: Stage) -> list[str]:
    """Return the names of the training stages whose networks a stage needs."""
    if isinstance(stage, PseudoLabelStage):
        return [stage.teacher]
    teacher = stage.teacher.networks if stage.teacher is not None else ()
    names = [stage.starts_from, stage.grows_from, stage.aims_at, teacher if isinstance(teacher, str) else None]
    return [name for name in names if name]
