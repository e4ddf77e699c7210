"""The Hydra app: ``python -m tutelage.train``, which ``tutelage train`` hands over to."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage.errors import UserError

USER_ERROR = 2
FLAGS_OF_SWEEPS = {"-m", "--multirun"}


def main() -> None:
    """Check the command, then train, go on, or print the result of a run that is finished."""
    from tutelage.compose import compose, options

    arguments = sys.argv[1:]
    try:
        if {"-h", "--help"} & set(arguments):
            print(help_text(options()))
            return
        if not _is_for_hydra(arguments):
            config = compose(*_split(arguments))
            sys.exit(execute(config))
        _hydra_main()
    except UserError as error:
        sys.exit(_complain(error))


def execute(config: Any) -> int:
    """Train a run, go on with it, or show what it gave; return the exit code.

    Raises:
        UserError: what the user got wrong.
    """
    from tutelage.data import list_folder
    from tutelage.runs import FINISHED, RunFolder, identity, read_record, run_path
    from tutelage.storage import locked

    fingerprint = (
        list_folder(config.data.root).fingerprint() if config.data.target == "tutelage.data.ImageFolder" else ""
    )
    folder = RunFolder(run_path(config, fingerprint))
    record = read_record(folder)
    if record is None or record["status"] != FINISHED:
        with locked(folder.lock_file, f"run {folder.path}"):
            code = _train(config, folder, identity(config, fingerprint))
        if code:
            return code
        record = read_record(folder)
    assert record is not None  # noqa: S101 - a finished run has a record
    _show(config, folder, record)
    return 0


def _train(config: Any, folder: Any, identity: dict[str, Any]) -> int:
    """Run the stages that are left; return 0, or 128 + the signal that stopped them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before torch starts, or cuBLAS is not deterministic
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from tutelage.insight.display import display

    observer = display(config.callbacks.display)
    observer.say(f"run: {folder.path}")
    from tutelage.runs.interruption import Stopped
    from tutelage.runs.runner import run

    try:
        run(config, folder, identity, observer)
    except Stopped as stopped:
        print(f"{stopped}; saved. The same command goes on from here.", file=sys.stderr)
        return stopped.exit_code
    return 0


def _show(config: Any, folder: Any, record: dict[str, Any]) -> None:
    """Print the table, and the way to the report, made where it is missing."""
    from tutelage.insight.table import print_table

    print_table(record)
    page = folder.report / "index.html"
    if config.callbacks.report and not page.exists():
        from tutelage.insight.report import write_report

        write_report(folder)
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
        "",
    ]
    for group, entries in groups.items():
        lines.append(f"{group}=")
        width = max(map(len, entries))
        lines += [f"  {option:<{width}}  {told}" for option, told in entries.items()]
    return "\n".join(lines)


def _is_for_hydra(arguments: Sequence[str]) -> bool:
    """Return whether Hydra itself must see the command: sweeps and its own flags."""
    known = {"--config-dir", "-cd"}
    flags = {argument.split("=")[0] for argument in arguments if argument.startswith("-")}
    return bool(flags - known)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides and the folders given by ``--config-dir``."""
    overrides, folders = [], []
    rest = iter(arguments)
    for argument in rest:
        name, _, value = argument.partition("=")
        if name in {"--config-dir", "-cd"}:
            folder = value or next(rest, "")
            if not Path(folder).is_dir():
                raise UserError(f"--config-dir {folder}: no such folder")
            folders.append(folder)
        else:
            overrides.append(argument)
    return overrides, folders


def _hydra_main() -> None:
    """Let Hydra run sweeps and answer its own flags."""
    import hydra

    from tutelage.compose import check_sweep, checked, conf_dir

    arguments = sys.argv[1:]
    if FLAGS_OF_SWEEPS & set(arguments):  # what is wrong with all jobs is said before the first
        check_sweep(*_split([argument for argument in arguments if argument not in FLAGS_OF_SWEEPS]))

    def job(composed: Any) -> None:
        try:
            code = execute(checked(composed))
        except UserError as error:
            code = _complain(error)
        if code:
            sys.exit(code)

    hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(job)()


def _complain(error: UserError) -> int:
    print(f"tutelage: {error}", file=sys.stderr)
    return USER_ERROR


if __name__ == "__main__":
    main()
