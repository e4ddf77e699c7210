"""Runs: identity, folder, context, and the loop over stages. What is named here needs no torch."""

from typing import TYPE_CHECKING, Any

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
from tutelage.runs.integrity import Health, inspect_run, is_complete, open_finished_run, open_tested_run

if TYPE_CHECKING:  # at run time they are imported when they are asked for, as they need the schema of the config
    from tutelage.runs.identity import run_identity, run_path

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


def __getattr__(name: str) -> Any:
    """Import what says which run a config is when it is asked for: commands that only read folders answer at once."""
    if name in {"run_identity", "run_path"}:
        from tutelage.runs import identity

        return getattr(identity, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
