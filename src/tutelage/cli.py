"""The ``tutelage`` command. Nothing is imported before it is needed: ``--help`` answers at once."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tutelage.config import Shift

HELP = """tutelage trains image classifiers from few labels.

  tutelage train [OVERRIDES]   train, go on with, or show a run   (tutelage train --help)
  tutelage preview [OVERRIDES] a picture of what the network will see: views, operations, mixed pairs
  tutelage runs [DIR]          list the runs below outputs/
  tutelage label RUN [data.root=DIR] [data.unlabelled=POOL]
                               help a run that is labelling its pool: from another terminal, GPU or machine
  tutelage report RUN...       write the report of finished runs again
  tutelage evaluate RUN [shift=translate,crop,rotate,brightness]
                               accuracy on test images that are moved, cropped, turned, made darker
  tutelage explain --summary RUN|OVERRIDES
                               a network's layers: receptive field, multiply-adds, parameters
"""


def main() -> None:
    """Run a sub-command; what the user got wrong is one line and exit code 2."""
    if not sys.argv[1:] or sys.argv[1] in {"-h", "--help", "help"}:
        print(HELP, end="")
        return
    if sys.argv[1] == "--version":
        from tutelage import __version__

        print(f"tutelage {__version__}")
        return
    from tutelage.config.targets import take_allowed
    from tutelage.errors import UserError, complain

    try:
        arguments = take_allowed(sys.argv[1:])
    except UserError as error:
        sys.exit(complain(error))
    commands: dict[str, Callable[[Sequence[str]], None]] = {
        "train": _train,
        "preview": _preview,
        "runs": _runs,
        "label": _label,
        "report": _report,
        "evaluate": _evaluate,
        "explain": _explain,
    }
    if not arguments or (arguments[0] != "train" and {"-h", "--help"} & set(arguments)):
        print(HELP, end="")
        return
    try:
        command = commands.get(arguments[0])
        if command is None:
            import difflib

            close = difflib.get_close_matches(arguments[0], commands, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(commands)}"
            raise UserError(f"unknown command {arguments[0]!r}: {hint}")
        command(arguments[1:])
        sys.stdout.flush()
    except UserError as error:
        sys.exit(complain(error))
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _train(arguments: Sequence[str]) -> None:
    """Hand over to the Hydra app, so that a relaunch of the same command by Lightning or torchrun works."""
    sys.stdout.flush()
    if "SLURM_JOB_ID" in os.environ:  # its signals wait until the app heeds them
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
    os.execv(sys.executable, [sys.executable, "-m", "tutelage.train", *arguments])  # noqa: S606 - our own module


def _preview(arguments: Sequence[str]) -> None:
    """Draw what a config shows to a network, open the picture where there is a screen, and print where it lies."""
    from tutelage.config.compose import compose, split_words
    from tutelage.sweeps.overrides import first_job
    from tutelage.terminal.display import create_display

    overrides, folders = split_words([argument for argument in arguments if argument not in {"-m", "--multirun"}])
    overrides, arm = first_job(overrides, folders)
    config = compose(overrides, folders)
    observer = create_display(config.callbacks.display and sys.stderr.isatty())
    observer.loading()
    try:
        from tutelage.explain.preview import write_preview

        file, told = write_preview(config, arm, observer.reading)
    finally:
        observer.end()
    print(*told, f"preview: {file}", sep="\n")
    _open(file)


def _open(file: Path) -> None:
    """Open a picture with what the desktop has for it; without a screen, or somebody before it, do nothing."""
    import shutil
    import subprocess
    from contextlib import suppress

    mac = sys.platform == "darwin"
    screen = mac or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    opener = shutil.which("open" if mac else "xdg-open")
    if opener is None or not screen or not sys.stdout.isatty() or os.environ.get("CI", "false") != "false":
        return
    nowhere = subprocess.DEVNULL
    with suppress(OSError):
        subprocess.Popen(  # noqa: S603 - the desktop's own program on our own file
            [opener, str(file)], stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True
        )


def _runs(arguments: Sequence[str]) -> None:
    """List the runs below a folder, newest last, a line each that ends in the run's folder."""
    from tutelage.errors import UserError
    from tutelage.runs import RunFolder, state

    root = Path(arguments[0] if arguments else "outputs")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder of the runs: tutelage runs DIR")
    records = [record for depth in ("", "*/", "*/*/") for record in root.glob(f"{depth}run.json")]
    found = [(state(folder), folder.path) for folder in (RunFolder(record.parent) for record in records)]
    if not found:
        print(f"no runs below {root}")
        return
    print(f"{'started':<16}  {'status':<10}  {'test':>7}  run")
    for told, path in sorted(found, key=lambda one: one[0].started):
        print(f"{told.started:<16}  {told.status:<10}  {told.test:>7}  {path}")


