"""How stages that train are executed."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.loggers import Logger

from tutelage.data import UNKNOWN, class_weights
from tutelage.models import (
    ImageClassifier,
    NearestNeighbours,
    OptimizationConfig,
    Teacher,
    compute_metrics,
    load_classifier,
    load_first_task,
    load_pretrained,
    make_classifier,
    predict,
    save_classifier,
    weight_hash,
)
from tutelage.randomness import Key
from tutelage.runs.callbacks import EpochTable, StepRandomness, ends_step
from tutelage.runs.checkpoints import Checkpoints, WholeCheckpointIO, newest_sound
from tutelage.runs.cluster.parallel import environment_of, gathered, strategy_of
from tutelage.runs.context import RunContext
from tutelage.runs.evaluate import heed
from tutelage.runs.folder import RunFolder
from tutelage.runs.observer import Observer
from tutelage.runs.teacher_cache import teach, teacher_of
from tutelage.runs.weight_sources import weights
from tutelage.strategies import SCRATCH, TrainStage


def fit(context: RunContext, stage: TrainStage) -> dict[str, Any]:
    """Train a stage's network, from its newest checkpoint where there is one, and return its entry in the ledger."""
    config, place = context.config, context.place(stage)
    group = context.group
    network = _new(context, stage)
    optimizer = config.optimizer.model_copy(update={"lr": stage.lr_scale * config.optimizer.lr})
    network.configure_training(
        OptimizationConfig(optimizer, config.scheduler, stage.steps, _weights_of_classes(context), stage.fine_tuning)
    )
    teaching = stage.teacher
    teacher = teacher_of(context, teaching) if teaching and not teaching.features else None
    module: Any = stage.module(network) if teacher is None else stage.module(network, teacher)

    def keep_weights() -> None:
        state = gathered(module.classifier.state_dict())
        if group.first:
            save_classifier(module.classifier, stage.model.arguments(), context.weights(stage), state)

    checkpoint = group.broadcast_from_rank0(lambda: _newest(context, stage))
    before = WholeCheckpointIO().load_checkpoint(checkpoint, "cpu") if checkpoint else None
    on_best = keep_weights if context.judged(stage) else lambda: None
    table = EpochTable(place.metrics_file, stage.epoch_steps, _loggers(context, place, before), on_best, group)
    if before is not None and before["global_step"] >= stage.steps:
        module.load_state_dict(before["state_dict"])  # averaged, where weights are averaged
        table.load_state_dict(before["callbacks"]["EpochTable"])
    else:
        before = None  # Lightning reads the file again; two copies of a large network need not stay
        data = context.data_of(stage)
        data.training = context.training(stage)
        if teaching is not None:
            data.training = replace(data.training, kept=teach(context, stage, teaching, network, teacher))
        trainer = _trainer(context, stage, module, table)
        with group.in_step():
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if not context.judged(stage):
        keep_weights()
    last = table.rows[-1]
    result = {name: value for name, value in (table.best or last).items() if "/" in name}
    return group.broadcast_from_rank0(lambda: _entry(context, stage, last["seconds"], result, teacher))


def memorise(context: RunContext, stage: TrainStage) -> dict[str, Any]:
    """Let a network store the labelled images, in one pass, and return its entry in the ledger."""
    splits, started = context.data.splits, time.monotonic()
    network = _new(context, stage).to(context.device)
    assert isinstance(network, NearestNeighbours)  # noqa: S101 - no other stage is of one pass
    folder = context.place(stage).checkpoints
    folder.mkdir(parents=True, exist_ok=True)
    batches = context.data.plain(splits.labelled)
    network.memorise(batches, len(splits.labelled), folder, heed(context, len(splits.labelled), lambda share: share))
    result: dict[str, float] = {}
    if context.validated:
        found = predict(network, context.data.plain(splits.validation), context.device, lambda images: context.answer())
        result = {"val/accuracy": compute_metrics(found, context.data.source.classes, "val")["val/accuracy"]}
    save_classifier(network, stage.model.arguments(), context.weights(stage))
    return _entry(context, stage, round(time.monotonic() - started, 3), result)


def _new(context: RunContext, stage: TrainStage) -> ImageClassifier:
    """Return a stage's network as it begins: random weights of its key, or those of ``init_from``."""
    config = context.config
    torch.manual_seed(Key(config.seed, stage.name).torch_seed("initial weights"))
    network = make_classifier(stage.model.arguments(), context.sees(stage))
    if stage.starts_from:
        before = context.network(stage.starts_from)
        network.load_state_dict(before.state_dict())
        network.normalise_by(before.spec.mean, before.spec.std)
    elif context.older is not None:
        load_first_task(network, context.older.network)
    elif config.init_from is not None and stage.starts_from != SCRATCH:
        load_pretrained(network, weights(config.init_from, "init_from"))
    return network


