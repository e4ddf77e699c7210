"""One of the processes that ``app.launch`` starts: reads the config from its input and runs it."""

import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from tutelage.app.job import LAUNCHED, run_job
from tutelage.app.launch import FORWARDED
from tutelage.errors import USER_ERROR, UserError, complain
from tutelage.runs.cluster.process_checks import Abandoned
from tutelage.runs.cluster.signals import Signals

PR_SET_PDEATHSIG = 1  # of prctl(2)


def main() -> None:
    """Run the config, with signal handlers from the start: a process that a signal kills would leave the others."""
    from tutelage.config import Config

    Signals().install()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    _stop_with_parent(int(os.environ[LAUNCHED]))
    order: Mapping[str, Any] = json.load(sys.stdin)
    try:
        sys.exit(run_job(Config.model_validate(order["config"]), order["arguments"]))
    except Abandoned:  # the parent saw how the other process ended, and prints it
        sys.exit(USER_ERROR)
    except UserError as error:
        sys.exit(complain(error))


def _stop_with_parent(parent: int) -> None:
    """Let the kernel send SIGTERM when the parent ends, where the system can do that."""
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
