"""How each kind of stage is executed: fit a network, label the pool, and the test after the last stage."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from tutelage.config import Config, DataConfig
from tutelage.data import (
    PROBABILITIES,
    UNKNOWN,
    ImageDataModule,
    Selection,
    Training,
    class_weights,
    quality,
    read_probabilities,
    write_probabilities,
    write_table,
)
from tutelage.models import (
    BANK_FILES,
    Answers,
    ImageClassifier,
    ImageSpec,
    NearestNeighbours,
    Recipe,
    Teacher,
    answers,
    grown,
    load_classifier,
    make_classifier,
    measure,
    measure_tasks,
    save_classifier,
    start_from,
    take_over,
    weight_hash,
)
from tutelage.randomness import Key
from tutelage.runs.callbacks import EpochTable, StepRandomness
from tutelage.runs.checkpoints import Checkpoints, WholeCheckpointIO, newest_sound
from tutelage.runs.continued import Older, older
from tutelage.runs.folder import Record, RunFolder
from tutelage.runs.given import weights
from tutelage.runs.interruption import Signals
from tutelage.runs.observer import Observer
from tutelage.runs.teaching import teach, teacher_of
from tutelage.storage import is_sound, write_whole
from tutelage.strategies import SCRATCH, Fit, Label, Stage


def spec_of(data: DataConfig, classes: Sequence[str]) -> ImageSpec:
    """Return what networks see and tell apart on some data."""
    return ImageSpec(data.channels, data.image_size, tuple(classes), tuple(data.mean), tuple(data.std))


@dataclass
class Run:
    """A run under way: its config, data, folder and what its stages left so far."""

    config: Config
    folder: RunFolder
    record: Record
    data: ImageDataModule
    signals: Signals
    observer: Observer
    selections: dict[str, Selection] = field(default_factory=dict)
    plan: Sequence[Stage] = ()
    parts: Sequence[str] = ()  # of the work, as the observer counts it
    outlines: dict[str | Sequence[Path], Teacher] = field(default_factory=dict)  # teachers without their weights

    @property
    def spec(self) -> ImageSpec:
        """What the networks see and tell apart."""
        spec = spec_of(self.config.data, self.data.source.classes)
        if self.older is not None:
            return grown(spec, self.older.network.spec)
        return replace(spec, tasks=tuple(map(tuple, getattr(self.config.strategy, "tasks", ()))))

    @cached_property
    def older(self) -> Older | None:
        """The run whose network comes with the first task, where the config does not give it."""
        return older(self.config, self.data.tell)

    @property
    def validated(self) -> bool:
        """Whether there are validation images."""
        return len(self.data.splits.validation) > 0

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        gpu = self.config.trainer.accelerator != "cpu" and torch.cuda.is_available()
        return torch.device("cuda", 0) if gpu else torch.device("cpu")

    def place(self, stage: Stage) -> RunFolder:
        """Return the folder of a stage."""
        return self.folder.stage(self.plan.index(stage) + 1, stage.name, len(self.plan))

    def judged(self, stage: Fit) -> bool:
        """Whether validation chooses which weights of a stage are kept."""
        return self.validated and stage.judged

    def show(self, part: str) -> None:
        """Tell the observer which part of the work begins or goes on."""
        if part in self.parts:
            self.observer.stage(self.parts.index(part) + 1)

    def training(self, stage: Fit) -> Training:
        """Return what a stage trains on."""
        augmentation = self.config.augmentation
        return Training(
            streams=stage.streams(self.selections),
            transforms=augmentation.transforms,
            strong=augmentation.strong,
            key=partial(Key, self.config.seed, stage.name),
            steps=stage.steps,
            mix=augmentation.mix,
        )

    def weights(self, stage: Fit) -> Path:
        """Return the file with the network that a stage ends with."""
        return self.place(stage).weights(self.judged(stage))

    def left_by(self, stage: Stage) -> list[Path]:
        """Return the files that a finished stage leaves for those after it."""
        if isinstance(stage, Label):
            return [self.place(stage).path / PROBABILITIES]
        bank = [self.place(stage).checkpoints / name for name in BANK_FILES] if stage.one_pass else []
        return [self.weights(stage), *bank]

    def network(self, name: str) -> ImageClassifier:
        """Return the network that the Fit stage ``name`` ended with."""
        return load_classifier(next(self.weights(s) for s in self.plan if isinstance(s, Fit) and s.name == name))


def is_intact(this: Run, stage: Stage) -> bool:
    """Return whether what a finished stage left is still there and sound; say it and clear the way where it is not."""
    damaged = [file for file in this.left_by(stage) if not is_sound(file)]
    if not damaged:
        return True
    this.observer.say(f"warning: {damaged[0]} is damaged or gone: stage {stage.name} is done again")
    if isinstance(stage, Fit) and this.judged(stage):  # the best weights are in no checkpoint: only training finds them
        for file in this.place(stage).checkpoints.glob("*"):
            file.unlink()
    return False


def fit(this: Run, stage: Fit) -> dict[str, Any]:
    """Train a stage's network, from its newest checkpoint where there is one, and return its entry in the ledger."""
    config, place = this.config, this.place(stage)
    place.checkpoints.mkdir(parents=True, exist_ok=True)
    network = _new(this, stage)
    network.learn_by(Recipe(config.optimizer, config.scheduler, stage.steps, _weights_of_classes(this), stage.tuning))
    teaching = stage.teaching
    teacher = teacher_of(this, teaching) if teaching and not teaching.features else None
    module: Any = stage.module(network) if teacher is None else stage.module(network, teacher)

    def keep_weights() -> None:
        save_classifier(module.classifier, stage.model.arguments(), this.weights(stage))

    checkpoint = _newest(this, stage)
    before = WholeCheckpointIO().load_checkpoint(checkpoint, "cpu") if checkpoint else None
    on_best = keep_weights if this.judged(stage) else lambda: None
    table = EpochTable(place.metrics_file, stage.epoch_steps, _loggers(config, place, before), on_best)
    if before is not None and before["global_step"] >= stage.steps:
        module.load_state_dict(before["state_dict"])  # averaged, where weights are averaged
        table.load_state_dict(before["callbacks"]["EpochTable"])
    else:
        before = None  # Lightning reads the file again; two copies of a large network need not stay
        this.data.training = this.training(stage)
        if teaching is not None:
            this.data.training = replace(this.data.training, kept=teach(this, stage, teaching, network, teacher))
        try:
            _trainer(this, stage, table).fit(module, datamodule=this.data, ckpt_path=checkpoint, weights_only=True)
        except SIGTERMException:  # a signal in the instant before our handler was set again
            this.signals.answer()
            raise
    if not this.judged(stage):
        keep_weights()
    last = table.rows[-1]
    result = {name: value for name, value in (table.best or last).items() if "/" in name}
    return _entry(this, stage, last["seconds"], result, teacher)


