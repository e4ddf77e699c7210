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
    arguments = sys.argv[1:]
    commands: dict[str, Callable[[Sequence[str]], None]] = {"train": _train, "runs": _runs, "report": _report}
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(HELP, end="")
        return
    if arguments[0] == "--version":
        from tutelage import __version__

        print(f"tutelage {__version__}")
        return
    from tutelage.errors import UserError, complain

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
    """List the runs below a folder, newest last."""
    from rich.console import Console
    from rich.table import Table

    from tutelage.errors import UserError
    from tutelage.runs import RunFolder, read_record

    root = Path(arguments[0] if arguments else "outputs")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder of the runs: tutelage runs DIR")
    found = [(path, read_record(RunFolder(path.parent))) for path in root.glob("*/*/run.json")]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "status", "started", "test"):
        table.add_column(name, overflow="fold")
    for path, record in sorted(found, key=lambda one: (one[1] or {}).get("started", "")):
        if record is not None:
            accuracy = record["result"].get("test/accuracy")
            told = "" if accuracy is None else f"{100 * accuracy:.1f} %"
            table.add_row(str(path.parent), record["status"], record["started"], told)
    Console().print(table if table.row_count else f"no runs below {root}")


def _report(arguments: Sequence[str]) -> None:
    """Write the reports of finished runs again."""
    from tutelage.errors import UserError
    from tutelage.runs import RunFolder, is_finished, read_record

    if not arguments:
        raise UserError("report needs a run's folder: tutelage report outputs/EXPERIMENT/RUN")
    for argument in arguments:
        folder = RunFolder(Path(argument))
        if not is_finished(folder):
            record = read_record(folder)
            state = "no run" if record is None else f"a run that is {record['status']}"
            raise UserError(f"{argument}: {state}; a report needs a finished run")
        from tutelage.insight.report import write_report

        write_report(folder)
        print(f"report: {folder.report / 'index.html'}")


if __name__ == "__main__":
    main()
