"""One job: from a config to an exit code. Trains a run, goes on with it, or shows the result of a finished one."""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tutelage.config.allowed_folder import list_flag_packages
from tutelage.config.targets import ALLOW_FLAG
from tutelage.errors import UserError

if TYPE_CHECKING:  # at run time they are imported when they are needed
    from tutelage.config import Config
    from tutelage.process_group import ProcessGroup
    from tutelage.runs import RunFolder
    from tutelage.runs.tracking import RunTracking
    from tutelage.world import World

LAUNCHED = "TUTELAGE_LAUNCHED"  # environment variable of a process that app.launch has started: its parent's pid

RUNS_FILE = "TUTELAGE_RUNS_FILE"  # environment variable: the file by which tutelage.run() learns which runs there are


class RunLocation(NamedTuple):
    """The folder of a config's run, and the fingerprint of the data, which the folder's name depends on."""

    folder: "RunFolder"
    fingerprint: str


def run_job(
    config: "Config",
    arguments: Sequence[str] = (),
    one_line: bool = False,
    location: RunLocation | None = None,
) -> int:
    """Train a run, go on with it, or show its result; return the exit code.

    A run on several devices has a process for each: torchrun or srun starts them, and each calls this; or this starts
    them.

    Args:
        config: the whole config.
        arguments: the command line, for the record.
        one_line: show the result in one line, not as a table.
        location: what ``locate_run`` returns, where it is known.

    Raises:
        UserError: a mistake of the user's.
    """
    from tutelage.process_group import ALONE
    from tutelage.runs import is_complete
    from tutelage.runs.cluster.process_checks import check_batches, count_processes
    from tutelage.runs.cluster.slurm import leave_to_slurm
    from tutelage.world import read_world

    world = read_world()
    if world.size > 1:
        check_batches(config, count_processes(config.trainer, world))
        return leave_to_slurm(_run_in_group(config, arguments, one_line, location, world))
    location = location or locate_run(config)
    if not is_complete(location.folder, config):
        processes = count_processes(config.trainer, world)
        check_batches(config, processes)
        if not one_line:
            _print_plan(config, location)
        if processes > 1:
            from tutelage.app.launch import launch_processes

            code = launch_processes(config, arguments, processes)
        else:
            code = leave_to_slurm(train_run(config, location, arguments, ALONE))
        if code:
            return code
    elif not one_line:
        print(f"finished run: {location.folder.path}", file=sys.stderr)
    _show_result(config, location.folder, one_line)
    if not one_line:
        write_runs([(location.folder.path, "")], is_sweep=False)
    return 0


def write_runs(runs: Sequence[tuple[Path | None, str]], is_sweep: bool) -> None:
    """Tell the ``tutelage.run()`` that started this process, if one did, which runs the command has ended with.

    Args:
        runs: the folder of each, None where there is none, and why it has no result, which is empty where it has one.
        is_sweep: whether they are the jobs of a sweep.
    """
    from tutelage.storage import write_json

    if file := os.environ.get(RUNS_FILE):
        lines = [[None if path is None else str(path), reason] for path, reason in runs]
        write_json(Path(file), {"runs": lines, "is_sweep": is_sweep})


