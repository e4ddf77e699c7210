"""A run's files: listed with their digests; whole, made again, or refused in one line."""

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from helpers.commands import command
from helpers.overrides import NOISY_STUDENT
from helpers.runs import only_run, outcome, run
from tutelage.errors import UserError
from tutelage.runs import Health, RunFolder, inspect_run, integrity, open_finished_run
from tutelage.runs.folder import SCHEMA_VERSION
from tutelage.runs.weight_sources import find_weights

DAMAGES = {
    "weights": ("stages/1-teacher/checkpoints/final.ckpt", "training stage teacher"),
    "pseudo-labels": ("stages/2-labels-1/labels/00000.npy", "labelling the pool with the network of stage teacher"),
    "table": ("stages/2-labels-1/pseudo_labels.parquet", "labelling the pool with the network of stage teacher"),
    "predictions": ("stages/4-control/test.parquet", "evaluating the network of stage control"),
    "metrics": ("stages/3-student-1/metrics.csv", "reading the last checkpoint of stage student-1, or training it"),
    "config": ("config.yaml", "composing its config"),
}
READ_BY_PEOPLE = {"metrics", "config"}  # who may save them again in another form
CASES = [(what, missing) for what in DAMAGES for missing in (True, False) if missing or what not in READ_BY_PEOPLE]
VALIDATED = (  # best.ckpt is written long before the stage ends
    *("data=digits", "model=mlp", "model.width=16", "data.labels_per_class=20", "data.validation=inside"),
    *("data.batch_size=64", "augmentation=none", "schedule.epochs=null", "schedule.steps=60"),
)


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


@pytest.mark.parametrize(("damaged_file", "is_missing"), CASES)
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


@pytest.mark.parametrize("again", [1, 2], ids=["once", "twice"])
def test_a_stage_that_is_killed_while_it_is_trained_again_is_not_taken_for_finished(outputs, again):
    assert run(outputs, *VALIDATED) == 0
    expected, folder = outcome(outputs), only_run(outputs)
    (folder / "checkpoints" / "best.ckpt").unlink()
    for _ in range(again):
        assert run(outputs, *VALIDATED, before=kill_at_the_second_epoch) == -signal.SIGKILL
        assert (folder / "checkpoints" / "best.ckpt").exists()
    assert run(outputs, *VALIDATED) == 0
    assert outcome(outputs) == expected


def kill_at_the_second_epoch() -> None:
    from tutelage.runs import callbacks

    end_epoch = callbacks.EpochTable._end_epoch

    def end_then_die(self, *arguments):
        end_epoch(self, *arguments)
        if len(self.rows) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    callbacks.EpochTable._end_epoch = end_then_die


def test_a_tested_run_stays_tested_when_it_is_made_again_for_a_search(outputs):
    """Also where it was killed in between, and the command says evaluate_test=false."""
    assert run(outputs, *VALIDATED) == 0
    expected, folder = outcome(outputs), only_run(outputs)
    (folder / "metrics.csv").unlink()

    def kill_at_the_start() -> None:
        from tutelage.runs import runner

        runner._show_parts = lambda context: os.kill(os.getpid(), signal.SIGKILL)

    assert run(outputs, *VALIDATED, before=kill_at_the_start) == -signal.SIGKILL
    assert run(outputs, *VALIDATED, "evaluate_test=false") == 0
    assert outcome(outputs) == expected


def test_what_follows_from_a_network_of_other_weights_is_made_again(finished, tmp_path):
    outputs, folder = copy_run(finished, tmp_path)
    expected = outcome(outputs)
    record = json.loads(folder.record_file.read_text())
    record["stages"][0]["weights_sha256"] = "of another machine"
    folder.record_file.write_text(json.dumps({**record, "status": "failed"}))
    assert run(outputs, *NOISY_STUDENT, before=fail_where_the_teacher_trains) == 0
    found = outcome(outputs)
    found["stages"][0]["weights_sha256"] = expected["stages"][0]["weights_sha256"]
    assert found == expected


def fail_where_the_teacher_trains() -> None:
    from tutelage.runs import runner

    fit_stage = runner.fit_stage

    def fit_others(context, stage):
        assert stage.name != "teacher"
        return fit_stage(context, stage)

    runner.fit_stage = fit_others


def test_files_that_people_read_may_be_saved_again_and_files_of_theirs_are_left_alone(finished, tmp_path):
    outputs, folder = copy_run(finished, tmp_path)
    notes, table = folder.path / "stages/1-teacher/checkpoints/notes.txt", folder.path / "stages/1-teacher/metrics.csv"
    notes.write_text("mine")
    table.write_text(table.read_text().replace(",", ";"))
    (folder.path / "stages/1-teacher/.nfs0001").touch()
    assert inspect_run(folder, check_digests=True).health is Health.WHOLE
    (folder.path / "stages/4-control/test.parquet").unlink()
    assert run(outputs, *NOISY_STUDENT) == 0
    assert notes.read_text() == "mine"
    assert ";" in table.read_text()
    notes.unlink()
    assert inspect_run(folder, check_digests=True).health is Health.WHOLE


def test_a_file_that_cannot_be_read_is_named_and_stays(finished, tmp_path, monkeypatch):
    _, folder = copy_run(finished, tmp_path)

    def refuse(path, size, mtime_ns):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(integrity, "_read_digest", refuse)
    with pytest.raises(UserError, match=r"final.ckpt: cannot be read \(Permission denied\)"):
        inspect_run(folder, check_digests=True)


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


@pytest.mark.parametrize(
    ("content", "message"), [("[]", "no record"), ("{", "cannot be read"), ("FINISHED", "lacks 'stages'")]
)
def test_a_record_that_is_none_is_broken(tmp_path, content, message):
    text = content.replace("FINISHED", json.dumps({"schema_version": SCHEMA_VERSION, "status": "finished"}))
    (tmp_path / "run.json").write_text(text)
    (tmp_path / "config.yaml").touch()
    state = inspect_run(RunFolder(tmp_path))
    assert state.health is Health.BROKEN
    assert message in state.reason


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
