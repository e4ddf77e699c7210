"""Where a run's sessions in a SLURM job began, so that a job that fails at the same step again and again is ended."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tutelage.data import shard_files
from tutelage.data.cached_logits import PROGRESS
from tutelage.errors import UserError
from tutelage.runs.checkpoints import newest_sound
from tutelage.runs.cluster.slurm import log_of, slurm_job
from tutelage.runs.context import RunContext
from tutelage.runs.teacher_cache import FOLDER
from tutelage.strategies import Stage, TrainStage

FAILURES = 3  # so many sessions of a job may fail at a step: the next start there is refused


def session(context: RunContext) -> dict[str, Any]:
    """Return what the ledger notes of a session in a SLURM job: the job, and where it begins; nothing outside of one.

    A person who hands the job in again, or types the command, has a new job or none: only SLURM's own restarts count.

    Raises:
        UserError: the job began here before, and failed each time.
    """
    job = slurm_job()
    if job is None:
        return {}
    begun = {"slurm": job.name, "restart": job.restart, **_place(context)}
    where = ("slurm", "stage", "step", "answers")
    last = context.record.content.get("sessions", [])[-FAILURES:]
    failed = [one for one in last if "stopped" not in one and all(one.get(key) == begun[key] for key in where)]
    if len(failed) == FAILURES:
        raise UserError(
            f"SLURM job {job.name} has failed {FAILURES} times behind step {begun['step']} of stage "
            f"{begun['stage']} and is not tried again: {log_of(job)} may say why; "
            "to go on from there, sbatch it anew or type the command"
        )
    return begun


def _place(context: RunContext) -> dict[str, Any]:
    """Return the stage that is next and what of it is done: steps or shards, and batches of its teacher's answers."""
    finished = {entry["name"] for entry in context.record.content.get("stages", ())}
    stage = next((one for one in context.plan if one.name not in finished), None)
    if stage is None:
        return {"stage": "test", "step": 0, "answers": 0}
    step = _done(context, stage)
    asks = isinstance(stage, TrainStage) and stage.teacher is not None and not stage.teacher.live and not step
    return {"stage": stage.name, "step": step, "answers": _answers(context) if asks else 0}


def _answers(context: RunContext) -> int:
    """Return how many batches of teachers' answers are kept so far, those of runs beside this one too."""
    return sum(_batches(file) for file in (Path(context.config.paths.outputs) / FOLDER).glob(f"*/{PROGRESS}"))


def _done(context: RunContext, stage: Stage) -> int:
    if not isinstance(stage, TrainStage):
        return sum(file.exists() for file in shard_files(context.place(stage).path, len(context.data.splits.pool)))
    checkpoint, _ = newest_sound(context.place(stage).checkpoints)
    if checkpoint is None:
        return 0
    content = torch.load(checkpoint, map_location="meta", mmap=True, weights_only=True)  # its weights are not read
    return int(content["global_step"])


def _batches(progress: Path) -> int:
    with suppress(OSError, ValueError, KeyError):
        return int(json.loads(progress.read_text())["batches"])
    return 0
