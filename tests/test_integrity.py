"""A run's files: listed with their digests; whole, made again, or refused in one line."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from helpers.commands import command
from helpers.overrides import NOISY_STUDENT
from helpers.runs import only_run, outcome, run
from tutelage.errors import UserError
from tutelage.runs import Health, RunFolder, inspect_run, open_finished_run
from tutelage.runs.weight_sources import find_weights

DAMAGES = {
    "weights": ("stages/1-teacher/checkpoints/final.ckpt", "training stage teacher"),
    "pseudo-labels": ("stages/2-labels-1/labels/00000.npy", "labelling the pool with the network of stage teacher"),
    "metrics": ("stages/3-student-1/metrics.csv", "reading the last checkpoint of stage student-1, or training it"),
    "predictions": ("stages/4-control/test.npz", "evaluating the network of stage control"),
    "config": ("config.yaml", "composing its config"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("finished")
    assert run(outputs, *NOISY_STUDENT) == 0
    return outputs


def copy_run(finished: Path, to: Path) -> tuple[Path, RunFolder]:
    outputs = Path(shutil.copytree(finished, to / "outputs"))
    return outputs, RunFolder(only_run(outputs))


def test_a_finished_run_lists_each_of_its_files_with_size_and_digest(finished):
    folder = only_run(finished)
    files = json.loads((folder / "run.json").read_text())["files"]
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert set(files) == {name for name in present if name != "run.json" and not name.startswith("report/")}
    for name, entry in files.items():
        content = (folder / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("damaged_file", DAMAGES)
@pytest.mark.parametrize("is_missing", [True, False], ids=["missing", "damaged"])
def test_the_command_makes_a_missing_or_damaged_file_again(finished, tmp_path, damaged_file, is_missing):
    outputs, folder = copy_run(finished, tmp_path)
    expected = outcome(outputs)
    name, remedy = DAMAGES[damaged_file]
    file = folder.path / name
    original = file.read_bytes()
    if is_missing:
        file.unlink()
    else:
        file.write_bytes(bytes([original[0] ^ 1]) + original[1:])
    state = inspect_run(folder, check_digests=True)
    (problem,) = state.problems
    assert state.health is Health.REMAKABLE
    assert (problem.file, problem.remedy) == (name, remedy)
    assert problem.reason == ("missing" if is_missing else "damaged")
    if is_missing:
        with pytest.raises(UserError, match=rf"{name} is missing; the run's command makes it again, by {remedy}"):
            open_finished_run(str(folder.path))
    assert run(outputs, *NOISY_STUDENT) == 0
    assert outcome(outputs) == expected
    assert inspect_run(folder, check_digests=True).health is Health.WHOLE


def test_a_finished_run_needs_no_checkpoint_to_resume_from(finished, tmp_path):
    _, folder = copy_run(finished, tmp_path)
    for file in folder.path.rglob("last.ckpt"):
        file.unlink()
    assert inspect_run(folder, check_digests=True).health is Health.WHOLE


def test_weights_that_are_gone_are_named_where_another_run_wants_them(finished, tmp_path):
    _, folder = copy_run(finished, tmp_path)
    (folder.path / "stages/3-student-1/checkpoints/final.ckpt").unlink()
    with pytest.raises(UserError, match=r"init_from=.* is missing; .* by training stage student-1"):
        find_weights(str(folder.path), "init_from")


@pytest.mark.parametrize(
    ("version", "remedy"),
    [(None, "version 1, .*: train it anew by its command"), (99, "version 99, .*: update tutelage")],
)
def test_a_run_of_another_schema_is_refused_by_its_version(finished, tmp_path, version, remedy):
    outputs, folder = copy_run(finished, tmp_path)
    record = json.loads(folder.record_file.read_text())
    del record["schema_version"]
    folder.record_file.write_text(json.dumps(record if version is None else {**record, "schema_version": version}))
    state = inspect_run(folder)
    assert (state.health, state.status) == (Health.BROKEN, "unreadable")
    for words in (["report", str(folder.path)], ["label", str(folder.path)]):
        completed = command("tutelage.cli", *words, cwd=tmp_path)
        assert completed.returncode == 2
        assert len(completed.stderr.splitlines()) == 1
        with pytest.raises(UserError, match=remedy):
            raise UserError(completed.stderr)
    assert "unreadable" in command("tutelage.cli", "runs", str(outputs), cwd=tmp_path).stdout


def test_a_folder_without_a_finished_run_is_an_error_that_says_so(finished, tmp_path):
    _, folder = copy_run(finished, tmp_path)
    assert inspect_run(RunFolder(tmp_path)).health is Health.BROKEN
    record = json.loads(folder.record_file.read_text())
    for status, state_name in (("running", "stopped"), ("failed", "failed")):
        folder.record_file.write_text(json.dumps({**record, "status": status}))
        state = inspect_run(folder)
        assert (state.health, state.status) == (Health.REMAKABLE, state_name)
        with pytest.raises(UserError, match=f"{state_name}; this needs the folder of a finished run"):
            open_finished_run(str(folder.path))
