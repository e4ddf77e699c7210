"""The Hydra app: ``python -m tutelage.train``, which ``tutelage train`` hands over to."""

import signal
import sys

from tutelage.config.targets import take_allowed
from tutelage.errors import UserError, complain

SWEEP_FLAGS = {"-m", "--multirun"}
SHOWING_FLAGS = {"-c", "--cfg", "-i", "--info"}
OTHER_HYDRA_FLAGS = {
    *("--hydra-help", "--version", "-p", "--package", "--resolve", "-r", "--run", "-sc", "--shell-completion"),
    *("-cp", "--config-path", "-cn", "--config-name", "--experimental-rerun"),
}


def main() -> None:
    """Check the command, then train, go on, or print the result of a run that is finished."""
    from tutelage.runs.cluster.signals import defer_slurm_signals

    defer_slurm_signals()
    try:
        from tutelage.app.job import execute
        from tutelage.app.sweep import answer_by_hydra, sweep
        from tutelage.config.compose import CONFIG_DIR_FLAGS, compose, options, split_words
        from tutelage.sweeps.overrides import own_sweep

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
            sys.exit(answer_by_hydra(arguments))
        overrides, folders = split_words([argument for argument in arguments if argument not in SWEEP_FLAGS])
        swept = own_sweep(overrides, folders)
        if flags or swept is not None or "hydra.mode=MULTIRUN" in overrides:
            sys.exit(sweep([*overrides, *(swept or [])], folders))
        sys.exit(execute(compose(overrides, folders), arguments))
    except UserError as error:
        sys.exit(complain(error))
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


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


if __name__ == "__main__":
    main()
