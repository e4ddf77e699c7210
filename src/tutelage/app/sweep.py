"""A sweep: Hydra's launchers run its jobs, then their results are compared."""

import functools
import gc
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.app.job import command_line, locate_run, run_job, write_runs
from tutelage.app.workers import WITH_WORKERS, current_worker
from tutelage.errors import BY_SIGNAL, UserError, complain
from tutelage.sweeps.overrides import may_be_sweep
from tutelage.sweeps.search import ONE_PROCESS_EACH, check_sweep_command
from tutelage.world import read_world

if TYPE_CHECKING:  # at run time they are imported when they are needed
    from tutelage.config import Config
    from tutelage.runs import RunFolder
    from tutelage.sweeps.folder import Outcome, SweepFolder

# Launchers' packages register a schema under the name of our config; workers compose too, and would warn.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")

FAILED = 1  # exit code of a job that ended by an error that is not the user's
STOPPED = {BY_SIGNAL + number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}  # exit codes
LOCK_SECONDS, POLL_SECONDS = 120.0, 1.0  # to wait for a run that an earlier sweep still saves; between two looks


def run_sweep(overrides: Sequence[str], config_dirs: Sequence[str]) -> int:
    """Run the unfinished jobs of a sweep, compare the results of all jobs, and return 1 if any failed.

    A job that fails does not keep the others from running; a signal ends the sweep, and is the exit code.

    Raises:
        UserError: the sweep is refused before any of its jobs runs.
    """
    from tutelage.config.compose import hydra_initialized, search_path_override
    from tutelage.report.sweep_report import report_sweep
    from tutelage.runs.cluster.signals import SAVE, Stopped
    from tutelage.storage import hold_lock
    from tutelage.sweeps.folder import SweepFolder
    from tutelage.sweeps.overrides import add_default_sweeper

    command = command_line(["-m", *_config_dir_flags(config_dirs), *overrides])
    overrides = add_default_sweeper(overrides, config_dirs)
    spec = check_sweep_command(overrides, config_dirs)
    folder = SweepFolder(spec.path)
    with hold_lock(folder.lock_file, f"sweep {spec.path}"):
        folder.begin(command)
        # The overrides hold what an experiment sweeps over; Hydra must not add it again.
        hydra_overrides = [
            *search_path_override(config_dirs),
            "hydra.sweeper.params=null",
            f"hydra.sweep.subdir={spec.path.name}",
            "hydra.mode=MULTIRUN",
        ]
        if signal.getsignal(SAVE) == signal.SIG_DFL:
            signal.signal(SAVE, signal.SIG_IGN)  # between two jobs there is nothing to save
        try:
            with hydra_initialized() as hydra:
                hydra.multirun("config", run_sweep_job, [*overrides, *hydra_overrides])
        except Stopped as stopped:
            print(f"{stopped}; the same command goes on from here", file=sys.stderr)
            return stopped.exit_code
        outcomes = folder.read_outcomes()
    report_sweep(outcomes, command, spec.search)
    write_runs([(outcome.path, outcome.reason) for outcome in outcomes], is_sweep=True)
    codes = {outcome.code for outcome in outcomes}
    return max(codes & STOPPED, default=int(any(codes)))


