"""The one exception that a user is meant to see."""

import sys

USER_ERROR = 2  # exit code


class UserError(Exception):
    """Something the user can put right; ends in one line on stderr and exit code 2.

    The message names the thing, its value and the way out.
    """


def complain(error: UserError) -> int:
    """Print the one line and return the exit code.

    One that was raised in a DataLoader's worker comes with that process's traceback before it: the last line counts.
    """
    line = str(error).strip().splitlines()[-1].removeprefix("tutelage.errors.UserError: ")
    print(f"tutelage: {line}", file=sys.stderr)
    return USER_ERROR
