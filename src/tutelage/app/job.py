"""One job, as a command or a sweep asks for it: train a run, go on with it, or show what it gave."""

import os
import shlex
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.config.targets import ALLOW_FLAG, list_flag_packages
from tutelage.errors import UserError

if TYPE_CHECKING:  # at run time they are imported when they are needed
    from tutelage.config import Config
    from tutelage.process_group import ProcessGroup, World
    from tutelage.runs import RunFolder

LAUNCHED = "TUTELAGE_LAUNCHED"


def execute(
    config: "Config",
    arguments: Sequence[str] = (),
    line_only: bool = False,
    place: "tuple[RunFolder, str] | None" = None,
) -> int:
    """Train a run, go on with it, or show what it gave; return the exit code.

    On several devices each has a process: those that torchrun or srun started, each of which calls this, or those that
    are started here.

    Args:
        config: what to run.
        arguments: what was typed, to be recorded.
        line_only: show a finished run by one line, not by its table.
        place: what ``place_of`` returns, where it is known.

    Raises:
        UserError: what the user got wrong.
    """
    from tutelage.process_group import ALONE, world
    from tutelage.runs import is_done
    from tutelage.runs.cluster.process_checks import check_batches, processes_of
    from tutelage.runs.cluster.slurm import leave_to_slurm

    whole = world()
    if whole.size > 1:
        check_batches(config, processes_of(config.trainer, whole))
        return leave_to_slurm(_execute_with_others(config, arguments, line_only, place, whole))
    place = place or place_of(config)
    if not is_done(place[0], config):
        count = processes_of(config.trainer, whole)
        check_batches(config, count)
        if count > 1:
            from tutelage.app.launch import launch

            code = launch(config, arguments, count)
        else:
            code = leave_to_slurm(_run(config, place, arguments, ALONE))
        if code:
            return code
    _present(config, place[0], line_only)
    return 0


def _execute_with_others(
    config: "Config",
    arguments: Sequence[str],
    line_only: bool,
    place: "tuple[RunFolder, str] | None",
    world: "World",
) -> int:
    """Do as ``execute`` does, as one of several processes: the first one decides, writes and talks."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before torch starts: each process would warn of the same
    from tutelage.errors import RANK0_HEAD_START_SECONDS, USER_ERROR
    from tutelage.process_group import join
    from tutelage.runs import RunFolder, is_done
    from tutelage.runs.cluster.process_checks import propagate_failure, uses_gpu

    def where() -> list[str]:
        folder, what = place or place_of(config)
        return [str(folder.path), what]

    group, code = join(world, uses_gpu(config.trainer)), 0
    try:
        with propagate_failure(group):
            path, what = group.broadcast_from_rank0(where)
            folder = RunFolder(Path(path))
            if not group.broadcast_from_rank0(lambda: is_done(folder, config)):
                code = _run(config, (folder, what), arguments, group)
    except UserError:
        if group.first:
            raise
        code = USER_ERROR
    finally:
        group.leave()
    if code == USER_ERROR and world.started_by == "srun":
        time.sleep(RANK0_HEAD_START_SECONDS)
    if not code and group.first and not is_launched():
        _present(config, folder, line_only)
    return code


def is_launched() -> bool:
    """Return whether ``tutelage.app.launch`` has started this process; who started that one shows the result."""
    return LAUNCHED in os.environ


def _run(config: "Config", place: "tuple[RunFolder, str]", arguments: Sequence[str], group: "ProcessGroup") -> int:
    """Train a run, or go on with it; return 0, or 128 + the signal that stopped it."""
    from tutelage.runs import identity, is_done
    from tutelage.runs.cluster.slurm import patience
    from tutelage.storage import hold_lock

    folder, what = place
    with hold_lock(folder.lock_file, f"run {folder.path}", patience()) if group.first else nullcontext():
        if group.broadcast_from_rank0(
            lambda: is_done(folder, config)
        ):  # by another process, between the first look and the lock
            return 0
        return _train(config, folder, identity(config, what), arguments, group)


def _present(config: "Config", folder: "RunFolder", line_only: bool) -> None:
    """Show a finished run; write its report where it is missing."""
    from tutelage.runs import read_record

    record = read_record(folder) or {}
    _write_missing_report(config, folder, record)
    if line_only:
        print(f"  {_in_a_line(record, config.evaluate_test)}", flush=True)
    else:
        _show(folder, record)


def place_of(config: "Config") -> tuple["RunFolder", str]:
    """Return the folder that belongs to a config, and the fingerprint of its data."""
    from tutelage.data import fingerprint
    from tutelage.runs import RunFolder, run_path
    from tutelage.terminal.display import display

    observer = display(config.callbacks.display)
    try:
        what = fingerprint(config.data, observer.reading)
    finally:
        observer.end()
    return RunFolder(run_path(config, what)), what


def _train(
    config: "Config", folder: "RunFolder", identity: dict[str, Any], arguments: Sequence[str], group: "ProcessGroup"
) -> int:
    """Run the stages that are left; return 0, or 128 + the signal that stopped them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before torch starts, or cuBLAS is not deterministic
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from tutelage.runs.cluster.process_checks import propagate_failure
    from tutelage.runs.cluster.signals import Stopped
    from tutelage.runs.observer import SilentObserver
    from tutelage.terminal.display import display

    observer = display(config.callbacks.display) if group.first else SilentObserver()
    observer.loading()
    try:
        from tutelage.runs.runner import run

        with propagate_failure(group):
            run(config, folder, identity, as_typed(arguments), observer, group)
    except Stopped as stopped:
        observer.say(f"{stopped}; saved. The same command goes on from here.")
        return stopped.exit_code
    finally:
        observer.end()
    return 0


def as_typed(arguments: Sequence[str]) -> str:
    """Return the command that would do the same again."""
    flags = [f"{ALLOW_FLAG}={package}" for package in list_flag_packages()]
    return shlex.join(["tutelage", "train", *flags, *arguments])


def _write_missing_report(config: "Config", folder: "RunFolder", record: dict[str, Any]) -> None:
    """Measure the shifts that the config asks for and write the report, where these are missing and the test is met."""
    from tutelage.report.curves import read_curve
    from tutelage.runs import is_tested

    if not is_tested(record):
        return
    missing = [shift for shift in config.callbacks.shifts if read_curve(folder, shift) is None]
    if missing:
        from tutelage.data import data_module
        from tutelage.report.shifts import curve

        data = data_module(config.data)
        for shift in missing:
            curve(folder, record, data, shift)
    if config.callbacks.report and (missing or not (folder.report / "index.html").exists()):
        from tutelage.report.run_report import write_report

        write_report(folder, config)


def _in_a_line(record: dict[str, Any], tested: bool) -> str:
    """Return the accuracy that a finished run is told by: the test's, where that is asked for."""
    tested = tested and "test/accuracy" in record["result"]
    accuracy = record["result"].get("test/accuracy" if tested else "val/accuracy")
    return "finished" if accuracy is None else f"{'test' if tested else 'val'} {100 * accuracy:.1f} %"


def _show(folder: "RunFolder", record: dict[str, Any]) -> None:
    """Print the table, and the way to the report."""
    from tutelage.terminal.table import print_table

    print_table(record)
    page = folder.report / "index.html"
    if page.exists():
        print(f"report: {page}")