def memorise(this: Run, stage: Fit) -> dict[str, Any]:
    """Let a network store the labelled images, in one pass, and return its entry in the ledger."""
    splits, started = this.data.splits, time.monotonic()
    network = _new(this, stage).to(this.device)
    assert isinstance(network, NearestNeighbours)  # noqa: S101 - no other stage is of one pass
    folder = this.place(stage).checkpoints
    folder.mkdir(parents=True, exist_ok=True)
    batches = this.data.plain(splits.labelled)
    network.memorise(batches, len(splits.labelled), folder, _heed(this, len(splits.labelled), lambda share: share))
    result: dict[str, float] = {}
    if this.validated:
        found = answers(network, this.data.plain(splits.validation), this.device, lambda images: this.signals.answer())
        result = {"val/accuracy": measure(found, this.data.source.classes, "val")["val/accuracy"]}
    save_classifier(network, stage.model.arguments(), this.weights(stage))
    return _entry(this, stage, round(time.monotonic() - started, 3), result)


def _new(this: Run, stage: Fit) -> ImageClassifier:
    """Return a stage's network as it begins: random weights of its key, or those of ``init_from``."""
    config = this.config
    torch.manual_seed(Key(config.seed, stage.name).torch_seed("initial weights"))
    network = make_classifier(stage.model.arguments(), this.spec)
    if stage.starts_from:
        before = this.network(stage.starts_from)
        network.load_state_dict(before.state_dict())
        network.normalise_by(before.spec.mean, before.spec.std)
    elif this.older is not None:
        take_over(network, this.older.network)
    elif config.init_from is not None and stage.starts_from != SCRATCH:
        start_from(network, weights(config.init_from, "init_from"))
    return network


