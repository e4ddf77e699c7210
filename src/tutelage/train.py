"""The Hydra app: ``python -m tutelage.train``, which ``tutelage train`` hands over to."""

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tutelage.errors import UserError, complain
from tutelage.targets import ALLOW_FLAG, by_flag, take_allowed

if TYPE_CHECKING:  # at run time they are imported when they are needed
    from tutelage.config import Config
    from tutelage.insight.jobs import Outcome
    from tutelage.runs import RunFolder

SWEEP_FLAGS = {"-m", "--multirun"}
SHOWING_FLAGS = {"-c", "--cfg", "-i", "--info"}
OTHER_HYDRA_FLAGS = {
    *("--hydra-help", "--version", "-p", "--package", "--resolve", "-r", "--run", "-sc", "--shell-completion"),
    *("-cp", "--config-path", "-cn", "--config-name", "--experimental-rerun"),
}


def main() -> None:
    """Check the command, then train, go on, or print the result of a run that is finished."""
    try:
        from tutelage.compose import CONFIG_DIR_FLAGS, compose, options, own_sweep, split_words

        sys.argv[1:] = arguments = take_allowed(sys.argv[1:])
        if {"-h", "--help"} & set(arguments):
            print(help_text(options()))
            return
        flags = {argument.split("=")[0] for argument in arguments if argument.startswith("-")} - CONFIG_DIR_FLAGS
        if unknown := flags - SWEEP_FLAGS - SHOWING_FLAGS - OTHER_HYDRA_FLAGS:
            raise UserError(f"unknown flag {min(unknown)}; 'tutelage train --help' shows what there is")
        if flags - SWEEP_FLAGS:
            if flags & SWEEP_FLAGS and flags & SHOWING_FLAGS:
                raise UserError(f"{min(flags & SHOWING_FLAGS)} shows one config: leave out {min(flags & SWEEP_FLAGS)}")
            sys.exit(_hydra_main())
        overrides, folders = split_words([argument for argument in arguments if argument not in SWEEP_FLAGS])
        swept = own_sweep(overrides, folders)
        if flags or swept is not None or "hydra.mode=MULTIRUN" in overrides:
            sys.exit(_sweep([*overrides, *(swept or [])], folders))
        sys.exit(execute(compose(overrides, folders), arguments))
    except UserError as error:
        sys.exit(complain(error))
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def execute(
    config: "Config",
    arguments: Sequence[str] = (),
    line_only: bool = False,
    place: "tuple[RunFolder, str] | None" = None,
) -> int:
    """Train a run, go on with it, or show what it gave; return the exit code.

    Args:
        config: what to run.
        arguments: what was typed, to be recorded.
        line_only: show a finished run by one line, not by its table.
        place: what ``_place`` returns, where it is known.

    Raises:
        UserError: what the user got wrong.
    """
    from tutelage.runs import identity, is_finished, read_record, state
    from tutelage.storage import locked

    folder, what = place or _place(config)
    if not is_finished(folder):
        with locked(folder.lock_file, f"run {folder.path}"):
            # Another process may have finished it between the first look and the lock.
            code = 0 if is_finished(folder) else _train(config, folder, identity(config, what), arguments)
        if code:
            return code
    record = read_record(folder) or {}
    _write_missing_report(config, folder, record)
    if line_only:
        print(f"  test {state(folder).test}", flush=True)
    else:
        _show(folder, record)
    return 0


def _place(config: "Config") -> tuple["RunFolder", str]:
    """Return the folder that belongs to a config, and the fingerprint of its data."""
    from tutelage.data import fingerprint
    from tutelage.insight.display import display
    from tutelage.runs import RunFolder, run_path

    observer = display(config.callbacks.display)
    try:
        what = fingerprint(config.data, observer.reading)
    finally:
        observer.end()
    return RunFolder(run_path(config, what)), what