def _run_in_group(
    config: "Config",
    arguments: Sequence[str],
    one_line: bool,
    location: RunLocation | None,
    world: "World",
) -> int:
    """Do as ``run_job`` does, as one of several processes: rank 0 decides, writes and prints."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before torch starts: each process would print warnings
    from tutelage.errors import RANK0_HEAD_START_SECONDS, USER_ERROR
    from tutelage.process_group import join_process_group
    from tutelage.runs import RunFolder, is_complete
    from tutelage.runs.cluster.process_checks import propagate_failure, uses_gpu

    def locate() -> list[str]:
        folder, fingerprint = location or locate_run(config)
        return [str(folder.path), fingerprint]

    group, code = join_process_group(world, uses_gpu(config.trainer)), 0
    try:
        with propagate_failure(group):
            path, fingerprint = group.broadcast_from_rank0(locate)
            folder = RunFolder(Path(path))
            if not group.broadcast_from_rank0(lambda: is_complete(folder, config)):
                location = RunLocation(folder, fingerprint)
                if group.is_rank0 and not one_line and not is_launched():
                    _print_plan(config, location)
                code = train_run(config, location, arguments, group)
    except UserError:
        if group.is_rank0:
            raise
        code = USER_ERROR
    finally:
        group.close()
    if code == USER_ERROR and world.started_by == "srun":
        time.sleep(RANK0_HEAD_START_SECONDS)
    if not code and group.is_rank0 and not is_launched():
        _show_result(config, folder, one_line)
    return code


def _print_plan(config: "Config", location: RunLocation) -> None:
    """Print what the recipe has chosen, if there is one, and whether a new run looks like an older one made longer."""
    from tutelage.runs import run_identity
    from tutelage.runs.siblings import find_other_schedule
    from tutelage.terminal.recipe import describe_recipe

    for line in describe_recipe(config):
        print(line, file=sys.stderr)
    if location.folder.record_file.exists() or config.strategy.adds_task:
        return
    other = find_other_schedule(location.folder, run_identity(config, location.fingerprint))
    if other is not None:
        print(
            f"note: a new run, from its first step on: {other}, which is finished, has another schedule and is the "
            f"same otherwise. To begin from its network, add init_from={other}",
            file=sys.stderr,
        )


def is_launched() -> bool:
    """Return whether ``app.launch`` has started this process; the process that started it shows the result."""
    return LAUNCHED in os.environ


def locate_run(config: "Config") -> RunLocation:
    """Return the folder of a config's run, and the fingerprint of its data.

    Raises:
        UserError: the data or the initial weights are not there, or the data's folder holds the runs.
    """
    from tutelage.data import fingerprint
    from tutelage.runs import RunFolder, run_path
    from tutelage.runs.weight_sources import find_weights
    from tutelage.terminal.display import create_display

    _check_outputs_lie_elsewhere(config)
    if config.init_from is not None:
        find_weights(config.init_from, "init_from")  # before the data is looked through, which may take long
    observer = create_display(config.callbacks.display)
    try:
        data_fingerprint = fingerprint(config.data, observer.reading)
    finally:
        observer.end()
    return RunLocation(RunFolder(run_path(config, data_fingerprint)), data_fingerprint)


def _check_outputs_lie_elsewhere(config: "Config") -> None:
    """Raise a UserError where the data's folder holds the runs, whose files would count as data."""
    root, outputs = config.data.root, Path(config.paths.outputs).expanduser().resolve()
    if root is not None and not config.data.is_ours and outputs.is_relative_to(Path(root).expanduser().resolve()):
        raise UserError(
            f"data.root={root} holds paths.outputs={config.paths.outputs}, whose files would count as data and change "
            "the run's name: give the data a folder of its own, or set paths.outputs to another one"
        )


