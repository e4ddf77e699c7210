"""A training stage: build its network, module, data and Trainer, and fit until its last step."""

import math
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from tutelage.config import Config
from tutelage.config.targets import CODE_ERRORS, describe_failure, failures_as_user_errors, find_file, is_foreign
from tutelage.data import UNKNOWN, class_weights
from tutelage.data.loading.workers import worker_deaths
from tutelage.errors import UserError
from tutelage.models import (
    ImageClassifier,
    NearestNeighbours,
    OptimizationConfig,
    Teacher,
    compute_validation_metrics,
    evaluation_batch,
    imprint,
    load_classifier,
    load_pretrained,
    make_classifier,
    predict,
    save_classifier,
    weight_hash,
)
from tutelage.randomness import Key
from tutelage.runs.callbacks import LOGGED, EpochTable
from tutelage.runs.checkpoints import WholeCheckpointIO, newest_sound
from tutelage.runs.cluster.parallel import gather_state
from tutelage.runs.context import RunContext
from tutelage.runs.folder import TRAIN
from tutelage.runs.teachers import load_teacher, prepare_teacher
from tutelage.runs.trainer import make_trainer
from tutelage.runs.weight_sources import find_weights
from tutelage.strategies import SCRATCH, TrainStage

FEW_STEPS = 100  # optimizer steps of a stage, below which there is a warning


def fit_stage(context: RunContext, stage: TrainStage) -> dict[str, Any]:
    """Train a stage's network, from its newest checkpoint where there is one, and return its entry in the ledger."""
    config, group, folder = context.config, context.group, context.stage_folder(stage)
    network = _make_network(context, stage)
    optimizer = config.optimizer.model_copy(update={"lr": stage.lr_scale * config.optimizer.lr})
    network.configure_training(
        OptimizationConfig(
            optimizer, config.scheduler, stage.steps, _class_weights(context), stage.fine_tuning, config.loss
        )
    )
    teacher_spec = stage.teacher
    teacher = load_teacher(context, teacher_spec) if teacher_spec and not teacher_spec.features else None
    module = _make_module(context, stage, *([network] if teacher is None else [network, teacher]))

    def save_weights() -> None:
        state = gather_state(module.classifier.state_dict())
        if group.is_rank0:
            save_classifier(module.classifier, stage.model.arguments(), context.weights_file(stage), state)

    selects_best = context.selects_best(stage)
    path = group.broadcast_from_rank0(lambda: _find_checkpoint(context, stage))
    checkpoint = WholeCheckpointIO().load_checkpoint(path, "cpu") if path else None
    on_best = save_weights if selects_best else lambda: None
    table = EpochTable(
        folder.metrics_file, stage.epoch_steps, on_best, context.tracking.send, group, config.callbacks.monitor
    )
    state = checkpoint["callbacks"][table.state_key] if checkpoint else {"rows": []}
    step = checkpoint["global_step"] if checkpoint else 0
    context.say_position(stage.name, _describe_step(stage, step))
    context.tracking.begin_stage(stage.name, folder, state["rows"], step)
    if checkpoint is not None and step >= stage.steps:
        module.load_state_dict(checkpoint["state_dict"])  # averaged, where weights are averaged
        table.load_state_dict(state)
        table.write()
    else:
        if warning := few_steps_warning(config, stage):
            context.observer.say(warning)
        checkpoint = None  # Lightning reads the file again; two copies of a large network need not stay
        batch_size = evaluation_batch(module.classifier)
        data, stage_data = context.data_for(stage), replace(context.stage_data(stage), evaluation_batch=batch_size)
        if teacher_spec is not None:
            cached = prepare_teacher(context, stage, teacher_spec, network, teacher)
            stage_data = replace(stage_data, cached=cached)
        data.begin_stage(stage_data)
        trainer: Any = make_trainer(context, stage, module, table)
        parts = [module, network, network.loss_function, *trainer.callbacks]
        with group.lockstep(), _failures_of_others(stage, parts), worker_deaths():
            # weights_only: torch's safe loader; optimizer, loops and callbacks are restored too
            trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
        _check_length(stage, trainer.global_step)
    if not selects_best:
        save_weights()
    last_row = table.rows[-1]
    result = {
        name: value for name, value in (table.best or last_row).items() if "/" in name and not name.startswith(LOGGED)
    }
    return group.broadcast_from_rank0(lambda: _ledger_entry(context, stage, last_row["seconds"], result, teacher))


