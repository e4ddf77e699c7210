"""The Hydra app: ``python -m tutelage.train``, which ``tutelage train`` becomes."""

import signal
import sys

from tutelage.config.targets import apply_allow_flags
from tutelage.errors import UserError, complain, escape_stdout

SWEEP_FLAGS = {"-m", "--multirun"}
SHOW_FLAGS = {"-c", "--cfg", "-i", "--info"}
PART_FLAGS = {"-p", "--package", "--resolve"}  # what of a config is shown, and how


def main() -> None:
    """Check the command, then train a run, resume it, or print the result of a finished one; or run a sweep."""
    from tutelage.runs.cluster.signals import defer_slurm_signals

    escape_stdout()
    defer_slurm_signals()
    try:
        from tutelage.app.job import run_job
        from tutelage.app.sweep import run_sweep
        from tutelage.config.compose import CONFIG_DIR_FLAGS, compose, show_config, split_config_dirs
        from tutelage.options import list_options
        from tutelage.sweeps.overrides import find_config_sweep

        arguments = apply_allow_flags(sys.argv[1:])
        if {"-h", "--help"} & set(arguments):
            _, config_dirs = split_config_dirs(arguments)
            print(format_help(list_options(config_dirs)))
            return
        flags = {argument.split("=")[0] for argument in arguments if argument.startswith("-")} - CONFIG_DIR_FLAGS
        if unknown := flags - SWEEP_FLAGS - SHOW_FLAGS - PART_FLAGS:
            raise UserError(f"unknown flag {min(unknown)}; 'tutelage train --help' lists groups and options")
        if shown := flags - SWEEP_FLAGS:
            if flags & SWEEP_FLAGS:
                raise UserError(f"{min(shown)} shows one config: leave out {min(flags & SWEEP_FLAGS)}")
            if not flags & SHOW_FLAGS:
                raise UserError(f"{min(shown)} goes with --cfg job, which prints the config")
            show_config(arguments)
            return
        overrides, config_dirs = split_config_dirs([argument for argument in arguments if argument not in SWEEP_FLAGS])
        config_sweep = find_config_sweep(overrides, config_dirs)
        if flags or config_sweep is not None or "hydra.mode=MULTIRUN" in overrides:
            sys.exit(run_sweep([*overrides, *(config_sweep or [])], config_dirs))
        sys.exit(run_job(compose(overrides, config_dirs), arguments))
    except UserError as error:
        sys.exit(complain(error))
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def format_help(groups: dict[str, dict[str, str]]) -> str:
    """Return the text of ``tutelage train --help``; ``groups`` as from ``list_options``."""
    lines = [
        "tutelage train [GROUP=OPTION ...] [KEY=VALUE ...]",
        "",
        "Trains a run, resumes it, or prints its result. The config determines the run: the same command resumes it.",
        "",
        "  tutelage train experiment=digits_noisy_student          a whole experiment",
        "  tutelage train data=digits model=mlp model.width=400    a run of your own",
        "  tutelage train -m seed=0,1,2                            several runs, one after the other",
        "  tutelage train experiment=NAME debug=tiny               the same in seconds",
        "  tutelage train experiment=NAME --cfg job                print the config",
        "  tutelage train --config-dir DIR ...                     with configs of your own, too",
        "  tutelage train --allow PACKAGE ...                      with classes of your own as a _target_",
        "",
    ]
    for group, entries in groups.items():
        lines.append(f"{group}=")
        width = max(map(len, entries))
        lines += [f"  {option:<{width}}  {summary}" for option, summary in entries.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