def run_sweep_job(composed: Any) -> None:
    """Run one job of a sweep, in the process that a launcher gives it; write its outcome, and raise nothing.

    Raises:
        SystemExit: a signal stopped the job, and no worker is left to run the others.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from tutelage.config.compose import validate_config
    from tutelage.runs.cluster.signals import defer_slurm_signals
    from tutelage.sweeps.folder import SweepFolder

    defer_slurm_signals()
    hydra = HydraConfig.get()
    launcher = str(hydra.runtime.choices["hydra/launcher"])
    flags = _config_dir_flags([str(path).removeprefix("file://") for path in hydra.searchpath])
    overrides: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)  # with ${...} as in the sweep's list
    folder = SweepFolder(Path(hydra.runtime.output_dir))
    worker = current_worker() if launcher in WITH_WORKERS else None
    with worker.running_job() if worker else nullcontext(True) as may_begin:
        if not may_begin or folder.is_stopped:
            return
        shares_cores = launcher in ONE_PROCESS_EACH
        outcome = _run_and_record(
            lambda: validate_config(composed), overrides, folder, flags, shares_cores=shares_cores
        )
        gc.collect()  # a run's images and network lie in cycles: they go before the next run's come
    if worker is None and outcome is not None and outcome.code in STOPPED:
        sys.exit(outcome.code)


def record_if_complete(make_config: "Callable[[], Config]", overrides: Sequence[str], folder: "SweepFolder") -> bool:
    """Write the outcome of a job that has nothing to do, finished or refused; return whether it is such a job."""
    return _run_and_record(make_config, overrides, folder, [], only_if_complete=True) is not None


def _run_and_record(
    make_config: "Callable[[], Config]",
    overrides: Sequence[str],
    folder: "SweepFolder",
    flags: Sequence[str],
    only_if_complete: bool = False,
    shares_cores: bool = False,
) -> "Outcome | None":
    """Run a job and return its outcome; rank 0 writes it to the sweep's folder.

    Args:
        make_config: returns the job's config.
        overrides: the job's.
        folder: the sweep's.
        flags: flags that the job's command has beside its overrides.
        only_if_complete: do not run a job that has something to do, and return None.
        shares_cores: there are other jobs on this machine, each with its part of the cores.
    """
    from tutelage.runs import is_complete
    from tutelage.sweeps.folder import Outcome

    path, reason, is_rank0 = None, "", read_world().is_rank0
    announce = functools.cache(lambda: print(folder.describe_job(overrides), flush=True) if is_rank0 else None)
    try:
        config = make_config()
        location = locate_run(config)
        path = location.folder.path
        if only_if_complete and not is_complete(location.folder, config):
            return None
        announce()
        if is_rank0:
            _wait_for_lock(location.folder, folder)
        if shares_cores:
            config = _with_worker_threads(config, location.folder)
        arguments = [*flags, *overrides, *_single_run_override(overrides)]
        code = run_job(config, arguments, one_line=True, location=location)
        reason = _describe_exit_code(code)
    except UserError as error:
        announce()
        reason, code = str(error), complain(error)
    except Exception as error:
        announce()
        traceback.print_exc()
        reason, code = f"{type(error).__name__}: {error}".splitlines()[0], FAILED
    outcome = Outcome(list(overrides), path, reason, code)
    if is_rank0:
        folder.write_outcome(outcome)
    return outcome


def _describe_exit_code(code: int) -> str:
    """Return an exit code in words; nothing for 0."""
    number = code - BY_SIGNAL
    if number in signal.valid_signals():
        return f"{'stopped' if code in STOPPED else 'ended'} by {signal.Signals(number).name}"
    return f"ended with code {code}" if code else ""


def _wait_for_lock(run: "RunFolder", sweep: "SweepFolder") -> None:
    """Wait for a process that still saves a run: a job of an earlier sweep that was killed."""
    from tutelage.storage import is_held

    if is_held(run.lock_file):
        print(f"  another process holds this run: waiting for it, {LOCK_SECONDS:.0f} s at most", flush=True)
    until = time.monotonic() + LOCK_SECONDS
    while is_held(run.lock_file) and time.monotonic() < until and not sweep.is_stopped:
        time.sleep(POLL_SECONDS)


def _with_worker_threads(config: "Config", folder: "RunFolder") -> "Config":
    """Return the config of a new run with as many threads as the launcher gave this worker."""
    from tutelage.runs import read_record

    threads = os.environ.get("OMP_NUM_THREADS", "")
    if config.trainer.threads is not None or read_record(folder) is not None or not threads.isdigit():
        return config
    trainer = config.trainer.model_copy(update={"threads": max(1, int(threads))})
    return config.model_copy(update={"trainer": trainer})


def _single_run_override(overrides: Sequence[str]) -> list[str]:
    """Return the override that makes one run of a job's overrides, where they name an experiment that is a sweep."""
    return ["hydra.mode=RUN"] if any(map(may_be_sweep, overrides)) else []


def _config_dir_flags(config_dirs: Sequence[str]) -> list[str]:
    return [f"--config-dir={folder}" for folder in config_dirs]