def _describe_step(stage: TrainStage, step: int) -> str:
    """Return in words where a stage goes on: after which of its steps, and in which epoch; nothing at its beginning."""
    if not step:
        return ""
    epoch, epochs = step // stage.epoch_steps + 1, math.ceil(stage.steps / stage.epoch_steps)
    return f"after step {step:,} of {stage.steps:,}, epoch {min(epoch, epochs):,} of {epochs:,}"


def few_steps_warning(config: Config, stage: TrainStage) -> str:
    """Return a warning where a stage has few optimizer steps: which settings give it more; else an empty text."""
    if stage.steps >= FEW_STEPS or config.debug is not None:
        return ""
    schedule = config.schedule
    whole = schedule.count_steps(stage.epoch_steps)
    needed = math.ceil(whole * FEW_STEPS / stage.steps)  # a stage may be a fraction of the schedule
    more_epochs = f"schedule.min_steps={needed} or schedule.epochs={math.ceil(needed / stage.epoch_steps)}"
    return (
        f"warning: stage {stage.name} has {stage.steps} optimizer step{'' if stage.steps == 1 else 's'}, which is few; "
        f"{f'schedule.steps={needed}' if schedule.steps else more_epochs} gives it {FEW_STEPS} or more"
    )


def _make_module(context: RunContext, stage: TrainStage, *networks: torch.nn.Module) -> Any:
    """Return the LightningModule around a stage's network and, where there is one, its teacher."""
    with failures_as_user_errors(type(context.config.strategy), f"stage {stage.name}: its module"):
        module = stage.module(*networks)
        if not isinstance(module, pl.LightningModule):
            raise TypeError(f"a LightningModule is needed, not a {type(module).__name__}")
        return module


@contextmanager
def _failures_of_others(stage: TrainStage, objects: Sequence[object]) -> Iterator[None]:
    """Turn errors of training into a UserError of one line where they come from a class that is not ours.

    Args:
        stage: the stage that is trained.
        objects: what takes part in it: its module and network, then others.
    """
    try:
        yield
    except (*CODE_ERRORS, MisconfigurationException) as error:
        files = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
        foreign = [type(each) for each in objects if is_foreign(type(each))]
        trained = [type(each) for each in objects[:2] if is_foreign(type(each))]  # their mistakes may show elsewhere
        culprits = [cls for cls in foreign if find_file(cls) in files] or trained
        if not culprits:
            raise
        reason = describe_failure(error, find_file(culprits[0]))
        raise UserError(f"stage {stage.name}: {culprits[0].__name__}: {reason}") from error


def _check_length(stage: TrainStage, step: int) -> None:
    """Raise a UserError where a callback has ended a stage before its last step."""
    if step < stage.steps:
        raise UserError(
            f"callbacks.extra: a callback has ended stage {stage.name} at step {step} of {stage.steps}; a run has the "
            "length of its schedule: set schedule.epochs or schedule.steps"
        )


