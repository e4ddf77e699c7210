"""Callbacks around each training step: keyed randomness, an epoch's means, the best network so far.

``EpochTable`` holds what a training step returns and what is logged by ``self.log`` or through the Trainer's logger,
which is a ``TableLogger``: its sums live in the checkpoint, so that the mean of an epoch is exact after a resume in its
middle, and no value is read from the device before the epoch ends. The run's loggers get the table's rows.
"""

import csv
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import Tensor

from tutelage.config import MONITORS
from tutelage.data import UNKNOWN
from tutelage.errors import UserError
from tutelage.models import COUNT, count_classes, cross_entropy
from tutelage.process_group import ALONE, ProcessGroup
from tutelage.randomness import Key
from tutelage.storage import write_text

LOGGED = "logged/"  # prefix in the table of what callbacks log
LIGHTNINGS_OWN = ("epoch", "step")  # names that Lightning adds to what is logged

Rows = Sequence[Mapping[str, float]]


def compute_means(sums: Mapping[str, Tensor], steps: int) -> dict[str, float]:
    """Return the means of what was summed over ``steps``: over the steps, or over the count that stands beside it.

    Beside ``accuracy`` there may be ``accuracy:count``: the number of images that it is a sum over. Without any images
    there is no mean.
    """
    counts = {name: float(sums.get(name + COUNT, steps)) for name in sums if not name.endswith(COUNT)}
    return {name: float(sums[name]) / count for name, count in counts.items() if count}


def _validation_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the metrics of all validation images, from logits (N, C) and labels (N,)."""
    measures = count_classes(logits, labels).measures()
    return {"val/loss": float(cross_entropy(logits, labels)), **{f"val/{name}": x for name, x in measures.items()}}


def ends_step(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Return whether an optimizer step follows a batch: it is the last of those that are accumulated."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class StepRandomness(pl.Callback):
    """Seeds the draws of a step (dropout, stochastic depth) by the step, so that no generator's state is saved.

    Each accumulated part of a batch has draws of its own.

    Setting a generator's seed takes a microsecond; ``torch.manual_seed`` would take a hundred.
    """

    def __init__(self, key: Key) -> None:
        self._key = key

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed torch's generators for this step and part of its batch."""
        accumulate = trainer.accumulate_grad_batches
        part = trainer.global_rank * accumulate + batch_idx % accumulate
        seed = self._key.torch_seed("step", trainer.global_step, part)
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type == "cuda":
            torch.cuda.default_generators[pl_module.device.index or 0].manual_seed(seed)


def _to_sum_dtype(number: Tensor | float) -> Tensor:
    """Return a step's value in float64, where rounding of sums is negligible (float32 on Apple's GPUs)."""
    value = torch.as_tensor(number)
    return value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)


