"""Commands under test run in forks of a server; they end as they would in processes of their own."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers import fork_server
from helpers.commands import command, fresh_command
from helpers.forks import fork
from helpers.overrides import QUIET
from helpers.runs import only_run


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("tutelage.cli", ["--version"]),
        ("tutelage.cli", ["trian"]),
        ("tutelage.cli", ["train", "--help"]),
        ("tutelage.cli", ["train", "modle.width=2"]),  # hands over to another program
        ("tutelage.train", ["seed=-1"]),
    ],
)
def test_a_command_in_a_fork_ends_and_prints_as_one_in_a_process_of_its_own(module, arguments):
    forked, fresh = command(module, *arguments), fresh_command(module, *arguments)
    assert (forked.returncode, forked.stdout, forked.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)


def test_a_fork_trains_with_two_threads(outputs):
    """It would hang if the forking process had already entered a parallel region."""
    overrides = [*QUIET, "model=small_vgg", "model.width=0.25", "debug=tiny", "trainer.threads=2"]
    assert command("tutelage.train", *overrides, f"paths.outputs={outputs}").returncode == 0
    assert json.loads((only_run(outputs) / "run.json").read_text())["threads"] == 2


def write_model(folder: Path, body: str) -> list[str]:
    """Write an architecture that runs ``body`` when it is imported; return what names it."""
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "odd.py").write_text(body)
    (folder / "conf" / "model" / "odd.yaml").write_text("_target_: odd.Net\n")
    return ["--config-dir=conf", "--allow=odd", "model=odd", "debug=tiny", "callbacks=quiet"]


def test_a_fork_that_is_killed_or_fails_says_so_and_changes_nothing_for_the_next(tmp_path):
    overrides = write_model(tmp_path, f"import os\nos.kill(os.getpid(), {signal.SIGKILL.value})\n")
    assert command("tutelage.train", *overrides, cwd=tmp_path).returncode == -signal.SIGKILL
    (tmp_path / "odd.py").write_text("import os\nos.environ['ODD'] = 'yes'\nraise BaseException('odd')\n")
    failed = command("tutelage.train", *overrides, cwd=tmp_path)
    assert failed.returncode == 1
    assert "BaseException: odd" in failed.stderr
    (tmp_path / "odd.py").write_text(
        "import os\nprint(os.environ.get('ODD'), os.environ['EVEN'], os.getcwd())\n1 / 0\n"
    )
    last = command("tutelage.train", *overrides, cwd=tmp_path, env={**os.environ, "EVEN": "yes"})
    assert last.stdout.splitlines()[-1] == f"None yes {tmp_path}"


def test_forks_run_side_by_side(tmp_path):
    """Each of the two commands waits for the other's file."""
    body = "import os, pathlib, time\nname = os.environ['NAME']\npathlib.Path(name).touch()\n"
    body += "while not pathlib.Path({'a': 'b', 'b': 'a'}[name]).exists(): time.sleep(0.01)\nos._exit(7)\n"
    overrides = write_model(tmp_path, body)
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(
                command, "tutelage.train", *overrides, f"seed={n}", cwd=tmp_path, env={**os.environ, "NAME": name}
            )
            for n, name in enumerate("ab")
        ]
        assert [run.result().returncode for run in runs] == [7, 7]


def test_the_commands_of_a_killed_test_are_killed_and_the_server_goes_on(tmp_path):
    body = "import os, pathlib, time\npathlib.Path(str(os.getpid())).touch()\ntime.sleep(600)\n"
    overrides = write_model(tmp_path / "begun", body)
    test = fork(lambda: command("tutelage.train", *overrides, cwd=tmp_path / "begun").returncode)
    while not (processes := [int(file.name) for file in (tmp_path / "begun").glob("[0-9]*")]):
        time.sleep(0.01)
    os.kill(test, signal.SIGKILL)
    os.waitpid(test, 0)
    while Path(f"/proc/{processes[0]}/cmdline").exists():
        time.sleep(0.01)
    assert command("tutelage.cli", "--version").returncode == 0


@pytest.mark.slow
def test_a_server_ends_with_the_tests_and_takes_its_forks_along(tmp_path, monkeypatch):
    monkeypatch.setenv(fork_server.ADDRESS, "")
    server = fork_server.start()
    body = "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(600)\n"
    overrides = write_model(tmp_path, body)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(fork_server.run_in_fork, "tutelage.train", *overrides, cwd=tmp_path)
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert server.poll() is None
            time.sleep(0.01)
        fork_server.stop(server)
        with pytest.raises(AssertionError, match="the server has ended"):
            running.result()
    assert server.returncode == 0
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}/cmdline").exists()
