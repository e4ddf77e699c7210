"""The ``tutelage`` command. Nothing is imported before it is needed: ``--help`` answers at once."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tutelage.config import Shift

HELP = """tutelage trains image classifiers from few labels.

  tutelage train [OVERRIDES]   train, go on with, or show a run   (tutelage train --help)
  tutelage runs [DIR]          list the runs below outputs/
  tutelage report RUN...       write the report of finished runs again
  tutelage evaluate RUN [shift=translate,crop,rotate,brightness]
                               accuracy on test images that are moved, cropped, turned, made darker
  tutelage explain --summary RUN|OVERRIDES
                               a network's layers: receptive field, multiply-adds, parameters
"""


def main() -> None:
    """Run a sub-command; what the user got wrong is one line and exit code 2."""
    from tutelage.errors import UserError, complain
    from tutelage.targets import take_allowed

    try:
        arguments = take_allowed(sys.argv[1:])
    except UserError as error:
        sys.exit(complain(error))
    commands: dict[str, Callable[[Sequence[str]], None]] = {
        "train": _train,
        "runs": _runs,
        "report": _report,
        "evaluate": _evaluate,
        "explain": _explain,
    }
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
    from tutelage.runs import finished_run

    if not arguments:
        raise UserError("report needs a run's folder: tutelage report outputs/EXPERIMENT/RUN")
    for folder, _ in map(finished_run, arguments):
        from tutelage.insight.report import write_report

        write_report(folder)
        print(f"report: {folder.report / 'index.html'}")


def _evaluate(arguments: Sequence[str]) -> None:
    """Measure a finished run under shifts, print the numbers and put the curves into its report."""
    from tutelage.errors import UserError
    from tutelage.runs import finished_run, stored_config

    runs = [argument for argument in arguments if "=" not in argument or Path(argument).is_dir()]
    options = [argument for argument in arguments if argument not in runs]
    if len(runs) != 1:
        raise UserError("evaluate needs one run's folder: tutelage evaluate outputs/EXPERIMENT/RUN shift=translate")
    folder, record = finished_run(runs[0])
    wanted = _shifts(options)
    from tutelage.insight.report import write_report
    from tutelage.insight.shifts import curve, print_curve

    config = stored_config(folder)
    for shift in wanted:
        print_curve(curve(folder, record, config, shift))
    write_report(folder, config)
    print(f"report: {folder.report / 'index.html'}")


def _shifts(options: Sequence[str]) -> "Sequence[Shift]":
    """Return the shifts that ``shift=...`` names; all where it is not given."""
    from tutelage.config import SHIFTS
    from tutelage.errors import UserError

    chosen: list[Shift] = []
    for option in options:
        key, _, values = option.partition("=")
        if key != "shift":
            raise UserError(f"{option}: evaluate knows shift=NAME,... only; NAME is one of {', '.join(SHIFTS)}")
        for value in values.split(","):
            found = next((shift for shift in SHIFTS if shift == value), None)
            if found is None:
                raise UserError(f"shift={value}: no such shift; allowed are {', '.join(SHIFTS)}")
            chosen.append(found)
    return chosen or SHIFTS


def _explain(arguments: Sequence[str]) -> None:
    """Print the layers of a run's network, or of the one that a config names."""
    from tutelage.compose import compose
    from tutelage.errors import UserError
    from tutelage.runs import finished_run, last_fit, trained

    rest = [argument for argument in arguments if argument != "--summary"]
    if len(rest) == len(arguments):
        raise UserError("explain shows --summary so far: tutelage explain --summary RUN, or model=vgg data=digits")
    run = len(rest) == 1 and Path(rest[0]).is_dir()
    config = None if run else compose(rest)
    from tutelage.insight.summary import network_of, print_summary
    from tutelage.models import load_classifier

    if config is not None:
        print_summary(network_of(config))
    else:
        folder, record = finished_run(rest[0])
        print_summary(load_classifier(trained(folder, record)[last_fit(record)]))


if __name__ == "__main__":
    main()
