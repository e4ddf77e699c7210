"""A sweep: its jobs are run by Hydra's launchers, then their results are compared."""

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

from tutelage.app.job import as_typed, execute, place_of
from tutelage.app.workers import WITH_WORKERS, worker
from tutelage.errors import BY_SIGNAL, UserError, complain
from tutelage.process_group import read_world
from tutelage.sweeps.overrides import may_be_sweep
from tutelage.sweeps.search import ONE_PROCESS_EACH, check_sweep_command

if TYPE_CHECKING:  # at run time they are imported when they are needed
    from tutelage.config import Config
    from tutelage.runs import RunFolder
    from tutelage.sweeps.folder import Outcome, SweepFolder

# Launchers' packages bring a schema under the name that ours have; workers compose, and would warn, too.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")

FAILED = 1  # exit code of a job that ended by an error that is no user's
ORDERED = {BY_SIGNAL + order for order in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}  # a run's that was stopped
PATIENCE, LOOK = 120.0, 1.0  # seconds that a run is waited for which a sweep before still ends; between two looks


def sweep(overrides: Sequence[str], folders: Sequence[str]) -> int:
    """Run what is missing of a sweep, compare the results of all its jobs, and return 1 if any failed.

    A job that fails does not keep the others from running; a signal ends the sweep, and is the exit code.

    Raises:
        UserError: the sweep is refused before any of its jobs runs.
    """
    from tutelage.config.compose import search_path_override
    from tutelage.report.sweep_report import report_sweep
    from tutelage.runs.cluster.signals import SAVE, Stopped
    from tutelage.storage import hold_lock
    from tutelage.sweeps.folder import SweepFolder
    from tutelage.sweeps.overrides import add_default_sweeper

    command = as_typed(["-m", *_flags(folders), *overrides])
    overrides = add_default_sweeper(overrides, folders)
    plan = check_sweep_command(overrides, folders)
    folder = SweepFolder(plan.path)
    with hold_lock(folder.lock_file, f"sweep {plan.path}"):
        folder.begin(command)
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us, rather than end the process
        # What an experiment sweeps over stands in the overrides; Hydra must not add it again.
        of_hydra = [*search_path_override(folders), "hydra.sweeper.params=null", f"hydra.sweep.subdir={plan.path.name}"]
        if signal.getsignal(SAVE) == signal.SIG_DFL:
            signal.signal(SAVE, signal.SIG_IGN)  # between two jobs there is nothing to save
        try:
            _by_hydra(job, ["--multirun", *overrides, *of_hydra])
        except Stopped as stopped:
            print(f"{stopped}; the same command goes on from here", file=sys.stderr)
            return stopped.exit_code
        outcomes = folder.read_outcomes()
    report_sweep(outcomes, command, plan.search)
    codes = {outcome.code for outcome in outcomes}
    return max(codes & ORDERED, default=int(any(codes)))


def job(composed: Any) -> None:
    """Run one job of a sweep, in whatever process a launcher has for it; leaves a word on it, and raises nothing.

    Raises:
        SystemExit: a signal stopped it, and no worker is left to run the others.
    """
    from hydra.core.hydra_config import HydraConfig

    from tutelage.config.compose import validate_config
    from tutelage.runs.cluster.signals import defer_slurm_signals
    from tutelage.sweeps.folder import SweepFolder

    defer_slurm_signals()
    hydra = HydraConfig.get()
    launcher = str(hydra.runtime.choices["hydra/launcher"])
    folders = [str(place).removeprefix("file://") for place in hydra.searchpath]
    task, sweep_folder = list(hydra.overrides.task), SweepFolder(Path(hydra.runtime.output_dir))
    this = worker() if launcher in WITH_WORKERS else None
    with this.at_work() if this else nullcontext(True) as may_begin:
        if not may_begin or sweep_folder.is_stopped:
            return
        beside_others = launcher in ONE_PROCESS_EACH
        outcome = _done(
            lambda: validate_config(composed), task, sweep_folder, _flags(folders), beside_others=beside_others
        )
        gc.collect()  # a run's images and network lie in cycles: they go before the next run's come
    if this is None and outcome is not None and outcome.code in ORDERED:
        sys.exit(outcome.code)


