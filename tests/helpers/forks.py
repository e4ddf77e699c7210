"""Code in forks of the test's process."""

import os
import pickle
import sys
import traceback
from collections.abc import Callable
from typing import Any


def call_in_fork(work: Callable[[], int]) -> int:
    """Run ``work`` in a fork of this process, where all imports are done, and return its exit code (-9 if killed)."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])


def return_from_fork(work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns in a fork of this process, or raise the error that it raises there.

    It is for what changes a process for good: torch's exporters and compilers pretend devices, after which a process
    that trains can have no forks that train.
    """
    reader, writer = os.pipe()

    def send() -> int:
        try:
            answer = True, work()
        except Exception as error:
            answer = False, error
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(answer, pipe)
        return 0

    process = fork(send)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    succeeded, answer = pickle.loads(content)
    if not succeeded:
        raise answer
    return answer


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