def _weights_of_classes(this: Run) -> tuple[float, ...] | None:
    source = this.data.source
    if this.config.data.balance != "weights":
        return None
    return class_weights(source.labels[this.data.splits.labelled], len(this.spec.classes))


def _entry(
    this: Run, stage: Fit, seconds: float, result: dict[str, float], teacher: Teacher | None = None
) -> dict[str, Any]:
    """Return the ledger's entry of a stage that ended with a network."""
    network, streams = load_classifier(this.weights(stage)), stage.streams(this.selections)
    return {
        "name": stage.name,
        "kind": "fit",
        "control": stage.control,
        **({"told": stage.told} if stage.told else {}),
        **({"after": stage.starts_from} if stage.starts_from else {}),
        **({"teacher_sha256": [weight_hash(one) for one in teacher.networks]} if teacher else {}),
        **({} if stage.judged else {"judged": False}),
        "model": stage.model.arguments(),
        "parameters": sum(p.numel() for p in network.parameters()),
        "bytes": sum(file.stat().st_size for file in this.left_by(stage)),
        "steps": 0 if stage.one_pass else stage.steps,
        "labels": sum(int((s.targets != UNKNOWN).sum()) for s in streams if s.name != "pool" and s.targets.ndim == 1),
        "validation": this.data.splits.validation_kind,
        "validation_images": len(this.data.splits.validation),
        "weights_sha256": weight_hash(network),
        "seconds": seconds,
        "result": result,
    }


def _trainer(this: Run, stage: Fit, table: EpochTable) -> pl.Trainer:
    """Return the Trainer of a stage, which is one long epoch to Lightning (see ``ImageDataModule``)."""
    config, place = this.config, this.place(stage)
    ema = [EMAWeightAveraging(decay=config.optimizer.ema_decay)] if config.optimizer.ema_decay else []
    return pl.Trainer(
        accelerator=config.trainer.accelerator,
        devices=1,
        precision=config.trainer.precision,
        max_steps=stage.steps,
        max_epochs=1,
        val_check_interval=stage.epoch_steps,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if this.judged(stage) else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=place.path,
        plugins=[WholeCheckpointIO()],
        # The order matters: the table sees averaged weights in a validation, a checkpoint sees all that the others did.
        callbacks=[
            StepRandomness(Key(config.seed, stage.name)),
            table,
            *ema,
            Progress(this.observer, stage.epoch_steps),
            Checkpoints(place.checkpoints, config.callbacks.checkpoint_minutes, stage.epoch_steps, this.signals),
        ],
    )


