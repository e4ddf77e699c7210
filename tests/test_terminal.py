"""``tutelage runs`` and ``runs clean``, the help of each command, and tab completion: on folders without a network."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import tutelage
from helpers.commands import command, fresh_command, loaded_packages
from helpers.forks import call_in_fork
from helpers.paths import ROOT
from tutelage import storage
from tutelage.app import clean
from tutelage.app.runs import run_command
from tutelage.cli import COMMANDS
from tutelage.runs import listing
from tutelage.runs.folder import SCHEMA_VERSION, RunFolder
from tutelage.runs.listing import list_summaries
from tutelage.runs.summary import RunSummary
from tutelage.storage import REMOVED_PREFIX
from tutelage.terminal.run_table import DROPPED_FIRST, HEAD, MOST_ROWS, format_age, layout_rows

DAY = 86400


def write_run(folder: Path, status: str = "finished", accuracy: float = 0.9, age: float = 60.0, **more) -> Path:
    """Write a run of one stage whose network is 1,000 bytes; finished ones have all that they need."""
    started = datetime.now(UTC) - timedelta(seconds=age)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.ckpt").write_bytes(bytes(1000))
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "metrics.csv").write_text("step\n")
    model = {"_target_": "tutelage.models.MLP", "width": 400}
    is_finished = status == "finished"
    lines = {"checkpoints/best.ckpt": {"bytes": 1000, "sha256": "0"}}
    stage = {"name": "network", "kind": "train", "control": False, "model": model, "steps": 3, "files": lines}
    record = {
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "started": started.isoformat(timespec="seconds"),
        "identity": {"model": model, "strategy": {"_target_": "tutelage.strategies.fixmatch.FixMatchStrategy"}},
        "data": {"test": 200, "labelled": [2, 2, 2], "images_per_class": {"val": [20, 20, 20], "test": [100, 60, 40]}},
        "result": {"test/accuracy": accuracy, "val/accuracy": 0.8} if is_finished else {},
        "stages": [{**stage, "result": {"test/accuracy": accuracy}}] if is_finished else [],
        "files": lines,
        **more,
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def settle(root: Path, seconds: float = 10.0) -> None:
    """Make all files below a folder as old as what the cache takes in."""
    past = time.time() - seconds
    for path in [*root.rglob("*"), root]:
        os.utime(path, (past, past))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_run(tmp_path / "outputs" / "digits" / "digits-mlp-fixmatch-s0-0123456789", age=3.5 * 3600)
    write_run(tmp_path / "outputs" / "digits" / "mine", accuracy=0.5, age=2.5 * DAY)
    write_run(tmp_path / "outputs" / "digits" / "failed", "failed", age=5400)
    write_run(tmp_path / "outputs" / "other" / "stopped", "running", age=1800)
    return tmp_path / "outputs"


def cells_of(text: str) -> dict[str, list[str]]:
    """The cells of each row of a table, by the name of the run's folder."""
    rows = [re.split(r" {2,}", line.strip()) for line in text.splitlines()]
    return {Path(row[-1]).name: row for row in rows}


def test_a_list_has_budget_strategy_network_result_interval_age_size_status_and_folder(root):
    process = command("tutelage.cli", "runs", str(root))
    assert process.returncode == 0, process.stderr
    rows = cells_of(process.stdout)
    assert rows["run"] == [*HEAD]
    assert [*rows] == ["run", "mine", "digits-mlp-fixmatch-s0-0123456789", "failed", "stopped"]  # the newest last
    folder = root / "digits" / "digits-mlp-fixmatch-s0-0123456789"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert rows[folder.name] == [
        *("3 h", "finished", "6", "fixmatch", "MLP x400", "90.0 %", "85.1 to 93.4", f"{size / 1000:.1f} kB"),
        str(folder),
    ]
    assert rows["mine"][:4] == ["2 d", "finished", "6", "FixMatchStrategy"]  # no folder of a run's name
    assert rows["failed"][:2] == ["1 h", "failed"] and rows["failed"][5:7] == ["-", "-"]
    assert rows["stopped"][1] == "stopped"  # it calls itself running, and nobody holds its lock