def _train(config: "Config", folder: "RunFolder", identity: dict[str, Any], arguments: Sequence[str]) -> int:
    """Run the stages that are left; return 0, or 128 + the signal that stopped them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before torch starts, or cuBLAS is not deterministic
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from tutelage.insight.display import display
    from tutelage.runs.interruption import Stopped

    observer = display(config.callbacks.display)
    observer.loading()
    try:
        from tutelage.runs.runner import run

        run(config, folder, identity, _as_typed(arguments), observer)
    except Stopped as stopped:
        observer.say(f"{stopped}; saved. The same command goes on from here.")
        return stopped.exit_code
    finally:
        observer.end()
    return 0


def _as_typed(arguments: Sequence[str]) -> str:
    """Return the command that would do the same again."""
    flags = [f"{ALLOW_FLAG}={package}" for package in by_flag()]
    return shlex.join(["tutelage", "train", *flags, *arguments])


def _write_missing_report(config: "Config", folder: "RunFolder", record: dict[str, Any]) -> None:
    """Measure the shifts that the config asks for and write the report, where these are missing."""
    from tutelage.insight.curves import read_curve

    missing = [shift for shift in config.callbacks.shifts if read_curve(folder, shift) is None]
    if missing:
        from tutelage.data import data_module
        from tutelage.insight.shifts import curve

        data = data_module(config.data)
        for shift in missing:
            curve(folder, record, data, shift)
    if config.callbacks.report and (missing or not (folder.report / "index.html").exists()):
        from tutelage.insight.report import write_report

        write_report(folder, config)


def _show(folder: "RunFolder", record: dict[str, Any]) -> None:
    """Print the table, and the way to the report."""
    from tutelage.insight.table import print_table

    print_table(record)
    page = folder.report / "index.html"
    if page.exists():
        print(f"report: {page}")


def help_text(groups: dict[str, dict[str, str]]) -> str:
    """Return what ``tutelage train --help`` prints."""
    lines = [
        "tutelage train [GROUP=OPTION ...] [KEY=VALUE ...]",
        "",
        "Trains, goes on with, or shows a run. A run follows from its config: the same command again resumes it.",
        "",
        "  tutelage train experiment=digits_noisy_student          a whole experiment",
        "  tutelage train data=digits model=mlp model.width=400    a run of your own",
        "  tutelage train -m seed=0,1,2                            several, one after the other",
        "  tutelage train experiment=NAME debug=tiny               the same in seconds",
        "  tutelage train experiment=NAME --cfg job                what the config would be",
        "  tutelage train --config-dir DIR ...                     with configs of your own beside ours",
        "  tutelage train --allow PACKAGE ...                      with classes of your own as a _target_",
        "",
    ]
    for group, entries in groups.items():
        lines.append(f"{group}=")
        width = max(map(len, entries))
        lines += [f"  {option:<{width}}  {told}" for option, told in entries.items()]
    return "\n".join(lines)


def _sweep(overrides: Sequence[str], folders: Sequence[str]) -> int:
    """Let Hydra run the jobs of a sweep, compare their results, and return the worst of their exit codes."""
    from tutelage.compose import check_sweep
    from tutelage.insight.comparison import compare
    from tutelage.insight.jobs import Outcome

    count = check_sweep(overrides, folders)
    folder_flags = [word for folder in folders for word in ("--config-dir", folder)]
    # What an experiment sweeps over stands in the overrides; Hydra must not add it again.
    sys.argv[1:] = ["--multirun", *folder_flags, *overrides, "hydra.sweeper.params=null"]
    outcomes: list[Outcome] = []
    code = _hydra_main(count, outcomes)
    compare(outcomes, _as_typed(["-m", *folder_flags, *overrides]))
    return code


def _hydra_main(count: int = 0, outcomes: "list[Outcome] | None" = None) -> int:
    """Let Hydra run sweeps and answer its own flags; return the worst exit code of the jobs.

    A job that the user got wrong does not keep the others from running; a signal ends the sweep.

    Args:
        count: how many jobs a sweep has; 0 where it is none.
        outcomes: takes what became of each job.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig

    from tutelage.compose import checked, conf_dir

    codes = [0]

    def job(composed: Any) -> None:
        task = list(HydraConfig.get().overrides.task)
        if count:
            print(f"run {len(codes)} of {count}: {' '.join(task)}", flush=True)
        path, reason = None, ""
        try:
            config = checked(composed)
            place = _place(config)
            path = place[0].path
            codes.append(execute(config, task, line_only=count > 0, place=place))
        except UserError as error:
            codes.append(complain(error))
            reason = str(error)
        if outcomes is not None:
            from tutelage.insight.jobs import Outcome

            outcomes.append(Outcome(task, path, reason))
        if codes[-1] > 128:  # noqa: PLR2004 - 128 + signal, by the shell's custom
            sys.exit(codes[-1])

    hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(job)()
    return max(codes)


if __name__ == "__main__":
    main()
