"""A run under way: its config, its data, its folder, its plan, and what its stages left so far."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from tutelage.config import AugmentationConfig, Config, DataConfig
from tutelage.data import (
    ImageDataModule,
    Selection,
    Share,
    StageData,
    data_module,
    read_labels,
    read_metadata,
    shard_files,
)
from tutelage.errors import UserError
from tutelage.models import (
    BANK_FILES,
    ImageClassifier,
    ImageSpec,
    Teacher,
    load_classifier,
    weight_hash,
    with_added_task,
)
from tutelage.process_group import ALONE, ProcessGroup
from tutelage.randomness import Key
from tutelage.runs.cluster.signals import NOTHING, SAVE_AND_GO_ON, Signals
from tutelage.runs.cost import Size, size_of
from tutelage.runs.folder import Record, RunFolder, results_of
from tutelage.runs.observer import Observer
from tutelage.runs.previous_run import PreviousRun, older
from tutelage.storage import is_sound
from tutelage.strategies import PseudoLabelStage, Stage, TrainStage, stages


def spec_of(data: DataConfig, classes: Sequence[str]) -> ImageSpec:
    """Return what networks see and tell apart on some data."""
    return ImageSpec(data.channels, data.image_size, tuple(classes), tuple(data.mean), tuple(data.std))


class Selections(Mapping[str, Selection]):
    """What Label stages selected of their stored labels, made when it is asked for; only the newest stays in memory."""

    def __init__(self, context: "RunContext") -> None:
        self._run = context
        self._newest: tuple[str, Selection] | None = None

    def __getitem__(self, name: str) -> Selection:
        """Return what the stage ``name`` selected."""
        if self._newest is None or self._newest[0] != name:
            stage = next(one for one in self._labels() if one.name == name)
            self._newest = name, stage.select(read_labels(self._run.place(stage).path))
        return self._newest[1]

    def __iter__(self) -> Iterator[str]:
        return iter([stage.name for stage in self._labels()])

    def __len__(self) -> int:
        return len(self._labels())

    def _labels(self) -> list[PseudoLabelStage]:
        return [stage for stage in self._run.plan if isinstance(stage, PseudoLabelStage)]


@dataclass
class RunContext:
    """A run under way: its config, data, folder and what its stages left so far, as one of its processes has it."""

    config: Config
    folder: RunFolder
    record: Record
    data: ImageDataModule
    signals: Signals
    observer: Observer
    group: ProcessGroup = ALONE
    plan: Sequence[Stage] = ()
    parts: Sequence[str] = ()  # of the work, as the observer counts it
    outlines: dict[str | Sequence[Path], Teacher] = field(default_factory=dict)  # teachers without their weights
    sizes: dict[str, Size] = field(default_factory=dict)  # of the stages' networks, by stage
    at_sizes: dict[int, ImageDataModule] = field(default_factory=dict)  # the data once more, at other sizes

    @property
    def spec(self) -> ImageSpec:
        """What the networks see and tell apart."""
        spec = spec_of(self.config.data, self.data.source.classes)
        if self.older is not None:
            return with_added_task(spec, self.older.network.spec)
        return replace(spec, tasks=tuple(map(tuple, getattr(self.config.strategy, "tasks", ()))))

    def sees(self, stage: TrainStage) -> ImageSpec:
        """Return what a stage's network sees and tells apart."""
        return replace(self.spec, image_size=stage.image_size or self.spec.image_size)

    def size(self, stage: TrainStage) -> Size:
        """Return how large a stage's network is.

        Raises:
            UserError: it cannot be built.
        """
        if stage.name not in self.sizes:
            self.sizes[stage.name] = size_of(stage.model.arguments(), self.sees(stage))
        return self.sizes[stage.name]

    def data_of(self, stage: TrainStage) -> ImageDataModule:
        """Return the data as a stage sees it: the run's own, or the same once more, at the stage's own size.

        Raises:
            UserError: at that size it has other images.
        """
        size = stage.image_size or self.config.data.image_size
        if size == self.config.data.image_size:
            return self.data
        if size not in self.at_sizes:
            data = data_module(self.config.data.model_copy(update={"image_size": size}))
            data.tell, data.device, data.share = self.data.tell, self.data.device, self.data.share
            data.neighbours = self.data.neighbours
            if not np.array_equal(data.source.labels, self.data.source.labels):
                raise UserError(f"stage {stage.name}: at {size} pixels the data has other images; image_size=null")
            data.splits = self.data.splits
            self.at_sizes[size] = data
        return self.at_sizes[size]

    def planned(self) -> Sequence[Stage]:
        """Return the stages, as far as they follow from those that are finished."""
        return stages(self.config, self.data.source, self.data.splits, results_of(self.record.content))

    @cached_property
    def older(self) -> PreviousRun | None:
        """The run whose network comes with the first task, where the config does not give it."""
        return older(self.config, self.data.tell)

    @cached_property
    def selections(self) -> "Selections":
        """What the finished PseudoLabelStage stages selected, by stage."""
        return Selections(self)

    @property
    def validated(self) -> bool:
        """Whether there are validation images."""
        return len(self.data.splits.validation) > 0

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        gpu = self.config.trainer.accelerator != "cpu" and torch.cuda.is_available()
        return torch.device("cuda", self.group.world.local_rank) if gpu else torch.device("cpu")

    @property
    def share(self) -> Share:
        """Which part of each batch this process trains on."""
        return Share(self.group.world.rank, self.group.size, self.config.trainer.accumulate)

    def answer(self) -> None:
        """Stop where this or another process is told to; outside of training, where nothing is lost.

        Raises:
            Stopped: one is.
        """
        asked = self.signals.asked
        self.signals.answer(self.group.told(asked if asked > SAVE_AND_GO_ON else NOTHING))

    def place(self, stage: Stage) -> RunFolder:
        """Return the folder of a stage."""
        names = [one.name for one in self.plan]
        return self.folder.stage(names.index(stage.name) + 1, stage.name, len(names))

    def judged(self, stage: TrainStage) -> bool:
        """Whether validation chooses which weights of a stage are kept."""
        return self.validated and stage.select_best

    def show(self, part: str) -> None:
        """OnProgress the observer which part of the work begins or goes on."""
        if part in self.parts:
            self.observer.stage(self.parts.index(part) + 1)

    def training(self, stage: TrainStage) -> StageData:
        """Return what a stage trains on."""
        augmentation = self.config.augmentation if stage.augmented else AugmentationConfig()
        return StageData(
            streams=stage.streams(self.selections),
            transforms=augmentation.transforms,
            strong=augmentation.strong,
            key=partial(Key, self.config.seed, stage.name),
            steps=stage.steps,
            mix=augmentation.mix,
        )

    def weights(self, stage: TrainStage) -> Path:
        """Return the file with the network that a stage ends with."""
        return self.place(stage).weights(self.judged(stage))

    def left_by(self, stage: Stage) -> list[Path]:
        """Return the files that a finished stage leaves for those after it."""
        if isinstance(stage, PseudoLabelStage):
            return shard_files(self.place(stage).path, len(self.data.splits.pool))
        bank = [self.place(stage).checkpoints / name for name in BANK_FILES] if stage.one_pass else []
        return [self.weights(stage), *bank]

    def network(self, name: str) -> ImageClassifier:
        """Return the network that the Fit stage ``name`` ended with."""
        return load_classifier(next(self.weights(s) for s in self.plan if isinstance(s, TrainStage) and s.name == name))


def is_intact(context: RunContext, stage: Stage) -> bool:
    """Return whether what a finished stage left is still there and sound; say it and clear the way where it is not."""
    damaged = [file for file in context.left_by(stage) if not is_sound(file)]
    if not damaged and (isinstance(stage, TrainStage) or _is_of_its_teacher(context, stage)):
        return True
    what = (
        f"{damaged[0]} is damaged or gone" if damaged else f"{context.place(stage).path} has another teacher's labels"
    )
    context.observer.say(f"warning: {what}: stage {stage.name} is done again")
    if isinstance(stage, TrainStage) and context.judged(
        stage
    ):  # the best weights are in no checkpoint: only training finds them
        for file in context.place(stage).checkpoints.glob("*"):
            file.unlink()
    return False


def _is_of_its_teacher(context: RunContext, stage: PseudoLabelStage) -> bool:
    """Return whether a stage's labels are those of its teacher as it is now: it may have been trained again."""
    about = read_metadata(context.place(stage).path)
    return about is not None and about.get("weights") == weight_hash(context.network(stage.teacher))