def test_the_folder_may_be_named_as_in_training_and_be_that_of_one_run(root):
    listed = command("tutelage.cli", "runs", f"paths.outputs={root}").stdout
    assert listed.splitlines() == command("tutelage.cli", "runs", str(root)).stdout.splitlines()
    alone = command("tutelage.cli", "runs", str(root / "digits" / "mine")).stdout
    assert [*cells_of(alone)] == ["run", "mine"]
    refused = command("tutelage.cli", "runs", "a", "b")
    assert refused.returncode == 2 and "runs takes one folder, not 2" in refused.stderr


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--status", "failed,stopped"], ["failed", "stopped"]),
        (["--strategy", "fixmatch"], ["digits-mlp-fixmatch-s0-0123456789"]),
        (["--match", "digits/m"], ["mine"]),
        (
            ["--match", "digits", "--status", "finished", "--sort", "result"],
            ["mine", "digits-mlp-fixmatch-s0-0123456789"],
        ),
        (["--sort", "run"], ["digits-mlp-fixmatch-s0-0123456789", "failed", "mine", "stopped"]),
    ],
)
def test_options_choose_and_sort_runs(root, options, names):
    process = command("tutelage.cli", "runs", str(root), *options)
    assert [*cells_of(process.stdout)][1:] == names


def test_what_no_run_fits_and_a_status_that_there_is_not_are_said_in_one_line(root):
    assert "there are 4 others" in command("tutelage.cli", "runs", str(root), "--match", "nowhere").stdout
    process = command("tutelage.cli", "runs", str(root), "--status", "lost")
    assert process.returncode == 2
    assert process.stderr.startswith("tutelage: --status lost: no status; there are finished, running")


