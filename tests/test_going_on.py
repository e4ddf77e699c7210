"""What comes after training: the page's commands; more labels, one more class, a longer schedule."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import tutelage
from helpers.commands import command
from helpers.overrides import QUIET
from helpers.paths import ROOT
from tutelage.data.files.folders import list_folder
from tutelage.errors import UserError
from tutelage.runs import RunFolder
from tutelage.runs.siblings import MOST_RUNS, find_other_schedule

PAGE = "docs/after_training.md"
TEXT = (ROOT / PAGE).read_text()
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]
TRAIN = "tutelage train "
NOTE = "note: a new run, from its first step on: "
IDENTITY = {"seed": 0, "model": {"width": 3}, "schedule": {"steps": 100}}


def write_record(folder: Path, content) -> None:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_only_a_finished_run_with_another_schedule_alone_is_found(tmp_path):
    longer = {**IDENTITY, "schedule": {"steps": 200}}
    new = RunFolder(tmp_path / "new")
    others = {
        "broken": "{",
        "a-list": [],
        "strange": {"status": "finished", "identity": 7},
        "unfinished": {"status": "stopped", "identity": IDENTITY},
        "other-seed": {"status": "finished", "identity": {**IDENTITY, "seed": 1}},
        "begun-from-it": {"status": "finished", "identity": {**IDENTITY, "init_from": "abc"}},
        "itself": {"status": "finished", "identity": longer},
    }
    assert find_other_schedule(new, longer) is None
    for name, content in others.items():
        write_record(tmp_path / name, content)
    (tmp_path / "folder" / "run.json").mkdir(parents=True)
    assert find_other_schedule(new, longer) is None
    write_record(tmp_path / "shorter", {"status": "finished", "identity": IDENTITY})
    assert find_other_schedule(new, longer) == tmp_path / "shorter"
    write_record(tmp_path / "default", {"status": "finished", "identity": {"seed": 0, "model": {"width": 3}}})
    assert find_other_schedule(new, {"seed": 0, "model": {"width": 3}}) == tmp_path / "shorter"


def test_of_very_many_runs_the_newest_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("tutelage.runs.siblings.MOST_RUNS", 2)
    assert MOST_RUNS >= 100
    for age, name in enumerate(("newest", "newer", "old")):
        write_record(tmp_path / name, {"status": "finished" if name == "old" else "failed", "identity": IDENTITY})
        os.utime(tmp_path / name / "run.json", (1000 - age, 1000 - age))
    assert find_other_schedule(RunFolder(tmp_path / "new"), {"seed": 0, "model": {"width": 3}}) is None


@pytest.mark.slow
def test_a_longer_schedule_is_said_to_be_a_new_run_and_a_sweep_over_schedules_is_not(tmp_path):
    def train(*words: str):
        process = command("tutelage.train", *QUIET, "model=perceptron", "callbacks.report=false", *words, cwd=tmp_path)
        assert process.returncode == 0, process.stderr
        return process.stderr

    assert NOTE not in train("schedule.steps=2")
    (first,) = tmp_path.glob("outputs/*/*/run.json")
    name = first.parent.relative_to(tmp_path)
    longer = train("schedule.steps=3")
    assert f"{NOTE}{name}, " in longer and longer.count(f"init_from={name}\n") == 1
    assert NOTE not in train("schedule.steps=3")  # finished by now
    assert NOTE not in train("-m", "schedule.steps=4")


def test_a_single_class_is_refused_with_a_way_out(tmp_path):
    for root, label, message in ((tmp_path / "new", "cross", "cross"), (tmp_path / "deep", "inner/a", "inner")):
        (root / label).mkdir(parents=True)
        Image.new("L", (8, 8)).save(root / label / "1.png")
        with pytest.raises(UserError, match=rf"found 1 class \({message}\) .*, as nothing says what {message} is not"):
            list_folder(str(root), False, "classes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the run of ``make experiment``, in a few steps, and pictures of digits and of crosses."""
    folder = tmp_path_factory.mktemp("going-on")
    process = command("tutelage.train", "experiment=digits_noisy_student", *SMALL, cwd=folder)
    assert process.returncode == 0, process.stderr
    digits = load_digits()
    cross = 16 * (np.eye(8) + np.eye(8)[::-1]).clip(0, 1)
    pictures = {f"old_and_new/{label}": digits.images[digits.target == label][:6] for label in range(10)}
    pictures |= {"new_and_other/other": digits.images[:6]}
    crosses = [cross * n / 11 for n in range(5, 11)]
    pictures |= {f"{root}/cross": crosses for root in ("old_and_new", "new_and_other", "new")}
    for name, images in pictures.items():
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((28, 28)).save(folder / name / f"{number}.png")
    return folder


