"""The commands that are little more than a call. Modules are imported only where they are needed: errors come first."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tutelage.errors import UserError


def execute_training(arguments: Sequence[str]) -> None:
    """Replace this process by ``python -m tutelage.train``, which torchrun and srun start too: one way in for all."""
    sys.stdout.flush()
    if "SLURM_JOB_ID" in os.environ:  # hold SLURM's signals back until the app has installed its handlers
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
    os.execv(sys.executable, [sys.executable, "-m", "tutelage.train", *arguments])  # noqa: S606 - our own module


def print_recipe(arguments: Sequence[str]) -> None:
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


def fetch(arguments: Sequence[str]) -> None:
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


def preview(arguments: Sequence[str]) -> None:
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


def label_pool(arguments: Sequence[str]) -> None:
    """Label shards of a run's pool, at the same time as the process that runs it."""
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
