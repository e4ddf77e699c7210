"""Runs: identity, folder, ledger, checkpoints, resume."""

from tutelage.runs.folder import FINISHED, RunFolder, read_record
from tutelage.runs.identity import identity, run_path

__all__ = ["FINISHED", "RunFolder", "identity", "read_record", "run_path"]