class Progress(pl.Callback):
    """Hands each step's values to an observer."""

    def __init__(self, observer: Observer, epoch_steps: int) -> None:
        self._observer = observer
        self._epoch_steps = epoch_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report the step."""
        step, steps = trainer.global_step, trainer.max_steps
        epoch, epochs = (-(-count // self._epoch_steps) for count in (step, steps))
        self._observer.progress(step / steps, {"epoch": f"{epoch}/{epochs}", **outputs})


def _newest(this: Run, stage: Fit) -> Path | None:
    """Return the checkpoint to go on from; damaged ones are named and removed."""
    checkpoint, damaged = newest_sound(this.place(stage).checkpoints)
    for path in damaged:
        instead = f"going on from {checkpoint.name}" if checkpoint else f"stage {stage.name} starts anew"
        this.observer.say(f"warning: {path} is damaged (its checksum differs): {instead}")
        path.unlink()
    return checkpoint


def _loggers(config: Config, place: RunFolder, before: Mapping[str, Any] | None) -> list[Logger]:
    if not config.logger.tensorboard:
        return []
    from pytorch_lightning.loggers import TensorBoardLogger

    purge = before["global_step"] + 1 if before else 0
    return [TensorBoardLogger(place.path / "tensorboard", name="", version="", purge_step=purge)]


def label(this: Run, stage: Label) -> dict[str, Any]:
    """Let a stage's teacher label the pool, without noise, and return its entry in the ledger."""
    place, pool, source = this.place(stage), this.data.splits.pool, this.data.source
    started = time.monotonic()
    network = this.network(stage.teacher)
    found = _answers(this, network, pool, lambda share: share)
    write_probabilities(place.path, found.probabilities)
    probabilities = read_probabilities(place.path)  # what the student will see, also in a run that resumes here
    chosen = stage.select(probabilities)
    write_table(place.path, source, pool, probabilities, chosen)
    return {
        "name": stage.name,
        "kind": "label",
        "teacher": stage.teacher,
        "teacher_sha256": weight_hash(network),
        "seconds": round(time.monotonic() - started, 3),
        "result": quality(source, pool, probabilities, chosen),
    }


def test(this: Run) -> None:
    """Measure every network on the test sets, once, after the last stage, and finish the record."""
    result: dict[str, float] = {}
    fits, splits = [stage for stage in this.plan if isinstance(stage, Fit)], this.data.splits
    others = {f"test-{name}": indices for name, indices in splits.others.items()}
    for number, stage in enumerate(fits):
        entry = this.record.stage(stage.name)
        assert entry is not None  # noqa: S101 - every stage was finished before
        network, started = this.network(stage.name), time.monotonic()
        found = _answers(this, network, splits.test, lambda share, done=number: (done + share) / len(fits))  # type: ignore[misc]
        entry["answer_seconds"] = round(time.monotonic() - started, 3)
        _write_answers(this.place(stage).test_file, found)
        entry["result"] |= measure(found, network.spec.classes, "test") | measure_tasks(found, network, "test")
        if this.older is not None and len(this.older.test):
            images = this.older.images(len(this.data.source.classes))
            found = answers(network, images, this.device, lambda count: this.signals.answer())
            entry["result"] |= measure_tasks(found, network, "test")
        for name, indices in others.items():
            found = _answers(this, network, indices, lambda share, done=number: (done + 1) / len(fits))  # type: ignore[misc]
            entry["result"] |= measure(found, network.spec.classes, name) | measure_tasks(found, network, name)
        this.record.finish_stage(entry)
        if not stage.control:
            result = entry["result"]
    this.record.finish(result, [stage.name for stage in this.plan])


def _answers(this: Run, network: ImageClassifier, indices: np.ndarray, of_stage: Callable[[float], float]) -> Answers:
    """Return a network's answers; progress is shown, signals are heeded."""
    return answers(network, this.data.plain(indices), this.device, _heed(this, len(indices), of_stage))


def _heed(this: Run, images: int, of_stage: Callable[[float], float]) -> Callable[[int], None]:
    """Return what to call after each batch of images: shows progress, heeds signals."""
    done = 0

    def after_batch(just_done: int) -> None:
        nonlocal done
        done += just_done
        this.observer.progress(of_stage(done / images), {"images": f"{done}/{images}"})
        this.signals.answer()

    return after_batch


def _write_answers(file: Path, found: Answers) -> None:
    write_whole(
        file,
        lambda out: np.savez(
            out, probabilities=found.probabilities.astype(np.float16), labels=found.labels, indices=found.indices
        ),
    )