def test_json_has_a_run_with_its_interval_and_all_numbers(root):
    runs = json.loads(command("tutelage.cli", "runs", str(root), "--json", "--match", "mine").stdout)
    assert len(runs) == 1
    assert runs[0] | {"size": 0, "started": ""} == {
        "path": str(root / "digits" / "mine"),
        "started": "",
        "status": "finished",
        "test_accuracy": 0.5,
        "reason": "",
        "labels": 6,
        "strategy": "FixMatchStrategy",
        "network": "MLP x400",
        "validation_accuracy": 0.8,
        "test_images": 200,
        "validation_images": 60,
        "size": 0,
        "interval": [pytest.approx(0.4314, abs=1e-4), pytest.approx(0.5686, abs=1e-4)],  # statsmodels' Wilson
    }


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '"run"',
        '{"schema_version": 99}',
        '{"schema_version": 4, "status": "finished", "started": "yesterday", "stages": []}',
        '{"schema_version": 4, "status": "finished"}',
        '{"schema_version": 4, "status": "failed", "data": 3, "result": []}',
        '{"schema_version": 4, "status": "finished", "stages": [7], "files": {}}',
        '{"schema_version": 4, "status": "failed", "stages": {"a": 1}, "result": {"test/accuracy": "x"}}',
        '{"schema_version": 4, "status": "failed", "data": {"labelled": ["a"]}}',
    ],
)
def test_an_odd_record_hides_no_other_run_and_is_a_row_with_the_reason(root, content, capsys):
    odd = write_run(root / "digits" / "odd")
    (odd / "run.json").write_text(content)
    run_command([str(root)])
    output = capsys.readouterr()
    rows = cells_of(output.out)
    assert rows["odd"][1] == "unreadable" and len(rows) == 6
    assert re.fullmatch(r"note: \S+/digits/odd\S* .+\n", output.err)
    run_command([str(root), "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert [run["status"] for run in listed if run["reason"]] == ["unreadable"]
    assert len(tutelage.list_runs(root)) == 5


def test_a_folder_name_cannot_change_the_terminal(root):
    write_run(root / "digits" / "red\x1b[31m\nx")
    lines = command("tutelage.cli", "runs", str(root), "--match", "red").stdout.splitlines()
    assert lines[-1].endswith("/digits/red\\x1b[31m\\nx") and len(lines) == 2


@pytest.mark.parametrize(
    ("seconds", "age"), [(5, "now"), (61, "1 min"), (7300, "2 h"), (3 * DAY, "3 d"), (800 * DAY, "2 y")]
)
def test_an_age_is_in_its_largest_unit(seconds, age):
    started = datetime(2026, 1, 2, 3, 4)
    assert format_age(started.strftime("%Y-%m-%d %H:%M"), started.timestamp() + seconds) == age
    assert format_age("", 0.0) == "-"


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_on_a_narrow_terminal_columns_go_and_the_folder_stays_whole(width):
    row = ("3 h", "finished", "1,000", "noisy_student", "LeNet5 x3", "90.0 %", "85.1 to 93.4", "1.3 GB", "x" * 66)
    lines = layout_rows([row], width)
    assert any("x" * 66 in line for line in lines)
    rest = [line for line in lines if "x" not in line.split()[-1]] if width < 90 else lines
    assert all(len(line) <= width for line in rest)
    heads = lines[0].split()
    assert [name for name in HEAD if name in heads] == heads
    assert {"age", "status", "result"} <= {*heads}
    dropped = [name for name in DROPPED_FIRST if name not in heads]
    assert dropped == [*DROPPED_FIRST[: len(dropped)]]
    assert next(line.split() for line in layout_rows([row])) == [*HEAD]  # where there is no terminal


def test_an_experiment_of_many_runs_is_one_row_on_a_terminal_and_many_elsewhere(root):
    for number in range(MOST_ROWS):
        write_run(
            root / "sweep" / f"run{number}", "failed" if number == 3 else "finished", accuracy=number / 100, age=900
        )
    shown = on_terminal(["runs", str(root)], width=200)
    assert len(shown.splitlines()) == 1 + 4 + 1 + 1
    assert re.search(r"39.0 %.* \S+/sweep  40 runs: 39 finished, 1 failed; the best result", shown)
    assert "44 runs, " in shown and "--sort age lists each" in shown
    assert len(on_terminal(["runs", str(root), "--sort", "age"], width=200).splitlines()) == 1 + 44 + 1
    assert len(on_terminal(["runs", str(root / "sweep")], width=200).splitlines()) == 1 + 40
    assert len(command("tutelage.cli", "runs", str(root)).stdout.splitlines()) == 1 + 44


def on_terminal(arguments: list[str], width: int = 120, typed: str = "") -> str:
    """What a command shows on a terminal of a width, where ``typed`` is typed."""
    environment = {key: value for key, value in os.environ.items() if key not in {"COLUMNS", "LINES"}}
    return in_shell([sys.executable, "-m", "tutelage.cli", *arguments], typed, environment, ROOT, width)


def in_shell(program: list[str], typed: str, environment: dict[str, str], folder: Path, width: int = 120) -> str:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (50, width))
    os.write(ours, typed.encode())
    with subprocess.Popen(program, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=folder):
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the terminal's end
            while part := os.read(ours, 1 << 16):
                shown += part
    os.close(ours)
    return shown.decode()


def list_by_name(root: Path) -> dict[str, RunSummary]:
    return {summary.path.name: summary for summary in list_summaries(root)}


def forbid(*_: object) -> None:
    raise AssertionError("a run is read again that is as it was")


def test_runs_that_are_as_they_were_are_not_read_again(root, monkeypatch):
    for path in ("digits/failed", "other/stopped"):
        shutil.rmtree(root / path)
    settle(root)
    before = list_by_name(root)
    monkeypatch.setattr(listing, "summarize_run", forbid)
    assert list_by_name(root) == before


def replace_record(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    storage.write_json(folder / "run.json", {**record, "result": {"test/accuracy": 0.25}})


CHANGES = {
    "another result": (replace_record, {"test_accuracy": 0.25}),
    "a file was cut": (lambda run: os.truncate(run / "checkpoints/best.ckpt", 10), {"status": "incomplete"}),
    "a file is gone": (lambda run: (run / "checkpoints/best.ckpt").unlink(), {"status": "incomplete"}),
    "no table": (lambda run: (run / "metrics.csv").unlink(), {"status": "incomplete"}),
    "no config": (lambda run: (run / "config.yaml").unlink(), {"status": "incomplete"}),
    "a further file": (lambda run: (run / "checkpoints/last.ckpt").write_bytes(bytes(5000)), {"size": 5000}),
    "no record": (lambda run: (run / "run.json").unlink(), None),
    "an odd record": (lambda run: (run / "run.json").write_text("{"), {"status": "unreadable"}),
    "trained again": (lambda run: write_again(run, "running"), {"status": "stopped", "test_accuracy": None}),
}


def write_again(folder: Path, status: str) -> None:
    shutil.rmtree(folder)
    write_run(folder, status)


@pytest.mark.parametrize("change", CHANGES)
def test_a_list_is_never_stale(root, change):
    settle(root)
    before = list_by_name(root)["mine"]
    act, expected = CHANGES[change]
    act(root / "digits" / "mine")
    after = list_by_name(root).get("mine")
    if expected is None:
        assert after is None
        return
    differences = {name: value for name, value in vars(after).items() if value != vars(before)[name]}
    if "size" in expected:
        assert after.size == before.size + expected["size"] and after.status == "finished"
    else:
        assert {name: differences[name] for name in expected} == expected
    assert list_by_name(root).get("mine") == after


def test_what_changed_a_moment_ago_is_not_remembered(root, monkeypatch):
    """A clock of the file system may be so coarse that a later change bears the same time."""
    list_summaries(root)
    monkeypatch.setattr(listing, "summarize_run", forbid)
    with pytest.raises(AssertionError, match="read again"):
        list_summaries(root)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 1}', '{"format": [1, "0"], "runs": {"digits/mine": 3}}']
)
def test_a_damaged_cache_is_done_without(root, content):
    settle(root)
    expected = list_by_name(root)
    (file,) = (path for path in storage.cache_folder("runs").iterdir() if path.name == listing.cache_file(root).name)
    file.write_text(content.replace('"0"', json.dumps(tutelage.__version__)))
    assert list_by_name(root) == expected
    assert json.loads(file.read_text())["runs"].keys() == {"digits/mine", "digits/digits-mlp-fixmatch-s0-0123456789"}