def fit_in_one_pass(context: RunContext, stage: TrainStage) -> dict[str, Any]:
    """Let a network learn the labelled images in one pass, without steps; return the stage's entry in the ledger.

    Nearest neighbours store them; another network's newest class is imprinted.
    """
    context.say_position(stage.name)
    data, started = context.data, time.monotonic()
    labelled, validation = data.splits.labelled, data.splits.validation
    network = _make_network(context, stage).to(context.device)
    folder = context.stage_folder(stage).checkpoints
    folder.mkdir(parents=True, exist_ok=True)
    batch_size = evaluation_batch(network)
    batches = data.eval_dataloader(labelled, batch_size)
    if isinstance(network, NearestNeighbours):
        network.memorise(batches, len(labelled), folder, context.on_images(len(labelled)))
    else:
        imprint(network, batches, context.on_images(len(labelled)))
    result: dict[str, float] = {}
    if context.has_validation:
        batches = data.eval_dataloader(validation, batch_size)
        predictions = predict(network, batches, context.device, context.after_batch)
        result = compute_validation_metrics(predictions, network.spec.classes)
    save_classifier(network, stage.model.arguments(), context.weights_file(stage))
    return _ledger_entry(context, stage, round(time.monotonic() - started, 3), result)


def _make_network(context: RunContext, stage: TrainStage) -> ImageClassifier:
    """Return a stage's network at its start, with random weights, those of an earlier stage, or of ``init_from``."""
    config = context.config
    torch.manual_seed(Key(config.seed, stage.name).torch_seed("initial weights"))
    network = make_classifier(stage.model.arguments(), context.stage_image_spec(stage))
    if stage.starts_from:
        earlier = context.load_network(stage.starts_from)
        network.load_state_dict(earlier.state_dict())
        network.normalise_by(earlier.spec.mean, earlier.spec.std)
    elif context.previous_run is not None:
        context.previous_run.give_weights(network)
    elif config.init_from is not None and stage.starts_from != SCRATCH:
        load_pretrained(network, find_weights(config.init_from, "init_from"))
    return network


def _class_weights(context: RunContext) -> tuple[float, ...] | None:
    """Return the weight of each class in the loss; None where all weigh the same."""
    if context.config.data.balance != "weights":
        return None
    labels = context.data.source.labels[context.data.splits.labelled]
    return class_weights(labels, len(context.image_spec.classes))


def _find_checkpoint(context: RunContext, stage: TrainStage) -> str | None:
    """Return the newest sound checkpoint of a stage; name and remove damaged ones, and make the folder."""
    folder = context.stage_folder(stage).checkpoints
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, damaged = newest_sound(folder)
    for path in damaged:
        instead = f"going on from {checkpoint.name}" if checkpoint else f"stage {stage.name} starts anew"
        context.observer.say(f"warning: {path} is damaged (its checksum differs): {instead}")
        path.unlink()
    return str(checkpoint) if checkpoint else None


def _ledger_entry(
    context: RunContext, stage: TrainStage, seconds: float, result: dict[str, float], teacher: Teacher | None = None
) -> dict[str, Any]:
    """Return the ledger's entry of a stage that ended with a network."""
    network, streams = load_classifier(context.weights_file(stage)), stage.streams(context.selections)
    labelled = [stream.targets for stream in streams if stream.name != "pool" and stream.targets.ndim == 1]
    options = {
        "note": stage.note,
        "starts_from": stage.starts_from,
        "teacher_sha256": [weight_hash(each) for each in teacher.networks] if teacher else None,
        "image_size": stage.image_size,
        "aims_at": stage.aims_at,
    }
    return {
        "name": stage.name,
        "kind": TRAIN,
        "control": stage.control,
        **{name: value for name, value in options.items() if value},
        **({} if stage.select_best else {"select_best": False}),
        **({} if stage.augmented else {"augmented": False}),
        "model": stage.model.arguments(),
        "parameters": sum(p.numel() for p in network.parameters()),
        "bytes": sum(file.stat().st_size for file in context.stage_outputs(stage)),
        "steps": 0 if stage.one_pass else stage.steps,
        "labels": sum(int((targets != UNKNOWN).sum()) for targets in labelled),
        "validation": context.data.splits.validation_kind,
        "validation_images": len(context.data.splits.validation),
        "weights_sha256": weight_hash(network),
        **context.describe_outputs(stage),
        "seconds": seconds,
        "result": result,
    }
