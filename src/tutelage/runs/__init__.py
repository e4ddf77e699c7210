"""Runs: identity, folder, ledger, checkpoints, resume."""

from tutelage.runs.folder import (
    FINISHED,
    RunFolder,
    finished_run,
    is_done,
    is_finished,
    is_tested,
    last_fit,
    read_record,
    stage_folders,
    state,
    stored_config,
    tested_run,
    trained,
)
from tutelage.runs.identity import identity, run_path

__all__ = [
    "FINISHED",
    "RunFolder",
    "finished_run",
    "identity",
    "is_done",
    "is_finished",
    "is_tested",
    "last_fit",
    "read_record",
    "run_path",
    "stage_folders",
    "state",
    "stored_config",
    "tested_run",
    "trained",
]
