"""Checkpoints that are whole, flushed to the disk and checked when read."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import CheckpointIO

from tutelage.runs.interruption import Signals
from tutelage.storage import is_sound, write_checked

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
SECONDS_BETWEEN_EPOCH_ENDS = 10.0


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
    """

    def __init__(self, folder: Path, minutes: float, epoch_steps: int, signals: Signals) -> None:
        self._file = folder / LAST
        self._seconds = minutes * 60
        self._epoch_steps = epoch_steps
        self._signals = signals
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals back: Lightning has put its own handler around ours, which stops without saving."""
        self._signals.install()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time and no validation is due."""
        step = trainer.global_step
        last = step == trainer.max_steps
        ends_epoch = last or step % self._epoch_steps == 0
        if ends_epoch and trainer.enable_validation:
            return
        self._save_if_due(trainer, ends_epoch, last)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after the validation that ends an epoch."""
        self._save_if_due(trainer, ends_epoch=True, last=trainer.global_step == trainer.max_steps)

    def _save_if_due(self, trainer: pl.Trainer, ends_epoch: bool, last: bool) -> None:
        since = time.monotonic() - self._saved_at
        due = since >= (min(self._seconds, SECONDS_BETWEEN_EPOCH_ENDS) if ends_epoch else self._seconds)
        if due or last or self._signals.wanted:
            trainer.save_checkpoint(self._file)
            self._saved_at = time.monotonic()
            self._signals.answer()