SMALL = ("debug=tiny", "trainer.threads=1", "callbacks=quiet", "callbacks.report=false")
EXPECTED = {
    "data.labels_per_class=10": "the head of 10 classes goes on with theirs",
    "-m": "labels  runs",
    "old_and_new": "the head of 11 classes starts anew",
    "root=new ": "the old network's 10 classes stay as they are, and 'cross' comes to them",
    "new_and_other": "the old network's 10 classes are task 1, the data's are task 2",
    "steps=100 ": "",
    "steps=200 ": NOTE,
}


@pytest.mark.slow
def test_the_commands_that_train_go_on_from_the_run_of_the_experiment(folder):
    run = next(folder.glob("outputs/digits_noisy_student/*/run.json")).parent.relative_to(folder)
    remaining = dict(EXPECTED)
    for typed in [line for line in COMMANDS if line.startswith(TRAIN)]:
        small = re.sub(
            r"steps=(\d+)", lambda steps: f"steps={int(steps[1]) // 50}", typed.replace("seed=1,2", "seed=1")
        )
        words = shlex.split(re.sub(r"\bRUN\b", str(run), small))
        process = command("tutelage.train", *words[2:], *SMALL, cwd=folder)
        assert process.returncode == 0, process.stderr
        key = next(key for key in remaining if key in f"{typed} ")
        assert remaining.pop(key) in process.stdout + process.stderr, typed
    assert not remaining
    runs = {Path(run.config.data.root or "").name: run for run in tutelage.list_runs(folder / "outputs")}
    assert len(runs["old_and_new"].load().classes) == 11
    assert runs["new"].load().classes == ("cross", *map(str, range(10)))
    assert runs["new_and_other"].load(task=2).classes == ("cross", "other")
    assert len(runs["new_and_other"].load(task=1).classes) == 10


@pytest.mark.slow
def test_the_other_commands_use_the_run_of_the_experiment(folder):
    """They are typed in the folder of the pictures that they name."""
    run = next(folder.glob("outputs/digits_noisy_student/*/run.json")).parent.relative_to(folder)
    process = command("tutelage.train", "data=digits", "model=perceptron", "name=second", *SMALL, cwd=folder)
    assert process.returncode == 0, process.stderr
    second = next(folder.glob("outputs/second/*/run.json")).parent.relative_to(folder)
    others = [line for line in COMMANDS if not line.startswith(TRAIN)]
    assert {line.split()[1] for line in others if line.startswith("tutelage")} == {"predict", "evaluate", "export"}
    (folder / "more").mkdir()
    for name in ("photos", "last_week"):
        shutil.copytree(folder / "old_and_new", folder / name)
    rows = [(f"old_and_new/{label}/0.png", str(label)) for label in range(10)]
    Image.open(folder / rows[0][0]).save(folder / "more" / "0.jpg")
    (folder / "list.txt").write_text("\n".join(path for path, _ in rows))
    for name in ("table.csv", "last_week.csv"):
        (folder / name).write_text("path,label\n" + "\n".join(map(",".join, rows)))
    with tarfile.open(folder / "pool.tar", "w") as tar:
        tar.add(folder / rows[0][0], "0.png")
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for typed in others:
        for file in folder.glob("labels.*"):
            file.unlink()
        line = re.sub(r"\bRUN2\b", str(second), re.sub(r"\bRUN\b", str(run), typed))
        if line.startswith("tutelage "):
            process = command("tutelage.cli", *shlex.split(line)[1:], cwd=folder)
        else:
            shell, path = ["bash", "-o", "pipefail", "-c", line], {**os.environ, "PATH": programs}
            process = subprocess.run(shell, cwd=folder, env=path, capture_output=True, text=True)
        assert process.returncode == 0, (typed, process.stderr)
        if "labels." in typed:
            assert [file.stat().st_size > 0 for file in folder.glob("labels.*")] == [True], typed