def _label(arguments: Sequence[str]) -> None:
    """Label a share of a run's pool, beside the process that runs it."""
    from tutelage.errors import UserError

    runs = [argument for argument in arguments if not argument.startswith(("data.root=", "data.unlabelled="))]
    if len(runs) != 1:
        raise UserError(
            "label takes one run's folder: tutelage label outputs/EXPERIMENT/RUN [data.root=DIR] [data.unlabelled=POOL]"
        )
    lies = dict(one.removeprefix("data.").split("=", 1) for one in arguments if one not in runs)
    from tutelage.runs import RunFolder, is_finished, read_record

    record = read_record(RunFolder(Path(runs[0])))
    if record is None:
        raise UserError(f"{runs[0]}: no run; label takes the folder of a run that labels its pool ('tutelage runs')")
    if (strategy := record["identity"]["strategy"]["name"]) != "noisy_student":
        raise UserError(f"{runs[0]}: strategy={strategy} stores no labels of a pool; noisy_student does")
    if is_finished(RunFolder(Path(runs[0]))):
        print(f"{runs[0]}: this run is finished, and so are its labels")
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as in training: before torch starts
    from tutelage.runs.cluster.signals import Stopped, defer_slurm_signals
    from tutelage.runs.cluster.slurm import leave_to_slurm
    from tutelage.terminal.display import create_display

    defer_slurm_signals()
    observer = create_display(wanted=True)
    observer.loading()
    try:
        from tutelage.runs.label_worker import join

        labelled = join(Path(runs[0]), lies, observer)
        what = f"{labelled:,} pool images labelled here" if labelled else "nothing to label: no shard of a pool is free"
        observer.say(f"{runs[0]}: {what}")
    except Stopped as stopped:
        observer.say(f"{stopped}; the shards that are done are kept")
        sys.exit(leave_to_slurm(stopped.exit_code))
    finally:
        observer.end()


def _report(arguments: Sequence[str]) -> None:
    """Write the reports of finished runs again."""
    from tutelage.errors import UserError
    from tutelage.runs import tested_run

    if not arguments:
        raise UserError("report needs a run's folder: tutelage report outputs/EXPERIMENT/RUN")
    for folder, _ in map(tested_run, arguments):
        from tutelage.report.run_report import write_report

        write_report(folder)
        print(f"report: {folder.report / 'index.html'}")


def _evaluate(arguments: Sequence[str]) -> None:
    """Measure a finished run under shifts, print the numbers and put the curves into its report."""
    from tutelage.errors import UserError
    from tutelage.runs import stored_config, tested_run

    runs = [argument for argument in arguments if "=" not in argument or Path(argument).is_dir()]
    options = dict(argument.split("=", 1) for argument in arguments if argument not in runs)
    if len(runs) != 1:
        raise UserError("evaluate needs one run's folder: tutelage evaluate outputs/EXPERIMENT/RUN shift=translate")
    if unknown := set(options) - {"shift", "data.root"}:
        raise UserError(f"{min(unknown)}: evaluate knows shift=NAME,... and data.root=FOLDER")
    folder, record = tested_run(runs[0])
    wanted, config = _shifts(options.get("shift")), stored_config(folder)
    if "data.root" in options:
        moved = config.data.model_copy(update={"root": options["data.root"]})
        config = config.model_copy(update={"data": moved})
    from tutelage.data import data_module
    from tutelage.report.curves import print_curve
    from tutelage.report.run_report import write_report
    from tutelage.report.shifts import measure_curve

    data = data_module(config.data)
    for shift in wanted:
        print_curve(measure_curve(folder, record, data, shift))
    write_report(folder, config)
    print(f"report: {folder.report / 'index.html'}")


def _shifts(names: str | None) -> "Sequence[Shift]":
    """Return the shifts that ``shift=...`` names; all where it is not given."""
    from tutelage.config import SHIFTS
    from tutelage.errors import UserError

    if names is None:
        return SHIFTS
    unknown = sorted(set(names.split(",")) - set(SHIFTS))
    if unknown:
        raise UserError(f"shift={unknown[0]}: no such shift; allowed are {', '.join(SHIFTS)}")
    return [shift for shift in SHIFTS if shift in names.split(",")]


def _explain(arguments: Sequence[str]) -> None:
    """Print the layers of a run's network, or of the one that a config names."""
    from tutelage.config.compose import compose, split_words
    from tutelage.errors import UserError
    from tutelage.runs import finished_run, last_fit, stored_config

    rest = [argument for argument in arguments if argument != "--summary"]
    if len(rest) == len(arguments):
        raise UserError("explain shows --summary so far: tutelage explain --summary RUN, or model=vgg data=digits")
    if len(rest) == 1 and Path(rest[0]).is_dir():
        folder, record = finished_run(rest[0])
        data, classes = stored_config(folder).data, record.get("data", {}).get("classes")
        model = next(entry["model"] for entry in record["stages"] if entry["name"] == last_fit(record))
    else:
        config = compose(*split_words(rest))
        data, model, classes = config.data, config.model.arguments(), None
    from tutelage.explain.summary import build_meta_network, print_summary

    print_summary(build_meta_network(model, data, classes))


if __name__ == "__main__":
    main()
