"""What the tests share: one thread, no look-ups, runs in a forked copy of this process."""

import atexit
import os
import shutil
import tempfile

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # no threads that a fork would lack
os.environ["OMP_WAIT_POLICY"] = "passive"  # commands that use both cores share them with other tests
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="tutelage-tests-")  # the user's stays as it is
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # whether there is a GPU is asked without starting it: forks use it

import csv
import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from helpers import fork_server

ROOT = Path(__file__).parents[1]
Completed = subprocess.CompletedProcess[str]
QUIET = ("callbacks=quiet", "trainer.threads=1", "logger=csv")

hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
os.environ["MPLCONFIGDIR"] = str(ROOT / ".pytest_cache" / "matplotlib")  # its list of fonts takes a second to make
if fork_server.ADDRESS not in os.environ:  # in the first process of the tests
    atexit.register(fork_server.stop, fork_server.start())


def forked(work: Callable[[], int]) -> int:
    """Run ``work`` in a fork of this process, where all imports are done, and return its exit code (-9 if killed)."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])


def fork(work: Callable[[], int]) -> int:
    """Begin ``work`` in a fork of this process and return its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(outputs: Path, *overrides: str, before: Callable[[], None] = lambda: None) -> int:
    """Execute a run, quietly and with one thread, in a fork; ``before`` may set traps there."""
    fork_server.preload()
    from tutelage.app.job import execute
    from tutelage.config.compose import compose

    def work() -> int:
        before()
        return execute(compose([*QUIET, f"paths.outputs={outputs}", *overrides]))

    return forked(work)


def command(module: str, *arguments: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Completed:
    """Run what ``python -m module`` runs, in a fork where all imports are done, and return what it printed."""
    return fork_server.run_in_fork(module, *arguments, cwd=cwd, env=env)


def fresh_command(module: str, *arguments: str, **options: Any) -> Completed:
    """Run ``python -m module`` in a process of its own, its imports and all, and return what it printed."""
    options = {"cwd": ROOT, "capture_output": True, "text": True, **options}
    return subprocess.run([sys.executable, "-m", module, *arguments], **options)


def loaded_packages(module: str, *arguments: str) -> tuple[Completed, set[str]]:
    """Run ``python -m module`` and return what it printed and the packages that it imported."""
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    done = fresh_command(module, *arguments, env=environment)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done, {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


def only_run(outputs: Path) -> Path:
    """Return the folder of the one run below ``outputs``."""
    (record,) = outputs.glob("*/*/run.json")
    return record.parent


def outcome(outputs: Path) -> dict[str, Any]:
    """Return all of a run that must not depend on how often it was stopped: weights, results, tables."""
    folder = only_run(outputs)
    record = json.loads((folder / "run.json").read_text())
    kept = {"name", "result", "weights_sha256", "teacher_sha256", "steps"}
    stages = [{key: value for key, value in entry.items() if key in kept} for entry in record["stages"]]
    return {"status": record["status"], "result": record["result"], "stages": stages, "tables": tables(folder)}


def tables(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Return every metrics.csv of a run without its time column."""
    found = {}
    for file in sorted(folder.rglob("metrics.csv")):
        with file.open() as lines:
            rows: Sequence[dict[str, str]] = list(csv.DictReader(lines))
        found[str(file.relative_to(folder))] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    return found


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"