def test_without_a_place_for_the_cache_runs_are_listed(root, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/none")
    settle(root)
    assert len(list_summaries(root)) == 4


def start_meanwhile(run: Path, monkeypatch: pytest.MonkeyPatch, act) -> None:
    """Let something happen to a run between the list that the user sees and the answer."""
    monkeypatch.setattr(clean, "_agrees", lambda question: bool(act(run)) or True)


def clean_up(root: Path, *options: str) -> None:
    run_command(["clean", str(root), *options])


def names_below(root: Path) -> set[str]:
    return {path.name for path in root.glob("*/*") if not path.name.startswith(".")}


def test_clean_removes_what_did_not_finish_or_lacks_files_and_leftovers(root, capsys):
    incomplete = write_run(root / "other" / "incomplete")
    (incomplete / "metrics.csv").unlink()
    half_removed = write_run(root / "digits" / f"{REMOVED_PREFIX}abc")
    young, old = (root / "digits" / "mine" / f".partial-{name}" for name in ("young", "old"))
    for path, hours in ((young, 0), (old, 2)):
        path.write_bytes(bytes(2000))
        os.utime(path, (time.time() - 3600 * hours,) * 2)
    clean_up(root, "--yes")
    output = capsys.readouterr().out
    assert {"failed", "stopped", "incomplete"} <= {*cells_of(output)}
    assert f"left behind by a command that was killed: {old}  2.0 kB" in output
    assert output.splitlines()[-1].startswith("removed 3 runs and 2 leftovers, ")
    assert names_below(root) == {"mine", "digits-mlp-fixmatch-s0-0123456789"}
    assert young.exists() and not old.exists() and not half_removed.exists()
    clean_up(root, "--yes")
    assert capsys.readouterr().out == f"nothing to clean below {root}\n"


def test_clean_takes_the_options_of_the_list_and_finished_runs_only_by_name(root, capsys):
    half_removed = write_run(root / "digits" / f"{REMOVED_PREFIX}abc")
    clean_up(root, "--match", "digits", "--yes")
    assert names_below(root) == {"mine", "digits-mlp-fixmatch-s0-0123456789", "stopped"}
    clean_up(root, "--status", "finished", "--strategy", "fixmatch", "--yes")
    assert names_below(root) == {"mine", "stopped"}
    assert half_removed.exists()  # no run of the kind that was asked for


@pytest.mark.parametrize(("answer", "goes"), [("y", True), ("YES", True), ("n", False), ("", False), ("\x04", False)])
def test_clean_asks_first_and_no_is_the_default(root, answer, goes):
    shown = on_terminal(["runs", "clean", str(root)], typed=answer if answer == "\x04" else f"{answer}\n")
    assert re.search(r"Remove 2 runs, \d.\d kB\? \[y/N\]", shown)
    assert ("removed 2 runs" in shown, "nothing was removed" in shown) == (goes, not goes)
    assert (root / "digits" / "failed").exists() is not goes


def test_clean_without_a_terminal_lists_and_refuses(root):
    process = command("tutelage.cli", "runs", "clean", str(root))
    assert process.returncode == 2 and "failed" in process.stdout
    assert process.stderr.count("\n") == 1 and "--yes removes without asking" in process.stderr
    assert {"failed", "stopped"} <= names_below(root)


def hold_by_another_process(file: Path) -> subprocess.Popen[str]:
    program = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
    file.parent.mkdir(parents=True, exist_ok=True)
    holder = subprocess.Popen([sys.executable, "-c", program, str(file)], stdin=-1, stdout=-1, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "\n"
    return holder


def test_clean_never_touches_a_run_that_is_in_use(root, monkeypatch, capsys):
    stopped, failed = root / "other" / "stopped", root / "digits" / "failed"
    with hold_by_another_process(RunFolder(stopped).lock_file) as holder:
        assert list_by_name(root)["stopped"].status == "running"
        clean_up(root, "--yes", "--status", "running,stopped")
        assert "nothing to clean" in capsys.readouterr().out
        holder.communicate("\n")
    holders = []
    lock = RunFolder(stopped).lock_file
    start_meanwhile(stopped, monkeypatch, lambda _: holders.append(hold_by_another_process(lock)))
    shards = failed / "stages" / "1-labels" / "labels" / ".locks" / "00000"
    with hold_by_another_process(shards) as worker:
        clean_up(root)
        worker.communicate("\n")
    holders[0].communicate("\n")
    output = capsys.readouterr()
    assert "removed 0 runs, 0.0 kB" in output.out
    assert re.search("left alone: run .*/stopped is in use by another process", output.err)
    assert "failed: another process labels its pool" in output.err
    assert stopped.exists() and failed.exists()


def test_clean_leaves_a_run_that_has_finished_since_it_was_listed(root, monkeypatch, capsys):
    start_meanwhile(root / "digits" / "failed", monkeypatch, lambda run: write_again(run, "finished"))
    clean_up(root)
    assert "failed: finished since it was listed" in capsys.readouterr().err
    assert names_below(root) == {"mine", "digits-mlp-fixmatch-s0-0123456789", "failed"}


def test_clean_leaves_links_alone_and_what_lies_behind_them(root, tmp_path, capsys):
    target = write_run(tmp_path / "elsewhere" / "run", "failed")
    partial = target.parent / ".partial-old"
    partial.write_bytes(b"")
    os.utime(partial, (0, 0))
    (root / "digits" / "link").symlink_to(target)
    (root / "experiment").symlink_to(target.parent)
    clean_up(root, "--yes")
    errors = capsys.readouterr().err
    assert "link: a link; remove it" in errors and "experiment: a link; remove it" in errors
    assert (target / "run.json").exists() and partial.exists()
    clean_up(root / "experiment", "--yes")  # a link that is named is meant
    assert not target.exists() and not partial.exists()


@pytest.mark.parametrize("moment", ["replace", "flush_folder", "rmtree"])
def test_a_clean_that_is_killed_leaves_a_run_whole_or_out_of_view(root, moment):
    failed = root / "digits" / "failed"
    files = set(failed.rglob("*"))
    owner = {"replace": Path, "flush_folder": storage, "rmtree": storage.shutil}[moment]
    function = getattr(owner, moment)

    def die(path: str | Path, *others: object) -> None:
        if moment == "rmtree":
            (Path(path) / "run.json").unlink()
        elif path not in {failed, failed.parent}:  # the lock's holder is written, too
            return function(path, *others)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    def work() -> int:
        setattr(owner, moment, die)
        clean_up(root, "--match", "failed", "--yes")
        return 0

    assert call_in_fork(work) == -signal.SIGKILL
    if moment == "replace":
        assert set(failed.rglob("*")) == files
    else:
        assert not failed.exists() and "failed" not in list_by_name(root)
    assert len(list((root / "digits").glob(f"{REMOVED_PREFIX}*"))) == 1
    clean_up(root, "--yes")
    assert not list((root / "digits").glob(f"{REMOVED_PREFIX}*")) and not failed.exists()


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_every_command_has_a_help_with_examples(name):
    process = command("tutelage.cli", name, "--help")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(f"usage: tutelage {name}")
    assert re.search(rf"\n  .*tutelage {name}\b", process.stdout), "no example"
    assert max(map(len, process.stdout.splitlines())) <= 120


def test_the_plain_help_is_one_screen_with_a_line_on_each_command():
    text = command("tutelage.cli", "--help").stdout
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 120
    for name, entry in COMMANDS.items():
        assert re.search(rf"^  tutelage {name} .*{re.escape(entry.line)}$", text, re.MULTILINE)


def test_runs_and_their_help_answer_without_torch_hydra_and_the_schema(root):
    for arguments in (["runs", str(root)], ["runs", "--help"]):
        process, loaded = loaded_packages("tutelage.cli", *arguments)
        assert process.returncode == 0
        assert not loaded & {"torch", "hydra", "omegaconf", "pydantic", "numpy", "rich", "yaml"}


COMPLETED = {
    "tutelage ru": {"runs"},
    "tutelage pre": {"preview", "predict"},
    "tutelage train model=ml": {"mlp"},
    "tutelage train -m model=mlp,ml": {"mlp,mlp"},
    "tutelage train sched": {"scheduler=", "schedule.epochs=", "schedule.min_steps=", "schedule.steps="},
    "tutelage train model=mlp model.": {f"model.{key}=" for key in ("width", "depth", "dropout", "frozen_layers")},
    "tutelage train --config-dir own model=mi": {"mine"},
    "tutelage train data.root=out": {"outputs/"},
    "tutelage runs --status f": {"finished", "failed"},
    "tutelage runs cl": {"clean"},
    "tutelage report ": {r"outputs/a\ experiment/", "outputs/digits/", "outputs/other/"},
    "tutelage report outputs/digits/m": {"outputs/digits/mine"},
    "tutelage report outputs/a": {r"outputs/a\ experiment/"},
    "tutelage evaluate outputs/digits/mine --js": {"--json"},
    "tutelage export --format sa": {"safetensors"},
    "tutelage completion ": {"bash", "zsh", "fish"},
}
ASK_BASH = r"""
eval "$(tutelage completion bash)"
for COMP_LINE in "$@"; do
  COMP_POINT=${#COMP_LINE} COMP_TYPE=9 COMPREPLY=()
  _python_argcomplete tutelage
  (IFS='|'; echo "${COMPREPLY[*]}")
done
"""


@pytest.fixture
def shell(root, tmp_path) -> dict[str, str]:
    """A folder with runs and options of one's own, and the environment in which ``tutelage`` is this one."""
    (root / "a experiment").mkdir()
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").write_text("# mine\n")
    program = tmp_path / "bin" / "tutelage"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tutelage.cli "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "TERM": "dumb"}


def test_bash_completes_commands_options_overrides_and_runs(shell, tmp_path):
    words = ["bash", "--norc", "-c", ASK_BASH, "bash", *COMPLETED]
    process = subprocess.run(words, cwd=tmp_path, env=shell, capture_output=True, text=True, check=True)
    answers = [{word.strip() for word in line.split("|")} for line in process.stdout.splitlines()]
    assert dict(zip(COMPLETED, answers, strict=True)) == COMPLETED


@pytest.mark.slow
def test_zsh_completes(shell, tmp_path):
    script = "autoload -U compinit; compinit -u -D; eval \"$(tutelage completion zsh)\"; PROMPT='> '\n"
    typed = (
        f"{script}tutelage runs --status fin\t\x01echo \x05\nexit\n"  # Ctrl-A, Ctrl-E: what was completed is printed
    )
    shown = in_shell(["zsh", "-f", "-i"], typed, shell, tmp_path)
    assert "tutelage runs --status finished" in shown


@pytest.mark.slow
def test_fish_completes(shell, tmp_path):
    script = "tutelage completion fish | source; complete -C 'tutelage train model=ml'; complete -C 'tutelage pre'"
    process = subprocess.run(
        ["fish", "--no-config", "-c", script], cwd=tmp_path, env=shell, capture_output=True, text=True
    )
    assert {line.split("\t")[0] for line in process.stdout.splitlines()} == {"model=mlp", "preview", "predict"}


def test_completion_loads_neither_torch_nor_the_schema(tmp_path):
    line, answer = "tutelage train model=ml", tmp_path / "answer"
    environment = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_SHELL": "fish"}
    environment |= {"PYTHONPROFILEIMPORTTIME": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    process = fresh_command("tutelage.cli", env={**os.environ, **environment})
    assert answer.read_text().strip() == "model=mlp"
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in process.stderr.splitlines()}
    assert "argcomplete" in loaded and not loaded & {"torch", "hydra", "pydantic", "numpy"}
