"""Runs: identity, folder, context, and the loop over stages. What is named here needs no torch."""

from tutelage.runs.folder import (
    FINISHED,
    PSEUDO_LABEL,
    TRAIN,
    RunFolder,
    is_tested,
    main_stage_name,
    read_config,
    read_record,
    stage_folders,
    train_entries,
    weights_files,
)
from tutelage.runs.identity import run_identity, run_path
from tutelage.runs.integrity import Health, inspect_run, is_complete, open_finished_run, open_tested_run

__all__ = [
    "FINISHED",
    "PSEUDO_LABEL",
    "TRAIN",
    "Health",
    "RunFolder",
    "inspect_run",
    "is_complete",
    "is_tested",
    "main_stage_name",
    "open_finished_run",
    "open_tested_run",
    "read_config",
    "read_record",
    "run_identity",
    "run_path",
    "stage_folders",
    "train_entries",
    "weights_files",
]
