"""The exception for a user's mistakes, its one line on stderr, the exit codes, and names that stdout cannot encode."""

import re
import sys
import time
from io import TextIOWrapper

from tutelage.world import read_world

USER_ERROR = 2  # exit code
MAX_REASON_LENGTH = 200  # characters of a library's own message that ours quotes
BY_SIGNAL = 128  # plus the number of the signal that ended a process: its exit code in a shell
RANK0_HEAD_START_SECONDS = 2.0  # srun may end all processes once one has ended: rank 0, which prints, ends first
_ERROR_TYPE = re.compile(r"^tutelage\.[\w.]+: ")  # with which the last line of a traceback begins


class UserError(Exception):
    """An error that the user can correct; it ends in one line on stderr and exit code 2.

    The message names the thing, its value and the way out.
    """


def quote_error(error: BaseException) -> str:
    """Return the message of a library's error for use within ours: on one line, cut to ``MAX_REASON_LENGTH``."""
    return " ".join(str(error).split())[:MAX_REASON_LENGTH]


def escape_stdout() -> None:
    """Let prints to stdout escape what its encoding lacks, such as bytes of a path that are not UTF-8, as to stderr."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def complain(error: UserError) -> int:
    """Print the error's one line, in the first of a run's processes alone, and return the exit code.

    The message of an error in a DataLoader's worker starts with the worker's traceback: its last line is printed.
    """
    line = _ERROR_TYPE.sub("", str(error).strip().splitlines()[-1])
    if read_world().is_rank0:
        print(f"tutelage: {line}", file=sys.stderr, flush=True)
    else:
        time.sleep(RANK0_HEAD_START_SECONDS)
    return USER_ERROR
