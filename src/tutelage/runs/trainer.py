"""Lightning's Trainer of a training stage, with the callbacks of a run."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging

from tutelage.randomness import Key
from tutelage.runs.callbacks import EpochTable, StepRandomness, TableLogger
from tutelage.runs.checkpoints import Checkpoints, WholeCheckpointIO
from tutelage.runs.cluster.parallel import cluster_environment, lightning_strategy
from tutelage.runs.context import RunContext
from tutelage.runs.extra_callbacks import make_extra_callbacks
from tutelage.runs.progress_report import ProgressReport
from tutelage.runs.weight_averaging import warmed_up_average
from tutelage.strategies import TrainStage

LOG_EVERY_STEPS = 50  # Lightning's default: how often a callback such as LearningRateMonitor logs


def make_trainer(context: RunContext, stage: TrainStage, module: pl.LightningModule, table: EpochTable) -> pl.Trainer:
    """Return the Trainer of a stage, which is one long epoch to Lightning (see ``ImageDataModule``)."""
    config, group, folder = context.config, context.group, context.stage_folder(stage)
    settings, accumulate = config.trainer, config.trainer.accumulate
    averages = config.optimizer.ema_decay > 0 and not stage.averages_weights
    averaging = [WeightAveraging(avg_fn=warmed_up_average(config.optimizer.ema_decay))] if averages else []
    extra = make_extra_callbacks(config.callbacks.extra, [table.state_key])
    checkpoints = Checkpoints(
        folder.checkpoints, config.callbacks.checkpoint_minutes, stage.epoch_steps, context.signals, group, extra
    )
    trainer = pl.Trainer(
        accelerator=settings.accelerator,
        devices=group.world.local_size,
        num_nodes=group.size // group.world.local_size,
        strategy=lightning_strategy(group, module, settings.parallel),
        precision=settings.precision,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=config.optimizer.clip_norm,
        gradient_clip_algorithm="norm",
        sync_batchnorm=settings.sync_batchnorm and group.size > 1,
        max_steps=stage.steps,
        max_epochs=1,
        val_check_interval=stage.epoch_steps * accumulate,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if context.selects_best(stage) else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=TableLogger(table, lambda: context.tracking.experiment),
        log_every_n_steps=min(LOG_EVERY_STEPS, stage.epoch_steps),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder.path,
        plugins=[WholeCheckpointIO(), cluster_environment(group)],
        # The order matters: the table sees what others have logged in a step, and averaged weights in a validation; a
        # checkpoint sees all that the others did.
        callbacks=[
            StepRandomness(Key(config.seed, stage.name)),
            *extra,
            table,
            *averaging,
            ProgressReport(context.observer, stage.epoch_steps),
            checkpoints,
        ],
    )
    # Our own handlers are installed. Lightning's (2.6) would stop without saving, and synchronise processes each step.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer
