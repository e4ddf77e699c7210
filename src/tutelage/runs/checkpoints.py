"""Checkpoints that are written whole or not at all, flushed to the disk, and checked by a digest when read.

``Checkpoints`` stands in for Lightning's ``ModelCheckpoint``, which writes in place and neither on a signal nor by
agreement of several processes.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import CheckpointIO

from tutelage.process_group import ALONE, ProcessGroup
from tutelage.runs.callbacks import ends_step
from tutelage.runs.cluster.signals import NO_REQUEST, Signals
from tutelage.runs.extra_callbacks import check_saved
from tutelage.storage import is_sound, write_checked

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
SECONDS_BETWEEN_EPOCH_ENDS = 10.0
NOT_DUE, DUE_AT_EPOCH_END, DUE_NOW = range(3)  # whether a checkpoint is due
BATCH_COUNTERS = "epoch_loop.batch_progress"  # Lightning's, in a checkpoint


class WholeCheckpointIO(CheckpointIO):
    """Writes a temporary file with a checksum, flushes and renames it; the file before it is ``previous.ckpt`` then."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``, whole or absent."""
        path = Path(path)
        keep = path.with_name(PREVIOUS) if path.name == LAST else None
        write_checked(path, lambda file: torch.save(checkpoint, file), keep)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint with torch's restricted loader, whatever the caller would allow."""
        content: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return content

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def newest_sound(folder: Path) -> tuple[Path | None, list[Path]]:
    """Return the newest checkpoint in ``folder`` whose checksum is right, and the damaged ones."""
    damaged: list[Path] = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        if is_sound(path):
            return path, damaged
        damaged.append(path)
    return None, damaged


class Checkpoints(pl.Callback):
    """Saves ``last.ckpt`` every few minutes, at ends of epochs, after the last step, and when a signal asks for it.

    Where a validation follows a step, the checkpoint is saved after the validation, never between the two.

    Several processes save together, when the clock of rank 0 or a signal to any process asks for it. They send their
    requests at the end of a step and read the others' at the end of the next, so that no process and no device waits.
    The file is the same for any number of devices and of accumulated parts.
    """

    def __init__(
        self,
        folder: Path,
        minutes: float,
        epoch_steps: int,
        signals: Signals,
        group: ProcessGroup = ALONE,
        extra: Sequence[pl.Callback] = (),
    ) -> None:
        self._file = folder / LAST
        self._seconds = minutes * 60
        self._epoch_steps = epoch_steps
        self._signals = signals
        self._group = group
        self._extra = extra
        self._saved_at = time.monotonic()
        self._read_requests: Callable[[], list[int]] = lambda: [NOT_DUE, NO_REQUEST]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where a checkpoint is due and no validation follows."""
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
        """Read the last requests, so that no collective operation is left open."""
        self._read_requests()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Check what extra callbacks save; count batches by optimizer steps, whatever the number of accumulated parts.

        Raises:
            UserError: an extra callback's state could not be read again.
        """
        check_saved(self._extra, checkpoint)
        _recount(checkpoint, lambda batches: batches // trainer.accumulate_grad_batches)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count batches by the present number of accumulated parts."""
        _recount(checkpoint, lambda steps: steps * trainer.accumulate_grad_batches)

    def _save_if_due(self, trainer: pl.Trainer, ends_epoch: bool, last: bool) -> None:
        if self._group.size == 1:  # nothing to wait for: this step's request is read at once
            self._read_requests = self._send_request()
        due, requested = self._read_requests()
        if last or requested or due == DUE_NOW or (ends_epoch and due == DUE_AT_EPOCH_END):
            trainer.save_checkpoint(self._file)
            self._saved_at = time.monotonic()
            self._signals.check(requested)
        if self._group.size > 1:  # read after the next step, so that nobody waits for it
            self._read_requests = self._send_request()

    def _send_request(self) -> Callable[[], list[int]]:
        """Send the other processes this one's request; return a function that reads the requests of all."""
        since = time.monotonic() - self._saved_at
        due = (
            DUE_NOW if since >= self._seconds else DUE_AT_EPOCH_END if since >= SECONDS_BETWEEN_EPOCH_ENDS else NOT_DUE
        )
        return self._group.all_reduce_max([due if self._group.is_rank0 else NOT_DUE, self._signals.requested])


def _recount(checkpoint: dict[str, Any], convert: Callable[[int], int]) -> None:
    """Convert the batch counters in a checkpoint; a batch that is not completed yet stays so."""
    for counter in checkpoint["loops"]["fit_loop"][BATCH_COUNTERS].values():
        if isinstance(counter, dict):
            incomplete = counter["processed"] - counter["completed"]
            counter |= {name: convert(counter[name]) for name in ("ready", "started", "processed")}
            counter["completed"] = counter["processed"] - incomplete
