"""The context of a run: its config, data, folder and stages, and the outputs of the stages that are finished."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from tutelage.config import AugmentationConfig, Config, DataConfig, NearestNeighboursConfig
from tutelage.config.targets import failures_as_user_errors
from tutelage.data import (
    ROUND,
    TABLE,
    BatchShard,
    ImageDataModule,
    Selection,
    StageData,
    Stream,
    read_labels,
    shard_files,
)
from tutelage.data.pseudo_labels.labels import FOLDER, METADATA
from tutelage.errors import UserError
from tutelage.models import (
    BANK_FILES,
    ImageClassifier,
    ImageSpec,
    Teacher,
    load_classifier,
)
from tutelage.process_group import ALONE, ProcessGroup
from tutelage.randomness import Key
from tutelage.runs.cluster.signals import NO_REQUEST, SAVE_AND_CONTINUE, Signals
from tutelage.runs.folder import Record, RunFolder, stage_results
from tutelage.runs.integrity import describe_files, find_problems
from tutelage.runs.network_size import NetworkSize, measure_network
from tutelage.runs.observer import Observer
from tutelage.runs.previous_run import PreviousRun, find_previous_run
from tutelage.runs.tracking import RunTracking
from tutelage.storage import digest
from tutelage.strategies import PseudoLabelStage, Stage, StageContext, TrainStage, check_stage_list


def make_image_spec(data: DataConfig, classes: Sequence[str]) -> ImageSpec:
    """Return the images and classes of a dataset, as networks are built for them."""
    return ImageSpec(data.channels, data.image_size, tuple(classes), tuple(data.mean), tuple(data.std))


class Selections(Mapping[str, Selection]):
    """The selections of pseudo-labelling stages, by stage name; read from the store when used, only the newest kept."""

    def __init__(self, context: "RunContext") -> None:
        self._context = context
        self._newest: tuple[str, Selection] | None = None

    def __getitem__(self, name: str) -> Selection:
        """Return the selection of the stage ``name``; KeyError for none."""
        if self._newest is None or self._newest[0] != name:
            stage = next((stage for stage in self._stages() if stage.name == name), None)
            if stage is None:
                raise KeyError(name)
            self._newest = name, stage.select(read_labels(self._context.stage_folder(stage).path))
        return self._newest[1]

    def __iter__(self) -> Iterator[str]:
        return iter([stage.name for stage in self._stages()])

    def __len__(self) -> int:
        return len(self._stages())

    def _stages(self) -> list[PseudoLabelStage]:
        return [stage for stage in self._context.stages if isinstance(stage, PseudoLabelStage)]


@dataclass
class RunContext:
    """A run in progress, as one of its processes has it.

    Attributes:
        config: the whole config.
        folder: the run's folder.
        record: ``run.json``.
        data: the DataModule at ``data.image_size``.
        signals: the request that signals have made.
        observer: shows progress.
        group: the processes of the run.
        evaluates_test: whether the run ends with an evaluation on the test set.
        stages: the stages, as far as they follow from those that are finished.
        parts: names of the parts of the run, in the order that the observer counts them.
        weightless_teachers: teachers on the meta device, by stage name or weight files.
    """

    config: Config
    folder: RunFolder
    record: Record
    data: ImageDataModule
    signals: Signals
    observer: Observer
    group: ProcessGroup = ALONE
    evaluates_test: bool = True
    stages: Sequence[Stage] = ()
    parts: Sequence[str] = ()
    weightless_teachers: dict[str | Sequence[Path], Teacher] = field(default_factory=dict)
    _has_said_position: bool = False
    _data_at_size: dict[int, ImageDataModule] = field(default_factory=dict)
    _network_sizes: dict[str, NetworkSize] = field(default_factory=dict)

    @property
    def image_spec(self) -> ImageSpec:
        """The images and classes that the networks are built for."""
        spec = make_image_spec(self.config.data, self.data.source.classes)
        if self.previous_run is not None:
            return self.previous_run.extend(spec)
        return replace(spec, tasks=tuple(map(tuple, self.config.strategy.task_classes)))

    def stage_image_spec(self, stage: TrainStage) -> ImageSpec:
        """Return the images and classes that a stage's network is built for."""
        return replace(self.image_spec, image_size=stage.image_size or self.image_spec.image_size)

    def network_size(self, stage: TrainStage) -> NetworkSize:
        """Return the size of a stage's network.

        Raises:
            UserError: it cannot be built.
        """
        if stage.name not in self._network_sizes:
            size = measure_network(stage.model.arguments(), self.stage_image_spec(stage))
            self._network_sizes[stage.name] = size
        return self._network_sizes[stage.name]

    def data_for(self, stage: TrainStage) -> ImageDataModule:
        """Return the DataModule at a stage's image size.

        Raises:
            UserError: the dataset has other images at that size.
        """
        size = stage.image_size or self.config.data.image_size
        if size == self.config.data.image_size:
            return self.data
        if size not in self._data_at_size:
            self._data_at_size[size] = self.data.at_image_size(size)
        return self._data_at_size[size]

    def stage_data(self, stage: TrainStage) -> StageData:
        """Return the streams, augmentation and draws that a stage trains with."""
        augmentation = self.config.augmentation if stage.augmented else AugmentationConfig()
        return StageData(
            streams=self._stage_streams(stage),
            transforms=augmentation.transforms,
            strong=augmentation.strong,
            key=partial(Key, self.config.seed, stage.name),
            steps=stage.steps,
            mix=augmentation.mix,
        )

    def _stage_streams(self, stage: TrainStage) -> Sequence[Stream]:
        with failures_as_user_errors(type(self.config.strategy), f"stage {stage.name}: its streams"):
            return stage.streams(self.selections)

    def follow_results(self, finished: int = 0) -> bool:
        """List the stages anew, as they follow from the finished ones; return whether the list has changed.

        Args:
            finished: how many stages of the list are finished.

        Raises:
            UserError: the data does not fit the strategy, or its list cannot be run.
        """
        before = [stage.name for stage in self.stages]
        results = stage_results(self.record.content)
        strategy = self.config.strategy
        with failures_as_user_errors(type(strategy), f"strategy={strategy.name}: stages()"):
            self.stages = strategy.stages(StageContext(self.config, self.data.source, self.data.splits, results))
        check_stage_list(strategy.name, self.stages)
        after = [stage.name for stage in self.stages]
        if after[:finished] != before[:finished]:
            raise UserError(
                f"strategy={strategy.name}: stages() returned {', '.join(after)} after {', '.join(before[:finished])}: "
                "finished stages stay in the list, and only those behind them may depend on results"
            )
        return before != after

    @property
    def train_stages(self) -> list[TrainStage]:
        """The stages that train a network."""
        return [stage for stage in self.stages if isinstance(stage, TrainStage)]

    @property
    def main_stage(self) -> TrainStage:
        """The stage that trains the run's network: the last one that is no control nor rejected."""
        return [stage for stage in self.train_stages if not stage.control and not stage.rejected][-1]

    @cached_property
    def previous_run(self) -> PreviousRun | None:
        """The run whose network brings the first task, or all classes but one, where the config does not list them."""
        return find_previous_run(self.config, self.data.runtime)

    @cached_property
    def tracking(self) -> RunTracking:
        """The run's loggers; only rank 0 has any."""
        names = self.config.logger if self.group.is_rank0 else ()
        return RunTracking(self.config, self.folder, self.observer.say, names)

    @cached_property
    def selections(self) -> Selections:
        """The selections of finished pseudo-labelling stages, by stage name."""
        return Selections(self)

    @property
    def has_validation(self) -> bool:
        """Whether there are validation images."""
        return len(self.data.splits.validation) > 0

    def selects_best(self, stage: TrainStage) -> bool:
        """Return whether validation selects which weights of a stage are kept; else the final ones are."""
        return self.has_validation and stage.select_best

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.data.runtime.device

    def check_signals(self) -> None:
        """Stop the run where a signal asks any process for it; for use outside of training, where nothing is lost.

        Raises:
            Stopped: a signal asks for it.
        """
        requested = self.signals.requested
        self.signals.check(self.group.agree_on_request(requested if requested > SAVE_AND_CONTINUE else NO_REQUEST))

    def after_batch(self, images: int) -> None:
        """Check signals after a batch of images, whose progress is not shown."""
        self.check_signals()

    def on_images(self, count: int, work: int = 0) -> Callable[[int], None]:
        """Return a function to call with the number of images of each batch: shows progress and checks signals.

        Args:
            count: images in all.
            work: the index of the work, in the part of the run, that these images are.
        """
        done = 0
        self.observer.progress(0.0, {}, work)

        def on_batch(batch_size: int) -> None:
            nonlocal done
            done += batch_size
            self.observer.progress(done / count, {"images": f"{done}/{count}"}, work)
            self.check_signals()

        return on_batch

    def show_part(self, name: str) -> None:
        """Show that a part of the run begins or goes on."""
        if name in self.parts:
            self.observer.part(self.parts.index(name) + 1)

    def say_position(self, name: str, done: str = "") -> None:
        """Say, once in a session that goes on with a run, where that is.

        Args:
            name: of the part of the run that begins or goes on.
            done: what is done of it, in words; empty where nothing is.
        """
        if len(self.record.content["sessions"]) > 1 and not self._has_said_position and name in self.parts:
            number = self.parts.index(name) + 1
            self.observer.say(f"goes on at stage {number} of {len(self.parts)}, {name}: {done or 'from its beginning'}")
        self._has_said_position = True

    def stage_folder(self, stage: Stage) -> RunFolder:
        """Return the folder of a stage."""
        names = [other.name for other in self.stages]
        return self.folder.stage_folder(names.index(stage.name) + 1, stage.name, len(names))

    def weights_file(self, stage: TrainStage) -> Path:
        """Return the file of the network that a stage ends with."""
        return self.stage_folder(stage).weights_file(self.selects_best(stage))

    def load_network(self, name: str) -> ImageClassifier:
        """Return the network that the training stage ``name`` ended with."""
        return load_classifier(next(self.weights_file(stage) for stage in self.train_stages if stage.name == name))

    def stage_outputs(self, stage: Stage) -> list[Path]:
        """Return the files with checksums that a finished stage leaves for later stages."""
        folder = self.stage_folder(stage)
        if isinstance(stage, PseudoLabelStage):
            return shard_files(folder.path, len(self.data.splits.pool))
        has_bank = isinstance(stage.model, NearestNeighboursConfig)
        bank = [folder.checkpoints / name for name in BANK_FILES] if has_bank else []
        return [self.weights_file(stage), *bank]

    def describe_outputs(self, stage: Stage) -> dict[str, Any]:
        """Return the ledger's lines on what a finished stage leaves: its files, and the networks that came before."""
        folder = self.stage_folder(stage)
        names = (f"{FOLDER}/{METADATA}", ROUND, TABLE) if isinstance(stage, PseudoLabelStage) else ()
        paths = [*self.stage_outputs(stage), *(folder.path / name for name in names)]
        files = describe_files(self.folder, paths)
        return {"files": files, "follows": self._digest_of_earlier(stage)}

    def is_stage_complete(self, stage: Stage) -> bool:
        """Return whether a stage is finished, follows from the networks before it, and its files are intact.

        If its files are not, say so and make room: weights that validation selected are in no checkpoint.
        """
        entry = self.record.stage_entry(stage.name)
        if entry is None:
            return False
        folder = self.stage_folder(stage)
        problems = find_problems(self.folder, entry["files"], check_digests=True)
        lacks_metrics = isinstance(stage, TrainStage) and not stage.one_pass and not folder.metrics_file.is_file()
        follows = entry["follows"] == self._digest_of_earlier(stage)
        if not problems and not lacks_metrics and follows:
            return True
        if problems:
            reason = f"{self.folder.path / problems[0].file} is {problems[0].reason}"
        elif lacks_metrics:
            reason = f"{folder.metrics_file} is missing"
        else:
            reason = "a network before it has other weights than when it was run"
        self.observer.say(f"warning: {reason}: stage {stage.name} is run again")
        if isinstance(stage, TrainStage) and (not follows or (problems and self.selects_best(stage))):
            for file in folder.checkpoints.glob("*.ckpt"):
                file.unlink()
        return False

    def _digest_of_earlier(self, stage: Stage) -> str:
        """Return a digest of the networks that the stages before this one ended with."""
        names = [other.name for other in self.stages]
        earlier = [self.record.stage_entry(name) for name in names[: names.index(stage.name)]]
        return digest([entry.get("weights_sha256", entry.get("teacher_sha256")) for entry in earlier if entry])


def batch_shard(config: Config, group: ProcessGroup) -> BatchShard:
    """Return the part of each batch that this process trains on."""
    return BatchShard(group.world.rank, group.size, config.trainer.accumulate)


def choose_device(config: Config, local_rank: int) -> torch.device:
    """Return the device of the process ``local_rank`` of this machine."""
    uses_gpu = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", local_rank) if uses_gpu else torch.device("cpu")
