"""Arguments of commands: what is wrong with them ends in one line."""

import argparse
from typing import NoReturn

from tutelage.errors import UserError


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose errors are the user's; its program is ``tutelage COMMAND``."""

    def error(self, message: str) -> NoReturn:
        """Raise a UserError."""
        raise UserError(f"{self.prog.removeprefix('tutelage ')}: {message}; '{self.prog} --help' says what it takes")
