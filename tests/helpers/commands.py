"""Commands as a user types them, and their output."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers import fork_server
from helpers.paths import ROOT

Completed = subprocess.CompletedProcess[str]


def command(module: str, *arguments: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Completed:
    """Run what ``python -m module`` runs, in a fork where all imports are done, and return what it printed."""
    return fork_server.run_in_fork(module, *arguments, cwd=cwd, env=env)


def fresh_command(module: str, *arguments: str, **options: Any) -> Completed:
    """Run ``python -m module`` in a process of its own, its imports and all, and return what it printed."""
    options = {"cwd": ROOT, "capture_output": True, "text": True, **options}
    return subprocess.run([sys.executable, "-m", module, *arguments], **options)


def loaded_packages(module: str, *arguments: str, cwd: Path = ROOT) -> tuple[Completed, set[str]]:
    """Run ``python -m module`` and return what it printed and the packages that it imported."""
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    process = fresh_command(module, *arguments, env=environment, cwd=cwd)
    lines = [line for line in process.stderr.splitlines() if line.startswith("import time:")]
    return process, {line.rpartition("|")[2].strip().split(".")[0] for line in lines}