class EpochTable(pl.Callback):
    """Means over each epoch, in ``metrics.csv`` and the run's loggers, and the best validation so far.

    The rows and the sums of the current epoch live in the checkpoint: a resumed run writes the table from there, so
    that rows past the checkpoint vanish and a mean in the middle of an epoch goes on. Values stay on the device until
    the epoch ends. Beside the means stands the newest value of each name that was logged, such as by callbacks.

    Each of several processes adds up its own batches and validates its part of the images; rows, best and saved sums
    are those of all processes, so that a checkpoint is the same on any number of devices. Rank 0 writes.
    """

    def __init__(
        self,
        file: Path,
        epoch_steps: int,
        on_best: Callable[[], None] = lambda: None,
        on_row: Callable[[Rows], None] = lambda rows: None,
        group: ProcessGroup = ALONE,
        monitor: str = MONITORS[0],
    ) -> None:
        self._group = group
        self._file = file
        self._monitor = monitor
        self._epoch_steps = epoch_steps
        self._on_best = on_best
        self._on_row = on_row
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None
        self._sums: dict[str, Tensor] = {}
        self._logged: dict[str, float | Tensor] = {}
        self._steps = 0
        self._validation: list[tuple[Tensor, Tensor]] = []
        self._seconds_before = 0.0
        self._resumed_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, the sums of the current epoch and the best so far, as plain containers; in lockstep."""
        return {
            "rows": self.rows,
            "best": self.best,
            "sums": self._mean_sums(),
            "logged": {name: float(value) for name, value in self._logged.items()},
            "steps": self._steps,
            "seconds": self._seconds(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self.rows, self.best = state_dict["rows"], state_dict["best"]
        self._sums, self._steps = state_dict["sums"], state_dict["steps"]
        self._logged = dict(state_dict["logged"])
        self._seconds_before = state_dict["seconds"]

    def keep_logged(self, values: Mapping[str, Any]) -> None:
        """Keep the newest values of names that are logged."""
        self._logged |= {name: value for name, value in values.items() if name not in LIGHTNINGS_OWN}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the table as it was at the checkpoint."""
        self._resumed_at = time.monotonic()
        self._sums = {name: _to_sum_dtype(value.to(pl_module.device)) for name, value in self._sums.items()}
        self.write()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the values of a batch; end the epoch after its last step, unless a validation follows."""
        accumulate = trainer.accumulate_grad_batches
        if "loss" not in outputs:
            raise UserError(f"{type(pl_module).__name__}.training_step returned no loss: a dict with 'loss', a tensor")
        for name, value in outputs.items():
            added = _to_sum_dtype(value) / (1 if name == "loss" else accumulate)  # Lightning has divided the loss
            self._sums[name] = self._sums[name] + added if name in self._sums else added
        self.keep_logged(trainer.logged_metrics)
        if not ends_step(trainer, batch_idx):
            return
        self._steps += 1
        step = trainer.global_step
        if step % self._epoch_steps and step != trainer.max_steps:
            return
        if not trainer.enable_validation:
            self._end_epoch(trainer, {})
        elif step % self._epoch_steps:
            trainer.should_stop = True  # Lightning validates when it stops: the last epoch, which is shorter

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch's logits and labels."""
        self._validation.append((outputs["logits"].float(), outputs["labels"]))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute validation metrics, save the network where it is the best so far, and end the epoch."""
        self.keep_logged(trainer.logged_metrics)
        logits, labels = (torch.cat(each) for each in zip(*self._validation, strict=True))
        is_labelled = labels != UNKNOWN  # the others only fill up a process's part
        logits = self._group.all_gather_rows(logits[is_labelled])
        labels = self._group.all_gather_rows(labels[is_labelled])
        self._validation = []
        metrics = self._group.broadcast_from_rank0(  # equal to the last bit, or processes would not agree on the best
            lambda: _validation_metrics(logits, labels)
        )
        if self.best is None or metrics[self._monitor] > self.best[self._monitor]:
            self.best = {"step": trainer.global_step, **metrics}
            self._on_best()
        self._end_epoch(trainer, metrics)

    def _end_epoch(self, trainer: pl.Trainer, validation: dict[str, float]) -> None:
        step = trainer.global_step
        row: dict[str, float] = {"epoch": math.ceil(step / self._epoch_steps), "step": step}
        row |= {"lr": trainer.optimizers[0].param_groups[0]["lr"]}
        row |= {f"train/{name}": mean for name, mean in compute_means(self._mean_sums(), self._steps).items()}
        if not math.isfinite(row["train/loss"]):
            raise UserError(
                f"the loss is {row['train/loss']} in epoch {row['epoch']} (steps to {step}): training has diverged; "
                "lower optimizer.lr, or check the weights that it began from"
            )
        row |= validation
        row |= {f"{LOGGED}{name}": float(value) for name, value in self._logged.items()}
        self.rows.append({**row, "seconds": round(self._seconds(), 3)})
        self._sums, self._steps = {}, 0
        self.write()
        self._on_row(self.rows)

    def _mean_sums(self) -> dict[str, Tensor]:
        """Return the sums of the current epoch as means over all processes; in lockstep."""
        if self._group.size == 1 or not self._sums:
            return self._sums
        means = self._group.all_reduce_mean(torch.stack([total.cpu() for total in self._sums.values()]))
        return dict(zip(self._sums, means, strict=True))

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._resumed_at

    def write(self) -> None:
        """Write the table."""
        if not self._group.is_rank0:
            return
        text = io.StringIO()
        if self.rows:
            names = dict.fromkeys(name for row in reversed(self.rows) for name in row)  # what is logged may begin later
            table = csv.DictWriter(text, fieldnames=list(names), lineterminator="\n")
            table.writeheader()
            table.writerows(self.rows)
        write_text(self._file, text.getvalue())


class TableLogger(Logger):
    """The Trainer's logger: what callbacks log goes into the table, and through its rows to the run's loggers.

    It does not slow a step: nothing is sent, and no value is read from the device.
    """

    def __init__(self, table: EpochTable, experiment: Callable[[], Any]) -> None:
        super().__init__()
        self._table = table
        self._experiment = experiment

    @property
    def name(self) -> str:
        """No name: the run's folder has one."""
        return ""

    @property
    def version(self) -> str:
        """No version: a run has one folder."""
        return ""

    @property
    def experiment(self) -> Any:
        """What the run's first logger writes to, such as TensorBoard's writer."""
        return self._experiment()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Give the table the newest values."""
        self._table.keep_logged(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's loggers have the whole config."""
