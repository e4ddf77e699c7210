"""The ``tutelage`` command. Modules are imported only where they are needed, so that ``--help`` prints at once."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

HELP = """tutelage trains image classifiers from few labels.

  tutelage train [OVERRIDES]   train a run, resume it, or print its result   (tutelage train --help)
  tutelage recipe [OVERRIDES] [--save NAME]
                               the settings that fit your pictures, each with its reason; or as an experiment to edit
  tutelage fetch [OVERRIDES]   bring the weights and the dataset of a config to the cache, for machines without network
  tutelage preview [OVERRIDES] a picture of what the network will see: views, operations, mixed pairs
  tutelage runs [DIR]          list the runs below outputs/
  tutelage label RUN [data.root=DIR] [data.unlabelled=POOL]
                               help a run to label its pool: from another terminal, GPU or machine
  tutelage predict RUN... PATHS...
                               label pictures: folders, lists, tables, shards   (tutelage predict --help)
  tutelage report RUN... [data.root=DIR]
                               write the report of finished runs again
  tutelage evaluate RUN... data.root=FOLDER|TABLE [--json]
                               accuracy on other pictures of these classes, with a page; several runs as one
  tutelage evaluate RUN [shift=translate,crop,rotate,brightness]
                               accuracy on test images that are shifted, cropped, rotated, made darker
  tutelage evaluate RUN RUN... accuracy of several runs as one: the mean of their answers   (tutelage evaluate --help)
  tutelage export RUN --format onnx|pt2|safetensors|timm [--out DIR]
                               its network as files that need no tutelage, with a card   (tutelage export --help)
  tutelage explain --summary RUN|OVERRIDES
                               a network's layers: receptive field, multiply-adds, parameters
"""
OWN_HELP = ("train", "predict", "evaluate", "export")  # commands that print help of their own


def main() -> None:
    """Run a sub-command; a user's error ends in one line on stderr and exit code 2."""
    if not sys.argv[1:] or sys.argv[1] in {"-h", "--help", "help"}:
        print(HELP, end="")
        return
    if sys.argv[1] == "--version":
        from tutelage import __version__

        print(f"tutelage {__version__}")
        return
    from tutelage.config.allowed_folder import SAFE_PATH_VARIABLE
    from tutelage.config.targets import apply_allow_flags
    from tutelage.errors import UserError, complain, escape_stdout

    escape_stdout()
    os.environ[SAFE_PATH_VARIABLE] = "1"  # for the processes that this one becomes or starts
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as in training; before torch starts
    try:
        arguments = apply_allow_flags(sys.argv[1:])
    except UserError as error:
        sys.exit(complain(error))
    commands: dict[str, Callable[[Sequence[str]], None]] = {
        "train": _execute_training,
        "recipe": _show_recipe,
        "fetch": _fetch_files,
        "preview": _preview_config,
        "runs": _list_runs,
        "label": _label_pool,
        "predict": _predict_labels,
        "report": _rewrite_reports,
        "evaluate": _evaluate_runs,
        "export": _export_network,
        "explain": _print_layers,
    }
    if not arguments or (arguments[0] not in OWN_HELP and {"-h", "--help"} & set(arguments)):
        print(HELP, end="")
        return
    try:
        command = commands.get(arguments[0])
        if command is None:
            import difflib

            matches = difflib.get_close_matches(arguments[0], commands, n=1)
            hint = f"did you mean {matches[0]!r}?" if matches else f"there are {', '.join(commands)}"
            raise UserError(f"unknown command {arguments[0]!r}: {hint}")
        command(arguments[1:])
        sys.stdout.flush()
    except UserError as error:
        sys.exit(complain(error))
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _execute_training(arguments: Sequence[str]) -> None:
    """Replace this process by ``python -m tutelage.train``, which torchrun and srun start too: one way in for all."""
    sys.stdout.flush()
    if "SLURM_JOB_ID" in os.environ:  # hold SLURM's signals back until the app has installed its handlers
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
    os.execv(sys.executable, [sys.executable, "-m", "tutelage.train", *arguments])  # noqa: S606 - our own module


def _show_recipe(arguments: Sequence[str]) -> None:
    """Print what a command's recipe is, each key with its reason; or write it as an experiment file."""
    from tutelage.app.recipe_file import show_recipe
    from tutelage.config.compose import split_config_dirs

    others, name = [], None
    remaining = iter(arguments)
    for argument in remaining:
        flag, _, value = argument.partition("=")
        if flag == "--save":
            name = value or next(remaining, "")
        elif flag not in {"-m", "--multirun"}:
            others.append(argument)
    print(*show_recipe(*split_config_dirs(others), name), sep="\n")


def _fetch_files(arguments: Sequence[str]) -> None:
    """Bring the weights and datasets of a config, or of a sweep's configs, to this machine; print a line on each."""
    from tutelage.config.compose import split_config_dirs
    from tutelage.sweeps.overrides import compose_sweep_values, find_config_sweep
    from tutelage.terminal.display import create_display

    overrides, config_dirs = split_config_dirs([each for each in arguments if each not in {"-m", "--multirun"}])
    swept = find_config_sweep(overrides, config_dirs) or []
    configs, _ = compose_sweep_values([*overrides, *swept], config_dirs)
    from tutelage.app.fetch import fetch_files

    observer = create_display(sys.stderr.isatty())
    try:
        for line in fetch_files(configs, observer):
            observer.end()
            print(line, flush=True)
    except KeyboardInterrupt:
        observer.end()
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    finally:
        observer.end()


