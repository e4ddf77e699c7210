"""A process that has imported what the commands import, and runs each command under test in a fork of itself.

Importing torch, Lightning and Albumentations takes seconds, and a command that tests type takes a fraction of one. The
server imports, once and at the first command, and does nothing else: no parallel region of OpenMP is entered and
OpenBLAS has one thread, so that a fork may use as many threads as a process of its own.

A command in a fork differs from ``python -m MODULE`` in what is loaded when it begins. What start-up costs, what is not
imported, and what a signal does to a process that loads is therefore tested with ``fresh_command`` of commands.py.
"""

import atexit
import gc
import importlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NoReturn

ADDRESS = "TUTELAGE_TEST_SERVER"  # environment variable: path of the server's socket
PRELOADED = (  # and what these import
    *("sklearn.datasets", "matplotlib.pyplot", "pyarrow.parquet", "rich._emoji_codes", "timm", "PIL.JpegImagePlugin"),
    *("torch.utils.tensorboard", "torch.utils.serialization.config", "omegaconf._impl", "antlr4.LL1Analyzer"),
    *("hydra.core.plugins", "hydra._internal.instantiate._instantiate2"),
    *("tutelage.cli", "tutelage.train", "tutelage.app.sweep", "tutelage.app.job", "tutelage.runs.runner"),
    *(
        "tutelage.report.sweep_report",
        "tutelage.terminal.display",
        "tutelage.explain.preview",
        "tutelage.report.run_report",
    ),
    *(
        "jinja2",
        "tutelage.report.search_pictures",
        "tutelage.report.shifts",
        "tutelage.explain.summary",
        "tutelage.terminal.table",
    ),
    *("tutelage.app.predict", "tutelage.inference.predict"),
)
SAFE_PATH = "PYTHONSAFEPATH"  # environment variable: python -m does not put the current folder into sys.path
LENGTH = 4  # bytes that say how long a request is


@cache
def preload() -> None:
    """Import what a run imports, Hydra's plugins too, so that forks of this process need not.

    What is there then is left out of collections of garbage, which in a fork would copy all of it.
    """
    for module in PRELOADED:
        importlib.import_module(module)
    sys.modules["hydra.core.plugins"].Plugins.instance()
    gc.collect()
    gc.freeze()


def start() -> subprocess.Popen[bytes]:
    """Start the server and tell this process's children of it; it ends with this process, however that ends."""
    os.environ[ADDRESS] = str(Path(tempfile.mkdtemp(prefix="tutelage-tests-")) / "socket")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.environ[ADDRESS])
    listener.listen(64)
    command = [sys.executable, __file__, str(listener.fileno())]
    with listener:
        return subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server, and wait for it: its time counts as that of this process's children."""
    server.terminate()
    server.wait()
    shutil.rmtree(Path(os.environ.pop(ADDRESS)).parent)


def run_in_fork(
    module: str, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module`` in a fork of the server; return its exit code (-9 if killed) and what it printed."""
    request = {
        "module": module,
        "arguments": arguments,
        "cwd": str(cwd),
        "env": dict(os.environ if env is None else env),
    }
    with (
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
        socket.socket(socket.AF_UNIX) as server,
    ):
        server.connect(os.environ[ADDRESS])
        body = json.dumps(request).encode()
        socket.send_fds(server, [len(body).to_bytes(LENGTH)], [stdout.fileno(), stderr.fileno()])
        server.sendall(body)
        answer = server.recv(64)
        printed = []
        for file in (stdout, stderr):
            file.seek(0)
            printed.append(file.read().decode())
    assert answer, f"the server has ended: {printed[1]}"
    return subprocess.CompletedProcess([module, *arguments], int(answer), *printed)


def serve(listener: socket.socket) -> None:
    """Fork for each request until SIGTERM or the end of standard input; kill what runs when its client is gone."""
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(wake)
    running: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([0, woken, listener, *running.values()], [], [])
        signals = os.read(woken, 1024) if woken in ready else b""
        if 0 in ready or signal.SIGTERM in signals:
            for child in running:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            return
        for child, client in list(running.items()):
            if client in ready:  # a client sends nothing more, so it has ended
                os.kill(child, signal.SIGKILL)
        if signals:
            _report_exit_codes(running)
        if listener in ready:
            client, _ = listener.accept()
            length, files, *_ = socket.recv_fds(client, LENGTH, 2)
            request = client.makefile("rb").read(int.from_bytes(length))
            try:
                preload()
            except BaseException:
                os.write(files[1], traceback.format_exc().encode())
                raise
            child = os.fork()
            if not child:
                _run_module(json.loads(request), files)
            for file in files:
                os.close(file)
            running[child] = client


def _report_exit_codes(running: dict[int, socket.socket]) -> None:
    """Send the exit codes of ended children to their clients."""
    for child in list(running):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            with running.pop(child) as client, suppress(OSError):  # it may be gone
                client.sendall(str(os.waitstatus_to_exitcode(status)).encode())


class Handover(BaseException):
    """Raised where the process would have become ``python -m`` with these arguments."""


def _run_module(request: dict, files: list[int]) -> NoReturn:
    """Run ``python -m MODULE ARGUMENTS`` in this process and exit with its code."""
    import numpy as np

    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for target, file in enumerate([os.open(os.devnull, os.O_RDONLY), *files]):
        os.dup2(file, target)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    if SAFE_PATH not in os.environ:
        sys.path.insert(0, request["cwd"])
    importlib.invalidate_caches()
    random.seed()
    np.random.seed()
    os.execv = _hand_over
    words, code = [request["module"], *request["arguments"]], None
    while words:
        sys.argv, words = words, []
        try:
            sys.modules[sys.argv[0]].main()
        except Handover as to:
            words = to.args[0]
            if SAFE_PATH in os.environ and sys.path[0] == request["cwd"]:
                del sys.path[0]
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
            code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if isinstance(code, str) else code or 0)


def _hand_over(program: str, words: list[str]) -> NoReturn:
    assert words[:2] == [sys.executable, "-m"]
    raise Handover(words[2:])


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # what was imported has nothing to clean up
