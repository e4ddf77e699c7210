"""The Hydra app: ``python -m tutelage.train``, which ``tutelage train`` hands over to."""

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.errors import UserError, complain
from tutelage.targets import ALLOW_FLAG, by_flag, take_allowed

if TYPE_CHECKING:  # at run time they are imported when they are needed
    from tutelage.config import Config
    from tutelage.runs import RunFolder

SWEEP_FLAGS = {"-m", "--multirun"}
CONFIG_DIR_FLAGS = {"--config-dir", "-cd"}


def main() -> None:
    """Check the command, then train, go on, or print the result of a run that is finished."""
    from tutelage.compose import compose, options

    try:
        sys.argv[1:] = arguments = take_allowed(sys.argv[1:])
        if {"-h", "--help"} & set(arguments):
            print(help_text(options()))
        elif _is_for_hydra(arguments):
            sys.exit(_hydra_main(arguments))
        else:
            sys.exit(execute(compose(*_split(arguments)), arguments))
    except UserError as error:
        sys.exit(complain(error))
    except KeyboardInterrupt:
        print("stopped before anything began", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def execute(config: "Config", arguments: Sequence[str] = ()) -> int:
    """Train a run, go on with it, or show what it gave; return the exit code.

    Args:
        config: what to run.
        arguments: what was typed, to be recorded.

    Raises:
        UserError: what the user got wrong.
    """
    from tutelage.data import fingerprint
    from tutelage.runs import RunFolder, identity, is_finished, read_record, run_path
    from tutelage.storage import locked

    what = fingerprint(config.data)
    folder = RunFolder(run_path(config, what))
    if not is_finished(folder):
        with locked(folder.lock_file, f"run {folder.path}"):
            # Another process may have finished it between the first look and the lock.
            code = 0 if is_finished(folder) else _train(config, folder, identity(config, what), arguments)
        if code:
            return code
    _show(config, folder, read_record(folder) or {})
    return 0


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


def _show(config: "Config", folder: "RunFolder", record: dict[str, Any]) -> None:
    """Print the table, and the way to the report, made where it is missing."""
    from tutelage.insight.table import print_table

    print_table(record)
    page = folder.report / "index.html"
    if config.callbacks.report and not page.exists():
        from tutelage.insight.report import write_report

        write_report(folder, config)
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


def _is_for_hydra(arguments: Sequence[str]) -> bool:
    """Return whether Hydra itself must see the command: sweeps and its own flags."""
    flags = {argument.split("=")[0] for argument in arguments if argument.startswith("-")}
    return bool(flags - CONFIG_DIR_FLAGS) or any(argument.startswith("hydra.mode=") for argument in arguments)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides and the folders given by ``--config-dir``."""
    overrides, folders = [], []
    rest = iter(arguments)
    for argument in rest:
        name, _, value = argument.partition("=")
        if name in CONFIG_DIR_FLAGS:
            folder = value or next(rest, "")
            if not Path(folder).is_dir():
                raise UserError(f"--config-dir {folder}: no such folder")
            folders.append(folder)
        else:
            overrides.append(argument)
    return overrides, folders


def _hydra_main(arguments: Sequence[str]) -> int:
    """Let Hydra run sweeps and answer its own flags; return the worst exit code of the jobs.

    A job that the user got wrong does not keep the others from running; a signal ends the sweep.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig

    from tutelage.compose import check_sweep, checked, conf_dir

    flags = {argument.split("=")[0] for argument in arguments if argument.startswith("-")}
    if flags and flags <= SWEEP_FLAGS | CONFIG_DIR_FLAGS:
        check_sweep(*_split([argument for argument in arguments if argument not in SWEEP_FLAGS]))
    codes = [0]

    def job(composed: Any) -> None:
        try:
            codes.append(execute(checked(composed), HydraConfig.get().overrides.task))
        except UserError as error:
            codes.append(complain(error))
        if codes[-1] > 128:  # noqa: PLR2004 - 128 + signal, by the shell's custom
            sys.exit(codes[-1])

    hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(job)()
    return max(codes)


if __name__ == "__main__":
    main()
