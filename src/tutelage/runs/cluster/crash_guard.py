"""The guard against crash loops: a SLURM job that fails at the same step again and again is not started once more."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tutelage.data import shard_files
from tutelage.data.cached_logits import PROGRESS
from tutelage.errors import UserError
from tutelage.runs.checkpoints import newest_sound
from tutelage.runs.cluster.slurm import error_log, slurm_job
from tutelage.runs.context import RunContext
from tutelage.runs.teacher_cache import CACHE_FOLDER
from tutelage.strategies import Stage, TrainStage

MOST_FAILURES = 3  # sessions of a job that may fail at one step; the next start there is refused


def new_session(context: RunContext) -> dict[str, Any]:
    """Return the ledger's entry of a session in a SLURM job: the job, and where the session begins; else nothing.

    Only SLURM's own restarts count: where a person submits the job again, or types the command, there is a new job or
    none.

    Raises:
        UserError: the last sessions of the job began here too, and failed.
    """
    job = slurm_job()
    if job is None:
        return {}
    session = {"slurm": job.name, "restart": job.restart, **_position(context)}
    keys = ("slurm", "stage", "step", "cached_batches")
    last = context.record.content.get("sessions", [])[-MOST_FAILURES:]
    failed = [
        earlier
        for earlier in last
        if "stopped" not in earlier and all(earlier.get(key) == session[key] for key in keys)
    ]
    if len(failed) == MOST_FAILURES:
        raise UserError(
            f"SLURM job {job.name} has failed {MOST_FAILURES} times behind step {session['step']} of stage "
            f"{session['stage']} and is not tried again: {error_log(job)} may say why; "
            "to go on from there, sbatch it anew or type the command"
        )
    return session


def _position(context: RunContext) -> dict[str, Any]:
    """Return the next stage, how many of its steps or shards are done, and how many batches of logits are cached."""
    finished = {entry["name"] for entry in context.record.content.get("stages", ())}
    stage = next((stage for stage in context.stages if stage.name not in finished), None)
    if stage is None:
        return {"stage": "test", "step": 0, "cached_batches": 0}
    step = _finished_steps(context, stage)
    caches = isinstance(stage, TrainStage) and stage.teacher is not None and not stage.teacher.live and not step
    return {"stage": stage.name, "step": step, "cached_batches": _cached_batches(context) if caches else 0}


def _cached_batches(context: RunContext) -> int:
    """Return how many batches of teachers' logits are cached so far, by this run and by runs beside it."""
    files = (Path(context.config.paths.outputs) / CACHE_FOLDER).glob(f"*/{PROGRESS}")
    return sum(map(_read_batch_count, files))


def _read_batch_count(progress_file: Path) -> int:
    with suppress(OSError, ValueError, KeyError):
        return int(json.loads(progress_file.read_text())["batches"])
    return 0


def _finished_steps(context: RunContext, stage: Stage) -> int:
    """Return the optimizer steps in a stage's newest checkpoint, or the shards of a pseudo-labelling stage."""
    folder = context.stage_folder(stage)
    if not isinstance(stage, TrainStage):
        return sum(file.exists() for file in shard_files(folder.path, len(context.data.splits.pool)))
    checkpoint, _ = newest_sound(folder.checkpoints)
    if checkpoint is None:
        return 0
    content = torch.load(checkpoint, map_location="meta", mmap=True, weights_only=True)  # its weights are not read
    return int(content["global_step"])
