"""A callback and a logger of a user's own, as ``--allow helpers`` lets a config name them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger


class Decay(pl.Callback):
    """Shrinks all biases after each step, by more and more: without its state a resumed run has other weights."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.steps = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.steps += 1
        with torch.no_grad():
            for name, parameter in pl_module.named_parameters():
                if name.endswith("bias"):
                    parameter.mul_(1 - self.rate * self.steps)
        self.log("decay", self.rate * self.steps)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict["steps"]


class Unsavable(pl.Callback):
    """Has a state that a checkpoint cannot hold."""

    def state_dict(self) -> dict[str, Any]:
        return {"folder": Path()}


class Losses(pl.Callback):
    """Keeps what a checkpoint cannot hold from its third step on: numpy's numbers, in its state or beside it."""

    def __init__(self, beside: bool = False) -> None:
        self.beside = beside
        self.losses: list[Any] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx >= 2:
            self.losses.append(np.float64(batch_idx))

    def state_dict(self) -> dict[str, Any]:
        return {} if self.beside else {"losses": self.losses}

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        if self.beside:
            checkpoint["losses"] = self.losses


class Ending(pl.Callback):
    """Ends the training at its second step."""

    def on_train_batch_end(self, trainer, *rest) -> None:
        trainer.should_stop = trainer.global_step == 2


class JournalLogger(Logger):
    """Writes a line of JSON for each call; refuses rows while the file ``broken`` is beside it."""

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.file = Path(save_dir) / "journal.jsonl"

    @property
    def name(self) -> str:
        return "journal"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics, step=None) -> None:
        if (self.file.parent / "broken").exists():
            raise ConnectionError("no answer\nfrom the server")
        self._write([step, dict(metrics)])

    def log_hyperparams(self, params) -> None:
        self._write(["config", params["seed"]])

    def finalize(self, status: str) -> None:
        self._write(["end", status])

    def _write(self, line: Any) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
