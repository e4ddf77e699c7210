"""Arguments of commands: what is wrong with them ends in one line."""

import argparse
from typing import NoReturn

from tutelage.errors import UserError

STAGE_HELP = "the network of a stage, such as student-1; else the run's last one"
TASK_HELP = "of a network with several tasks the one that is meant, from 1"


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose errors are the user's, and whose ``--help`` prints texts as they are."""

    def __init__(self, command: str, words: str, description: str, epilog: str = "") -> None:
        """Describe a command.

        Args:
            command: its name.
            words: that follow it.
            description: what it does, with examples.
            epilog: what is said after the options.
        """
        super().__init__(
            prog=f"tutelage {command}",
            usage=f"tutelage {command} {words}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise a UserError."""
        raise UserError(f"{self.prog.removeprefix('tutelage ')}: {message}; '{self.prog} --help' says what it takes")
