"""The callbacks of ``callbacks.extra``: built by their ``_target_``, and those refused that a run cannot keep."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks as lightning

from tutelage.config.targets import build, resolve
from tutelage.errors import UserError

KEY = "callbacks.extra"
LIGHTNING_CALLBACKS = ("pytorch_lightning.callbacks",)  # allowed without --allow

CHECKED_ELSEWHERE = ("callbacks", "state_dict", "optimizer_states")  # of a checkpoint; the last two are large and ours

# Callbacks that would take over what a run does itself, and what to set instead. Subclasses are refused, too.
REFUSED: dict[type[pl.Callback], str] = {
    lightning.EarlyStopping: "a run has the length of its schedule (schedule.epochs or schedule.steps), and keeps the "
    "weights of its best epoch",
    lightning.Timer: "a run has the length of its schedule (schedule.epochs or schedule.steps); one that is stopped "
    "goes on by the same command",
    lightning.Checkpoint: "the run saves itself, every callbacks.checkpoint_minutes, and keeps its best weights",
    lightning.GradientAccumulationScheduler: "set trainer.accumulate",
    lightning.BatchSizeFinder: "set data.batch_size",
    lightning.LearningRateFinder: "set optimizer.lr; a sweep (sweep=...) tries several",
    lightning.StochasticWeightAveraging: "set optimizer.ema_decay",
    lightning.WeightAveraging: "set optimizer.ema_decay",
    lightning.BaseFinetuning: "choose strategy=transfer_frozen, transfer_finetune or transfer_gradual",
    lightning.ModelPruning: "it renames the weights, which other runs and 'tutelage evaluate' could not read then",
    lightning.ProgressBar: "set callbacks.display",
    lightning.LambdaCallback: "its arguments are functions, which a config cannot hold: write a class and name that",
}


def make_extra_callbacks(entries: Sequence[dict[str, Any]], taken: Sequence[str]) -> list[pl.Callback]:
    """Return the callbacks of ``callbacks.extra``.

    Args:
        entries: ``_target_`` and arguments of each.
        taken: names in a checkpoint that are not free for their state.

    Raises:
        UserError: a class is not allowed, is no callback, is refused here or refuses its arguments, or its state
            cannot be in a checkpoint.
    """
    made: list[pl.Callback] = []
    for number, entry in enumerate(entries):
        key = f"{KEY}[{number}]"
        _refuse_conflicting(resolve(str(entry["_target_"]), pl.Callback, key, LIGHTNING_CALLBACKS), key)
        try:
            callback: pl.Callback = build(entry, pl.Callback, key, LIGHTNING_CALLBACKS)
        except UserError:
            raise
        except Exception as error:  # Lightning and others have their own
            reason = " ".join(str(error).split())
            raise UserError(f"{key}: {entry['_target_']} refuses its arguments: {reason}") from None
        _check_state(callback, key, [*taken, *(other.state_key for other in made)])
        made.append(callback)
    return made


def check_saved(callbacks: Sequence[pl.Callback], checkpoint: Mapping[str, Any]) -> None:
    """Check what extra callbacks have put into a checkpoint, before it replaces one that can be read.

    Raises:
        UserError: torch's restricted loader would refuse it.
    """
    for number, callback in enumerate(callbacks):
        _check_loadable(checkpoint["callbacks"].get(callback.state_key), _describe_state(callback, f"{KEY}[{number}]"))
    if callbacks:
        rest = {name: value for name, value in checkpoint.items() if name not in CHECKED_ELSEWHERE}
        _check_loadable(rest, f"{KEY}: what an on_save_checkpoint() adds")


def _refuse_conflicting(cls: type, key: str) -> None:
    for base, instead in REFUSED.items():
        if issubclass(cls, base):
            raise UserError(f"{key}: {cls.__name__} is not for a run: {instead}")


def _check_state(callback: pl.Callback, key: str, taken: Sequence[str]) -> None:
    """Raise a UserError unless a callback's state can be saved in a checkpoint and read from it."""
    cls = type(callback)
    if cls.state_dict is pl.Callback.state_dict:
        return
    if callback.state_key in taken:
        raise UserError(
            f"{key}: another callback keeps its state under the name {callback.state_key!r}: give {cls.__name__} a "
            "state_key of its own"
        )
    _check_loadable(callback.state_dict(), _describe_state(callback, key))


def _describe_state(callback: pl.Callback, key: str) -> str:
    return f"{key}: the state_dict() of {type(callback).__name__}"


def _check_loadable(content: Any, what: str) -> None:
    """Raise a UserError that begins with ``what`` where torch's restricted loader would refuse the content."""
    file = io.BytesIO()
    try:
        torch.save(content, file)
        file.seek(0)
        torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle have many
        message = " ".join(str(error).split())
        reason = (message.partition("WeightsUnpickler error: ")[2] or message)[:120]
        raise UserError(
            f"{what} cannot be in a checkpoint, which holds tensors, Python's numbers, strings and containers of them "
            f"({reason})"
        ) from None
