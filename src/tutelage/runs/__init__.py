"""Runs: identity, folder, ledger, checkpoints, resume."""

from tutelage.runs.folder import RunFolder, is_finished, read_record, state
from tutelage.runs.identity import identity, run_path

__all__ = ["RunFolder", "identity", "is_finished", "read_record", "run_path", "state"]
