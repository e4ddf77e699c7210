"""The ``tutelage`` command. Modules are imported only where they are needed, so that ``--help`` prints at once."""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import NamedTuple


class Command(NamedTuple):
    """A command: the words that follow it, what it does in a line, and its function, which may return an exit code."""

    words: str
    line: str
    function: str


COMMANDS: Mapping[str, Command] = {
    "train": Command(
        "[OVERRIDES]", "train a run, resume it, or print its result", "tutelage.app.commands:execute_training"
    ),
    "recipe": Command(
        "[OVERRIDES]", "the settings that fit your pictures, each with its reason", "tutelage.app.commands:print_recipe"
    ),
    "fetch": Command(
        "[OVERRIDES]",
        "bring weights and datasets to the cache, for machines without network",
        "tutelage.app.commands:fetch",
    ),
    "preview": Command(
        "[OVERRIDES]",
        "a picture of what the network will see: views, operations, mixed pairs",
        "tutelage.app.commands:preview",
    ),
    "runs": Command(
        "[DIR]", "list the runs below outputs/; 'runs clean' removes what is of no use", "tutelage.app.runs:run_command"
    ),
    "label": Command(
        "RUN", "help a run to label its pool: from another terminal, GPU or machine", "tutelage.app.commands:label_pool"
    ),
    "predict": Command(
        "RUN... PATHS...", "label pictures: folders, lists, tables, shards", "tutelage.app.predict:predict"
    ),
    "report": Command(
        "RUN... [data.root=DIR]", "write the report of finished runs again", "tutelage.app.report:rewrite_reports"
    ),
    "evaluate": Command(
        "RUN... [KEY=VALUE]",
        "accuracy on other pictures, under shifts, or of several runs as one",
        "tutelage.app.evaluate:evaluate",
    ),
    "export": Command(
        "RUN --format NAME", "its network as files that need no tutelage, with a card", "tutelage.app.export:export"
    ),
    "explain": Command(
        "RUN [PATHS...]",
        "what its network has learned, as a page of pictures; --summary: its layers",
        "tutelage.app.explain:explain",
    ),
    "completion": Command(
        "bash|zsh|fish",
        "complete commands by the Tab key: tutelage completion --help",
        "tutelage.app.completion:print_script",
    ),
}
CONFIGLESS = ("runs", "completion")  # commands that read no config: they answer at once


def main() -> None:
    """Run a sub-command; a user's error ends in one line on stderr and exit code 2."""
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what may follow
        from tutelage.app.completion import complete

        complete({name: command.function.partition(":")[0] for name, command in COMMANDS.items()})
        return
    if not sys.argv[1:] or sys.argv[1] in {"-h", "--help", "help"}:
        print(format_help(), end="")
        return
    if sys.argv[1] == "--version":
        from tutelage import __version__

        print(f"tutelage {__version__}")
        return
    from tutelage.app.parsers import PARSERS
    from tutelage.errors import UserError, complain, escape_stdout

    escape_stdout()
    try:
        arguments = sys.argv[1:] if sys.argv[1] in CONFIGLESS else _prepare(sys.argv[1:])
        if not arguments:
            print(format_help(), end="")
            return
        name, *others = arguments
        command = _find_command(name)
        if {"-h", "--help"} & set(others) and name in PARSERS and name != "train":
            PARSERS[name]().print_help()
            return
        code = command(others)
        sys.stdout.flush()
        if code:
            sys.exit(code)
    except UserError as error:
        sys.exit(complain(error))
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def format_help() -> str:
    """Return the text of ``tutelage --help``: a line for each command."""
    starts = {name: f"  tutelage {name} {command.words}" for name, command in COMMANDS.items()}
    width = max(map(len, starts.values()))
    lines = [f"{starts[name]:<{width}}  {command.line}" for name, command in COMMANDS.items()]
    head = ["tutelage trains image classifiers from few labels.", ""]
    foot = ["", "tutelage COMMAND --help has examples and options."]
    return "\n".join([*head, *lines, *foot, ""])


def _prepare(arguments: list[str]) -> list[str]:
    """Apply ``--allow`` and set what processes inherit, before any config is read; return the other arguments."""
    from tutelage.config.allowed_folder import SAFE_PATH_VARIABLE
    from tutelage.config.targets import apply_allow_flags

    os.environ[SAFE_PATH_VARIABLE] = "1"  # for the processes that this one becomes or starts
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as in training; before torch starts
    return apply_allow_flags(arguments)


def _find_command(name: str) -> Callable[[list[str]], int | None]:
    from tutelage.errors import UserError

    if name not in COMMANDS:
        import difflib

        matches = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {matches[0]!r}?" if matches else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}: {hint}")
    module, _, function = COMMANDS[name].function.partition(":")
    command: Callable[[list[str]], int | None] = getattr(import_module(module), function)
    return command


if __name__ == "__main__":
    main()
