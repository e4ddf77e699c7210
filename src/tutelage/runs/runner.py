"""One runner for every strategy: executes its stages, writes each finished one down, goes on where it was stopped."""

import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.loggers import Logger
from torch.utils.flop_counter import FlopCounterMode

from tutelage import __version__
from tutelage.augmentation import Pipeline
from tutelage.config import Config
from tutelage.data import (
    ImageDataModule,
    Selection,
    Training,
    data_module,
    quality,
    read_probabilities,
    write_probabilities,
    write_table,
)
from tutelage.errors import UserError
from tutelage.models import (
    Answers,
    ImageClassifier,
    ImageSpec,
    Recipe,
    answers,
    load_classifier,
    make_classifier,
    measure,
    save_classifier,
    weight_hash,
)
from tutelage.randomness import Key
from tutelage.runs.callbacks import EpochTable, StepRandomness
from tutelage.runs.checkpoints import Checkpoints, WholeCheckpointIO, newest_sound
from tutelage.runs.folder import Record, RunFolder, write_config
from tutelage.runs.interruption import Signals
from tutelage.runs.observer import Observer, StageWork
from tutelage.storage import remove_partials, write_whole
from tutelage.strategies import Fit, Label, Stage, stages

LOADING_FLOPS = 1.5e7  # what reading and augmenting an image weighs beside arithmetic, measured on small images
INFERENCE_SHARE = 1 / 3  # a forward without its backward


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
        epochs = -(-steps // self._epoch_steps)
        epoch = -(-step // self._epoch_steps)
        self._observer.progress(step / steps, {"epoch": f"{epoch}/{epochs}", **outputs})


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

    @property
    def spec(self) -> ImageSpec:
        """What the networks see and tell apart."""
        data = self.config.data
        return ImageSpec(data.channels, data.image_size, self.data.source.classes, tuple(data.mean), tuple(data.std))

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

    def network(self, name: str) -> ImageClassifier:
        """Return the network that the Fit stage ``name`` ended with."""
        stage = next(stage for stage in self.plan if stage.name == name)
        return load_classifier(self.place(stage).weights(self.validated))


def run(config: Config, folder: RunFolder, identity: dict[str, Any], observer: Observer) -> dict[str, Any]:
    """Execute a run, or what is left of it, and return its record.

    The caller holds the folder's lock.

    Raises:
        UserError: the config does not fit the data.
        Stopped: a signal asked for it; all is saved.
    """
    record = Record(folder)
    torch.set_num_threads(config.trainer.threads or record.threads or len(os.sched_getaffinity(0)))
    data = data_module(config.data)
    with Signals().watched() as signals, _quiet():
        this = Run(config, folder, record, data, signals, observer)
        this.plan = stages(config, data.source, data.splits)
        _check(this)
        folder.path.mkdir(parents=True, exist_ok=True)
        remove_partials(folder.path)
        write_config(folder, config.model_dump(mode="json"))
        if record.content and record.content["version"] != __version__:
            observer.say(f"warning: begun by version {record.content['version']}, goes on with {__version__}")
        record.begin(identity, torch.get_num_threads())
        observer.begin([*(StageWork(stage.name, _work(this, stage)) for stage in this.plan), _test_work(this)])
        try:
            for number, stage in enumerate(this.plan, start=1):
                if record.stage(stage.name) is None:
                    observer.stage(number)
                    record.finish_stage(_fit(this, stage) if isinstance(stage, Fit) else _label(this, stage))
                if isinstance(stage, Label):
                    this.selections[stage.name] = stage.select(read_probabilities(this.place(stage).path))
            observer.stage(len(this.plan) + 1)
            _test(this)
        except Exception as error:
            record.fail(f"{type(error).__name__}: {error}")
            raise
        finally:
            observer.end()
    return record.content


def _check(this: Run) -> None:
    """Build every pipeline and network once, so that what they refuse is said before anything is written.

    Raises:
        UserError: a transform, a network or the device cannot be had.
    """
    trainer = this.config.trainer
    if this.device.type == "cpu" and trainer.accelerator == "gpu":
        raise UserError("trainer.accelerator=gpu: no CUDA device is visible; use trainer=cpu or trainer=auto")
    if this.device.type == "cpu" and trainer.precision == "16-mixed":
        raise UserError("trainer.precision=16-mixed: no CUDA device is visible; use 32-true or bf16-mixed")
    Pipeline(this.config.augmentation.transforms, Key(0, "check")).check(this.data.source.images[0])
    for stage in this.plan:
        if isinstance(stage, Fit):
            make_classifier(stage.model.arguments(), this.spec)


def _fit(this: Run, stage: Fit) -> dict[str, Any]:
    """Train a stage's network, from its newest checkpoint where there is one, and return its entry in the ledger."""
    config, place = this.config, this.place(stage)
    place.checkpoints.mkdir(parents=True, exist_ok=True)
    key = Key(config.seed, stage.name)
    torch.manual_seed(key.torch_seed("initial weights"))
    network = make_classifier(stage.model.arguments(), this.spec)
    network.recipe = Recipe(config.optimizer, config.scheduler, stage.steps)
    module: Any = stage.module(network)
    weights = place.weights(this.validated)

    def keep_weights() -> None:
        save_classifier(module.classifier, stage.model.arguments(), weights)

    checkpoint = _newest(this, place, stage)
    io = WholeCheckpointIO()
    before = io.load_checkpoint(checkpoint, "cpu") if checkpoint else None
    table = EpochTable(
        place.metrics_file,
        stage.epoch_steps,
        _loggers(config, place, before),
        keep_weights if this.validated else lambda: None,
    )
    if before is not None and before["global_step"] >= stage.steps:
        module.load_state_dict(before["state_dict"])
        table.load_state_dict(before["callbacks"]["EpochTable"])
    else:
        this.data.training = Training(
            streams=stage.streams(this.selections),
            transforms=config.augmentation.transforms,
            key=lambda stream: Key(config.seed, stage.name, stream),
            steps=stage.steps,
        )
        ema = [EMAWeightAveraging(decay=config.optimizer.ema_decay)] if config.optimizer.ema_decay else []
        trainer = pl.Trainer(
            accelerator=config.trainer.accelerator,
            devices=1,
            precision=config.trainer.precision,
            deterministic="warn",
            max_steps=stage.steps,
            max_epochs=1,
            val_check_interval=stage.epoch_steps,
            check_val_every_n_epoch=None,
            limit_val_batches=1.0 if this.validated else 0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=place.path,
            plugins=[io],
            # The order matters: the table sees averaged weights in a validation, a checkpoint sees all the others did.
            callbacks=[
                StepRandomness(key),
                table,
                *ema,
                Progress(this.observer, stage.epoch_steps),
                Checkpoints(place.checkpoints, config.callbacks.checkpoint_minutes, stage.epoch_steps, this.signals),
            ],
        )
        trainer.fit(module, datamodule=this.data, ckpt_path=checkpoint, weights_only=True)
    if not this.validated:
        keep_weights()
    last = table.rows[-1]
    return {
        "name": stage.name,
        "kind": "fit",
        "control": stage.control,
        "model": stage.model.arguments(),
        "parameters": sum(p.numel() for p in network.parameters()),
        "steps": stage.steps,
        "labels": len(this.data.splits.labelled),
        "validation": this.data.splits.validation_kind,
        "weights_sha256": weight_hash(load_classifier(weights)),
        "seconds": last["seconds"],
        "result": {name: value for name, value in (table.best or last).items() if "/" in name},
    }


def _newest(this: Run, place: RunFolder, stage: Fit) -> Path | None:
    """Return the checkpoint to go on from, and say what is wrong with those that cannot be used."""
    checkpoint, damaged = newest_sound(place.checkpoints)
    for path in damaged:
        instead = f"going on from {checkpoint.name}" if checkpoint else f"stage {stage.name} starts anew"
        this.observer.say(f"warning: {path} is damaged (checksums differ): {instead}")
    return checkpoint


def _loggers(config: Config, place: RunFolder, before: Mapping[str, Any] | None) -> list[Logger]:
    if not config.logger.tensorboard:
        return []
    from pytorch_lightning.loggers import TensorBoardLogger

    purge = before["global_step"] + 1 if before else None
    return [TensorBoardLogger(place.path / "tensorboard", name="", version="", purge_step=purge)]


def _label(this: Run, stage: Label) -> dict[str, Any]:
    """Let a stage's teacher label the pool, without noise, and return its entry in the ledger."""
    place, pool, source = this.place(stage), this.data.splits.pool, this.data.source
    started = time.monotonic()
    network = this.network(stage.teacher)
    found = _answers(this, network, pool)
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


def _answers(this: Run, network: ImageClassifier, indices: np.ndarray, part: int = 0, parts: int = 1) -> Answers:
    """Return a network's answers; progress is shown (``part`` of ``parts`` of the stage), signals are heeded."""
    done = 0

    def after_batch(images: int) -> None:
        nonlocal done
        done += images
        this.observer.progress((part + done / len(indices)) / parts, {"images": f"{done}/{len(indices)}"})
        this.signals.answer()

    return answers(network, this.data.plain(indices), this.device, after_batch)


def _test(this: Run) -> None:
    """Measure every network on the test set, once, after the last stage, and finish the record."""
    result: dict[str, float] = {}
    fits = [stage for stage in this.plan if isinstance(stage, Fit)]
    for number, stage in enumerate(fits):
        entry = this.record.stage(stage.name)
        assert entry is not None  # noqa: S101 - every stage was finished before
        found = _answers(this, this.network(stage.name), this.data.splits.test, number, len(fits))
        _write_answers(this.place(stage).test_file, found)
        entry["result"] |= measure(found, this.data.source.classes, "test")
        this.record.finish_stage(entry)
        if not stage.control:
            result = entry["result"]
    order = [stage.name for stage in this.plan]
    this.record.content["stages"].sort(key=lambda entry: order.index(entry["name"]))
    this.record.finish(result)


def _write_answers(file: Path, found: Answers) -> None:
    write_whole(
        file,
        lambda out: np.savez(
            out, probabilities=found.probabilities.astype(np.float16), labels=found.labels, indices=found.indices
        ),
    )


def _work(this: Run, stage: Stage) -> float:
    """Return what a stage costs, for the estimate of the time left."""
    fits = {fit.name: fit for fit in this.plan if isinstance(fit, Fit)}
    if isinstance(stage, Fit):
        return stage.steps * stage.images_per_step * (_flops(this, stage) + LOADING_FLOPS)
    return len(this.data.splits.pool) * INFERENCE_SHARE * _flops(this, fits[stage.teacher])


def _test_work(this: Run) -> StageWork:
    """Return what testing every network costs."""
    flops = sum(_flops(this, stage) for stage in this.plan if isinstance(stage, Fit))
    return StageWork("test", len(this.data.splits.test) * INFERENCE_SHARE * flops)


def _flops(this: Run, stage: Fit) -> float:
    """Return the floating-point operations of training on one image, by a forward on the meta device."""
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network = make_classifier(stage.model.arguments(), this.spec).eval()
        size = this.spec.image_size
        network(torch.empty(1, this.spec.channels, size, size, dtype=torch.uint8))
    return float(counter.get_total_flops() / INFERENCE_SHARE)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's notes about itself off the screen; a run has its own display."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for pattern in (
            ".*does not have many workers.*",
            ".*resuming from a checkpoint that ended.*",
            ".*logging interval.*",
            ".*GPU available but not used.*",
            ".*does not have a deterministic implementation.*",
            ".*srun.* command is available.*",
            ".*isinstance.*LeafSpec.*",
        ):
            warnings.filterwarnings("ignore", pattern)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