def train_run(config: "Config", location: RunLocation, arguments: Sequence[str], group: "ProcessGroup") -> int:
    """Run the stages that are left, under the run's lock; return 0, or 128 + the signal that stopped them."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from tutelage.runs import is_complete, run_identity
    from tutelage.runs.cluster.process_checks import propagate_failure
    from tutelage.runs.cluster.signals import Stopped, installed_signals
    from tutelage.runs.cluster.slurm import lock_patience
    from tutelage.runs.observer import SilentObserver
    from tutelage.storage import hold_lock
    from tutelage.terminal.display import create_display
    from tutelage.waiting import WaitLines

    folder, fingerprint = location
    observer = create_display(config.callbacks.display) if group.is_rank0 else SilentObserver()
    signals = installed_signals()
    on_wait = WaitLines(observer.say) if signals is None else signals.make_on_wait(observer.say)
    lock = hold_lock(folder.lock_file, f"run {folder.path}", lock_patience(), on_wait)
    try:
        with lock if group.is_rank0 else nullcontext():
            if group.broadcast_from_rank0(lambda: is_complete(folder, config)):  # another process was here since
                return 0
            identity = run_identity(config, fingerprint)
            observer.loading()
            from tutelage.runs.runner import run_stages
            from tutelage.runs.start import started_run

            with (
                propagate_failure(group),
                started_run(config, folder, identity, command_line(arguments), observer, group) as context,
            ):
                run_stages(context)
            if group.is_rank0:
                _finish_tracking(config, folder, context.tracking)
    except Stopped as stopped:
        outcome = "saved" if stopped.has_saved else "what it waited for did not come, and the last checkpoint is kept"
        observer.say(f"{stopped}; {outcome}. The same command goes on from here.")
        return stopped.exit_code
    finally:
        observer.end()
    return 0


def _finish_tracking(config: "Config", folder: "RunFolder", tracking: "RunTracking") -> None:
    """Give the run's loggers its result, and those that store it its report."""
    from tutelage.runs import read_record

    record = read_record(folder) or {}
    if tracking.takes_report:
        _write_missing_report(config, folder, record)
    tracking.finish(record)


def command_line(arguments: Sequence[str]) -> str:
    """Return the command that does the same again."""
    flags = [f"{ALLOW_FLAG}={package}" for package in list_flag_packages()]
    return shlex.join(["tutelage", "train", *flags, *arguments])


def _show_result(config: "Config", folder: "RunFolder", one_line: bool) -> None:
    """Show the result of a finished run; write its report where it is missing."""
    from tutelage.runs import read_record
    from tutelage.runs.code import describe_other_code

    record = read_record(folder) or {}
    _write_missing_report(config, folder, record)
    _complete_tracking(config, folder, record)
    if one_line:
        other_code = "; made by other code, attempt=2 makes it anew" if describe_other_code(record) else ""
        print(f"  {_accuracy_line(record, config.evaluate_test)}{other_code}", flush=True)
        return
    from tutelage.terminal.table import print_table

    print_table(record)
    page = folder.report / "index.html"
    if page.exists():
        print(f"report: {page}")


def _complete_tracking(config: "Config", folder: "RunFolder", record: dict[str, Any]) -> None:
    """Send what the run's loggers still lack; what they have all of is not even imported."""
    from tutelage.runs.tracking_record import TrackingRecord
    from tutelage.storage import hold_lock

    if TrackingRecord(folder).incomplete(config.logger, record):
        from tutelage.runs.tracking import complete_tracking

        with hold_lock(folder.lock_file, f"run {folder.path}"):
            complete_tracking(config, folder, record, partial(print, file=sys.stderr))


def _write_missing_report(config: "Config", folder: "RunFolder", record: dict[str, Any]) -> None:
    """Measure shifts that the config asks for and write the report, where these are missing and the run is tested."""
    from tutelage.report.curves import read_curve
    from tutelage.runs import is_tested

    if not is_tested(record):
        return
    missing = [shift for shift in config.callbacks.shifts if read_curve(folder, shift) is None]
    if missing:
        from tutelage.data import data_module
        from tutelage.report.shifts import measure_curve

        data = data_module(config.data)
        for shift in missing:
            measure_curve(folder, record, data, shift)
    if config.callbacks.report and (missing or not (folder.report / "index.html").exists()):
        from tutelage.report.run_report import write_report

        write_report(folder, config)


def _accuracy_line(record: dict[str, Any], tested: bool) -> str:
    """Return the accuracy of a finished run in words: on the test set, where the config asks for that."""
    tested = tested and "test/accuracy" in record["result"]
    accuracy = record["result"].get("test/accuracy" if tested else "val/accuracy")
    return "finished" if accuracy is None else f"{'test' if tested else 'val'} {100 * accuracy:.1f} %"
