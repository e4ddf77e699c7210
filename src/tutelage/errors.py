"""The one exception that a user is meant to see."""

import sys
import time

from tutelage.process_group import read_world

USER_ERROR = 2  # exit code
BY_SIGNAL = 128  # and the signal's number: the exit code of what a signal ended, by the shell's custom
FIRST_SPEAKS_SECONDS = 2.0  # srun may end all processes at the first that ends: that is to be the one that speaks


class UserError(Exception):
    """Something the user can put right; ends in one line on stderr and exit code 2.

    The message names the thing, its value and the way out.
    """


def complain(error: UserError) -> int:
    """Print the one line, where this is the first of a run's processes, and return the exit code.

    One that was raised in a DataLoader's worker comes with that process's traceback before it: the last line counts.
    """
    line = str(error).strip().splitlines()[-1].removeprefix("tutelage.errors.UserError: ")
    if read_world().is_rank0:
        print(f"tutelage: {line}", file=sys.stderr, flush=True)
    else:
        time.sleep(FIRST_SPEAKS_SECONDS)
    return USER_ERROR