def settle(config: "Callable[[], Config]", task: Sequence[str], folder: "SweepFolder") -> bool:
    """Leave a word on a job whose run is finished, or that no run belongs to; return whether it is one of these."""
    return _done(config, task, folder, [], settled_only=True) is not None


def _done(
    make: "Callable[[], Config]",
    task: Sequence[str],
    folder: "SweepFolder",
    flags: Sequence[str],
    settled_only: bool = False,
    beside_others: bool = False,
) -> "Outcome | None":
    """Run a job and return what became of it; of a group of processes one writes it to the sweep's folder, too.

    Args:
        make: gives the job's config.
        task: the job's overrides.
        folder: the sweep's.
        flags: what beside the overrides it takes to type the job as a run of its own.
        settled_only: leave a run that has something to do alone, and return None.
        beside_others: there are other jobs on this machine, each with its share of the cores.
    """
    from tutelage.runs import is_done
    from tutelage.sweeps.folder import Outcome

    path, reason, first = None, "", read_world().is_rank0
    announce = functools.cache(lambda: print(folder.describe_job(task), flush=True) if first else None)
    try:
        config = make()
        place = place_of(config)
        path = place[0].path
        if settled_only and not is_done(place[0], config):
            return None
        announce()
        if first:
            _wait_for(place[0], folder)
        if beside_others:
            config = _with_its_share(config, place[0])
        code = execute(config, [*flags, *task, *_alone(task)], line_only=True, place=place)
        reason = _told_of(code)
    except UserError as error:
        announce()
        reason, code = str(error), complain(error)
    except Exception as error:
        announce()
        traceback.print_exc()
        reason, code = f"{type(error).__name__}: {error}".splitlines()[0], FAILED
    outcome = Outcome(list(task), path, reason, code)
    if first:
        folder.write_outcome(outcome)
    return outcome


def _told_of(code: int) -> str:
    """Return an exit code in words; nothing for 0."""
    number = code - BY_SIGNAL
    if number in signal.valid_signals():
        return f"{'stopped' if code in ORDERED else 'ended'} by {signal.Signals(number).name}"
    return f"ended with code {code}" if code else ""


def _wait_for(run: "RunFolder", sweep: "SweepFolder") -> None:
    """Wait for a process that still saves a run: one that a sweep began which was killed."""
    from tutelage.storage import is_held

    if is_held(run.lock_file):
        print(f"  another process holds this run: waiting for it, {PATIENCE:.0f} s at most", flush=True)
    until = time.monotonic() + PATIENCE
    while is_held(run.lock_file) and time.monotonic() < until and not sweep.is_stopped:
        time.sleep(LOOK)


def _with_its_share(config: "Config", folder: "RunFolder") -> "Config":
    """Return the config of a run that begins with as many threads as the launcher's worker was given."""
    from tutelage.runs import read_record

    threads = os.environ.get("OMP_NUM_THREADS", "")
    if config.trainer.threads is not None or read_record(folder) is not None or not threads.isdigit():
        return config
    trainer = config.trainer.model_copy(update={"threads": max(1, int(threads))})
    return config.model_copy(update={"trainer": trainer})


def _alone(task: Sequence[str]) -> list[str]:
    """Return what it takes to type a job's overrides as one run, where what they name is itself a sweep."""
    return ["hydra.mode=RUN"] if any(map(may_be_sweep, task)) else []


def _flags(folders: Sequence[str]) -> list[str]:
    return [f"--config-dir={folder}" for folder in folders]


def answer_by_hydra(arguments: Sequence[str]) -> int:
    """Let Hydra answer its own flags; return the exit code."""
    codes = [0]

    def alone(composed: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        from tutelage.config.compose import validate_config

        try:
            codes.append(execute(validate_config(composed), list(HydraConfig.get().overrides.task)))
        except UserError as error:
            codes.append(complain(error))

    _by_hydra(alone, arguments)
    return max(codes)


def _by_hydra(task: Callable[[Any], None], arguments: Sequence[str]) -> None:
    """Let Hydra do what the arguments say."""
    import hydra

    from tutelage.config.options import conf_dir

    sys.argv[1:] = arguments
    hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(task)()