def _weights_of_classes(context: RunContext) -> tuple[float, ...] | None:
    source = context.data.source
    if context.config.data.balance != "weights":
        return None
    return class_weights(source.labels[context.data.splits.labelled], len(context.spec.classes))


def _entry(
    context: RunContext, stage: TrainStage, seconds: float, result: dict[str, float], teacher: Teacher | None = None
) -> dict[str, Any]:
    """Return the ledger's entry of a stage that ended with a network."""
    network, streams = load_classifier(context.weights(stage)), stage.streams(context.selections)
    return {
        "name": stage.name,
        "kind": "fit",
        "control": stage.control,
        **({"told": stage.note} if stage.note else {}),
        **({"after": stage.starts_from} if stage.starts_from else {}),
        **({"teacher_sha256": [weight_hash(one) for one in teacher.networks]} if teacher else {}),
        **({} if stage.select_best else {"judged": False}),
        **({"image_size": stage.image_size} if stage.image_size else {}),
        "model": stage.model.arguments(),
        "parameters": sum(p.numel() for p in network.parameters()),
        "bytes": sum(file.stat().st_size for file in context.left_by(stage)),
        "steps": 0 if stage.one_pass else stage.steps,
        "labels": sum(int((s.targets != UNKNOWN).sum()) for s in streams if s.name != "pool" and s.targets.ndim == 1),
        "validation": context.data.splits.validation_kind,
        "validation_images": len(context.data.splits.validation),
        "weights_sha256": weight_hash(network),
        "seconds": seconds,
        "result": result,
    }


def _trainer(context: RunContext, stage: TrainStage, module: pl.LightningModule, table: EpochTable) -> pl.Trainer:
    """Return the Trainer of a stage, which is one long epoch to Lightning (see ``ImageDataModule``)."""
    config, place, group = context.config, context.place(stage), context.group
    asked, pieces = config.trainer, config.trainer.accumulate
    averaged = config.optimizer.ema_decay > 0 and not stage.averages_weights
    ema = [EMAWeightAveraging(decay=config.optimizer.ema_decay)] if averaged else []
    trainer = pl.Trainer(
        accelerator=asked.accelerator,
        devices=group.world.local_size,
        num_nodes=group.size // group.world.local_size,
        strategy=strategy_of(group, module, asked.parallel),
        precision=asked.precision,
        accumulate_grad_batches=pieces,
        sync_batchnorm=asked.sync_batchnorm and group.size > 1,
        max_steps=stage.steps,
        max_epochs=1,
        val_check_interval=stage.epoch_steps * pieces,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if context.judged(stage) else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=place.path,
        plugins=[WholeCheckpointIO(), environment_of(group)],
        # The order matters: the table sees averaged weights in a validation, a checkpoint sees all that the others did.
        callbacks=[
            StepRandomness(Key(config.seed, stage.name)),
            table,
            *ema,
            Progress(context.observer, stage.epoch_steps),
            Checkpoints(
                place.checkpoints, config.callbacks.checkpoint_minutes, stage.epoch_steps, context.signals, group
            ),
        ],
    )
    # Our own handlers are in. Lightning's would stop without saving, and let processes and devices wait in each step.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


class Progress(pl.Callback):
    """Hands each step's values to an observer."""

    def __init__(self, observer: Observer, epoch_steps: int) -> None:
        self._observer = observer
        self._epoch_steps = epoch_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report the step."""
        if not ends_step(trainer, batch_idx):
            return
        step, steps = trainer.global_step, trainer.max_steps
        epoch, epochs = (-(-count // self._epoch_steps) for count in (step, steps))
        self._observer.progress(step / steps, {"epoch": f"{epoch}/{epochs}", **outputs})


def _newest(context: RunContext, stage: TrainStage) -> str | None:
    """Return the checkpoint to go on from; damaged ones are named and removed, and a first one gets a folder."""
    context.place(stage).checkpoints.mkdir(parents=True, exist_ok=True)
    checkpoint, damaged = newest_sound(context.place(stage).checkpoints)
    for path in damaged:
        instead = f"going on from {checkpoint.name}" if checkpoint else f"stage {stage.name} starts anew"
        context.observer.say(f"warning: {path} is damaged (its checksum differs): {instead}")
        path.unlink()
    return str(checkpoint) if checkpoint else None


def _loggers(context: RunContext, place: RunFolder, before: Mapping[str, Any] | None) -> list[Logger]:
    if not (context.config.logger.tensorboard and context.group.first):
        return []
    from pytorch_lightning.loggers import TensorBoardLogger

    purge = before["global_step"] + 1 if before else 0
    return [TensorBoardLogger(place.path / "tensorboard", name="", version="", purge_step=purge)]
