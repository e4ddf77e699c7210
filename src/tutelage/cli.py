"""The ``tutelage`` command. Nothing is imported before it is needed: ``--help`` answers at once."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

HELP = """tutelage trains image classifiers from few labels.

  tutelage train [OVERRIDES]   train, go on with, or show a run   (tutelage train --help)
  tutelage runs [DIR]          list the runs below outputs/
  tutelage report RUN...       write the report of finished runs again
"""


def main() -> None:
    """Run a sub-command; what the user got wrong is one line and exit code 2."""
    from tutelage.errors import UserError, complain
    from tutelage.targets import take_allowed

    try:
        arguments = take_allowed(sys.argv[1:])
    except UserError as error:
        sys.exit(complain(error))
    commands: dict[str, Callable[[Sequence[str]], None]] = {"train": _train, "runs": _runs, "report": _report}
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(HELP, end="")
        return
    if arguments[0] == "--version":
        from tutelage import __version__

        print(f"tutelage {__version__}")
        return
    try:
        command = commands.get(arguments[0])
        if command is None:
            import difflib

            close = difflib.get_close_matches(arguments[0], commands, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(commands)}"
            raise UserError(f"unknown command {arguments[0]!r}: {hint}")
        command(arguments[1:])
    except UserError as error:
        sys.exit(complain(error))


def _train(arguments: Sequence[str]) -> None:
    """Hand over to the Hydra app, so that a relaunch of the same command by Lightning or torchrun works."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "tutelage.train", *arguments])  # noqa: S606 - our own module


def _runs(arguments: Sequence[str]) -> None:
    """List the runs below a folder, newest last, a line each that ends in the run's folder."""
    from tutelage.errors import UserError
    from tutelage.runs import RunFolder, state

    root = Path(arguments[0] if arguments else "outputs")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder of the runs: tutelage runs DIR")
    found = [(state(folder), folder.path) for folder in (RunFolder(p.parent) for p in root.glob("*/*/run.json"))]
    if not found:
        print(f"no runs below {root}")
        return
    print(f"{'started':<16}  {'status':<10}  {'test':>7}  run")
    for told, path in sorted(found, key=lambda one: one[0].started):
        print(f"{told.started:<16}  {told.status:<10}  {told.test:>7}  {path}")


def _report(arguments: Sequence[str]) -> None:
    """Write the reports of finished runs again."""
    from tutelage.errors import UserError
    from tutelage.runs import RunFolder, is_finished, state

    if not arguments:
        raise UserError("report needs a run's folder: tutelage report outputs/EXPERIMENT/RUN")
    for argument in arguments:
        folder = RunFolder(Path(argument))
        if not is_finished(folder):
            raise UserError(f"{argument}: {state(folder).status}; a report needs a finished run")
        from tutelage.insight.report import write_report

        write_report(folder)
        print(f"report: {folder.report / 'index.html'}")


if __name__ == "__main__":
    main()
