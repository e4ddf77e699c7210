"""The callback that reports the progress of a training stage to the run's observer."""

from typing import Any

import pytorch_lightning as pl

from tutelage.models import COUNT
from tutelage.runs.callbacks import ends_step
from tutelage.runs.observer import Observer

VALIDATION_WORK = 1  # the index of validations in the work of a training stage; the steps come first


class ProgressReport(pl.Callback):
    """Reports to an observer how far the steps of a stage are, and its validations (see ``cost.stage_costs``)."""

    def __init__(self, observer: Observer, epoch_steps: int) -> None:
        self._observer = observer
        self._epoch_steps = epoch_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report how many validations are done: some, where a run is resumed."""
        if trainer.enable_validation:
            self._report_validation(trainer, trainer.global_step // self._epoch_steps, 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report the step."""
        if not ends_step(trainer, batch_idx):
            return
        values = {
            name: value / outputs[name + COUNT] if name + COUNT in outputs else value for name, value in outputs.items()
        }
        self._observer.progress(trainer.global_step / trainer.max_steps, {**self._epoch(trainer), **values})

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Report the batch of a validation."""
        self._report_validation(trainer, self._finished_validations(trainer), batch_idx + 1)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the validation, after its metrics are computed and the weights saved."""
        self._report_validation(trainer, self._finished_validations(trainer) + 1, 0)

    def _finished_validations(self, trainer: pl.Trainer) -> int:
        """Return how many validations were finished before the one that is under way."""
        return -(-trainer.global_step // self._epoch_steps) - 1

    def _report_validation(self, trainer: pl.Trainer, finished: int, batches: int) -> None:
        count, validations = sum(map(int, trainer.num_val_batches)), -(-trainer.max_steps // self._epoch_steps)
        values = {**self._epoch(trainer), "validated": f"{batches}/{count}"} if batches else {}
        fraction = (finished + (batches / count if batches else 0)) / validations
        self._observer.progress(fraction, values, VALIDATION_WORK)

    def _epoch(self, trainer: pl.Trainer) -> dict[str, str]:
        epoch, epochs = (-(-count // self._epoch_steps) for count in (trainer.global_step, trainer.max_steps))
        return {"epoch": f"{epoch}/{epochs}"}