def _preview_config(arguments: Sequence[str]) -> None:
    """Draw the images that a network gets from a config, open the picture where there is a screen, print its path."""
    from tutelage.config.compose import compose, split_config_dirs
    from tutelage.sweeps.overrides import find_first_job
    from tutelage.terminal.display import create_display
    from tutelage.terminal.recipe import describe_recipe

    arguments = [argument for argument in arguments if argument not in {"-m", "--multirun"}]
    overrides, config_dirs = split_config_dirs(arguments)
    overrides, job_line = find_first_job(overrides, config_dirs)
    config = compose(overrides, config_dirs)
    for line in describe_recipe(config):
        print(line)
    observer = create_display(config.callbacks.display and sys.stderr.isatty())
    observer.loading()
    try:
        from tutelage.explain.preview import write_preview

        file, lines = write_preview(config, job_line, observer.reading)
    finally:
        observer.end()
    print(*lines, f"preview: {file}", sep="\n")
    _open_picture(file)


def _open_picture(file: Path) -> None:
    """Open a picture in the desktop's viewer; do nothing without a screen, without a terminal, or in CI."""
    import shutil
    import subprocess
    from contextlib import suppress

    is_mac = sys.platform == "darwin"
    has_screen = is_mac or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    opener = shutil.which("open" if is_mac else "xdg-open")
    if opener is None or not has_screen or not sys.stdout.isatty() or os.environ.get("CI", "false") != "false":
        return
    null = subprocess.DEVNULL
    with suppress(OSError):
        subprocess.Popen(  # noqa: S603 - the desktop's own program with our own file
            [opener, str(file)], stdin=null, stdout=null, stderr=null, start_new_session=True
        )


def _list_runs(arguments: Sequence[str]) -> None:
    """Print the runs below a folder, newest last, one line each that ends in the run's folder."""
    from tutelage.api import list_runs

    root = Path(arguments[0] if arguments else "outputs")
    runs = list_runs(root)
    if not runs:
        print(f"no runs below {root}")
        return
    print(runs)
    unusable = [run.reason for run in runs if run.reason]
    if unusable:
        print(f"{len(unusable)} of {len(runs)} cannot be used as they are; {unusable[0]}")


def _label_pool(arguments: Sequence[str]) -> None:
    """Label shards of a run's pool, at the same time as the process that runs it."""
    from tutelage.errors import UserError

    runs = [argument for argument in arguments if not argument.startswith(("data.root=", "data.unlabelled="))]
    if len(runs) != 1:
        raise UserError(
            "label needs one run's folder: tutelage label outputs/EXPERIMENT/RUN [data.root=DIR] [data.unlabelled=POOL]"
        )
    overrides = [argument for argument in arguments if argument not in runs]
    data_paths = dict(override.removeprefix("data.").split("=", 1) for override in overrides)
    from tutelage.runs import FINISHED, RunFolder, read_record

    record = read_record(RunFolder(Path(runs[0])))
    if record is None:
        raise UserError(f"{runs[0]}: no run; label needs the folder of a run that labels its pool ('tutelage runs')")
    if record["status"] == FINISHED:
        print(f"{runs[0]}: this run is finished; there is nothing to label")
        return
    from tutelage.runs.cluster.signals import Stopped, defer_slurm_signals
    from tutelage.runs.cluster.slurm import leave_to_slurm
    from tutelage.terminal.display import create_display

    defer_slurm_signals()
    observer = create_display(wanted=True)
    observer.loading()
    try:
        from tutelage.runs.label_worker import help_to_label

        count = help_to_label(Path(runs[0]), data_paths, observer)
        line = (
            f"{count:,} pool images labelled here"
            if count
            else "nothing to label: no stage of it is labelling a pool, or no shard is free"
        )
        observer.say(f"{runs[0]}: {line}")
    except Stopped as stopped:
        observer.say(f"{stopped}; the shards that are finished are kept")
        sys.exit(leave_to_slurm(stopped.exit_code))
    finally:
        observer.end()


def _predict_labels(arguments: Sequence[str]) -> None:
    """Label pictures by the networks of finished runs."""
    from tutelage.app.predict import predict

    if code := predict(arguments):
        sys.exit(code)


def _rewrite_reports(arguments: Sequence[str]) -> None:
    """Write the reports of finished runs again."""
    from tutelage.app.report import rewrite_reports

    rewrite_reports(arguments)


def _evaluate_runs(arguments: Sequence[str]) -> None:
    """Measure finished runs: on another test set, under shifts of their own, or several as one."""
    from tutelage.app.evaluate import evaluate

    evaluate(arguments)


def _export_network(arguments: Sequence[str]) -> None:
    """Write a run's network to files that need no Tutelage; print where they are and how they were checked."""
    from tutelage.app.export import run_export

    for line in run_export(arguments):
        print(line)


def _print_layers(arguments: Sequence[str]) -> None:
    """Print the layers of a run's network, or of the network that a config describes."""
    from tutelage.config.compose import compose, split_config_dirs
    from tutelage.errors import UserError
    from tutelage.runs import main_stage_name, open_finished_run, read_config

    others = [argument for argument in arguments if argument != "--summary"]
    if len(others) == len(arguments):
        raise UserError(
            "explain needs --summary: tutelage explain --summary RUN, or explain --summary model=vgg data=digits"
        )
    if len(others) == 1 and Path(others[0]).is_dir():
        folder, record = open_finished_run(others[0])
        data, classes = read_config(folder).data, record.get("data", {}).get("classes")
        model = next(entry["model"] for entry in record["stages"] if entry["name"] == main_stage_name(record))
    else:
        config = compose(*split_config_dirs(others))
        data, model, classes = config.data, config.model.arguments(), None
    from tutelage.explain.summary import build_meta_network, print_summary

    print_summary(build_meta_network(model, data, classes))


if __name__ == "__main__":
    main()
