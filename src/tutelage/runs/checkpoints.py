"""Checkpoints that are whole, flushed to the disk and checked when read."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import CheckpointIO

from tutelage.process_group import ALONE, ProcessGroup
from tutelage.runs.callbacks import ends_step
from tutelage.runs.cluster.signals import Signals
from tutelage.storage import is_sound, write_checked

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
SECONDS_BETWEEN_EPOCH_ENDS = 10.0
NOT_YET, AT_AN_END, AT_ONCE = range(3)  # when a checkpoint is due
COUNTERS = "epoch_loop.batch_progress"  # of the batches that Lightning has shown


class WholeCheckpointIO(CheckpointIO):
    """Writes beside the target, with a checksum, flushes, renames; the last before stays as ``previous.ckpt``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``, whole or absent."""
        path = Path(path)
        keep = path.with_name(PREVIOUS) if path.name == LAST else None
        write_checked(path, lambda file: torch.save(checkpoint, file), keep)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint by torch's restricted loader, whatever the caller would allow."""
        content: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return content

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def newest_sound(folder: Path) -> tuple[Path | None, list[Path]]:
    """Return the newest checkpoint in ``folder`` that is sound, and the damaged ones that were passed over."""
    damaged: list[Path] = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        if is_sound(path):
            return path, damaged
        damaged.append(path)
    return None, damaged


class Checkpoints(pl.Callback):
    """Saves ``last.ckpt`` every so many minutes, at ends of epochs, at the end, and when a signal asks for it.

    A step after which a validation is due is saved when that is done, so that a checkpoint never lies between the two.

    Several processes save together, when the first one's clock or any one's signals say so. They tell one another at
    the end of a step and hear it at the end of the next, so that neither they nor their devices wait. What is saved is
    the same for any number of devices and of accumulated parts.
    """

    def __init__(
        self, folder: Path, minutes: float, epoch_steps: int, signals: Signals, group: ProcessGroup = ALONE
    ) -> None:
        self._file = folder / LAST
        self._seconds = minutes * 60
        self._epoch_steps = epoch_steps
        self._signals = signals
        self._group = group
        self._saved_at = time.monotonic()
        self._heard: Callable[[], list[int]] = lambda: [NOT_YET, 0]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time and no validation is due."""
        if not ends_step(trainer, batch_idx):
            return
        step = trainer.global_step
        last = step == trainer.max_steps
        ends_epoch = last or step % self._epoch_steps == 0
        if ends_epoch and trainer.enable_validation:
            return
        self._save_if_due(trainer, ends_epoch, last)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after the validation that ends an epoch."""
        self._save_if_due(trainer, ends_epoch=True, last=trainer.global_step == trainer.max_steps)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hear what was said last, so that nothing is under way any more."""
        self._heard()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count batches by optimizer steps, whatever is accumulated for one."""
        _recount(checkpoint, lambda batches: batches // trainer.accumulate_grad_batches)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count batches as they are accumulated from now on."""
        _recount(checkpoint, lambda steps: steps * trainer.accumulate_grad_batches)

    def _save_if_due(self, trainer: pl.Trainer, ends_epoch: bool, last: bool) -> None:
        if self._group.size == 1:
            self._heard = self._say()
        due, asked = self._heard()
        if last or asked or due == AT_ONCE or (ends_epoch and due == AT_AN_END):
            trainer.save_checkpoint(self._file)
            self._saved_at = time.monotonic()
            self._signals.answer(asked)
        if self._group.size > 1:
            self._heard = self._say()

    def _say(self) -> Callable[[], list[int]]:
        """Tell the other processes whether a checkpoint is due and what is asked for; return what hears all of them."""
        since = time.monotonic() - self._saved_at
        due = AT_ONCE if since >= self._seconds else AT_AN_END if since >= SECONDS_BETWEEN_EPOCH_ENDS else NOT_YET
        return self._group.largest([due if self._group.first else NOT_YET, self._signals.asked])


def _recount(checkpoint: dict[str, Any], change: Callable[[int], int]) -> None:
    """Change the numbers of batches in a checkpoint; a batch that is not completed yet stays so."""
    for counter in checkpoint["loops"]["fit_loop"][COUNTERS].values():
        if isinstance(counter, dict):
            under_way = counter["processed"] - counter["completed"]
            counter |= {name: change(counter[name]) for name in ("ready", "started", "processed")}
            counter["completed"] = counter["processed"] - under_way
