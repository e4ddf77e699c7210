"""Code in forks of the test's process."""

import os
import sys
import traceback
from collections.abc import Callable


def call_in_fork(work: Callable[[], int]) -> int:
    """Run ``work`` in a fork of this process, where all imports are done, and return its exit code (-9 if killed)."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])


def fork(work: Callable[[], int]) -> int:
    """Start ``work`` in a fork of this process and return its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
