"""Several runs as one: the mean of their probabilities on the images that all were tested on."""

import re

import numpy as np
import pytest

from helpers.runs import make_entry, write_finished_run
from tutelage.app.evaluate import evaluate
from tutelage.data import Predictions, Source
from tutelage.data.source import IndexNames, empty_indices
from tutelage.errors import UserError
from tutelage.report.ensembles import combine_runs, combine_seeds, describe_ensembles
from tutelage.report.jobs import Job
from tutelage.report.sweep_report import report_sweep
from tutelage.runs import RunFolder, read_record
from tutelage.runs.predictions import write_predictions
from tutelage.sweeps.folder import Outcome

CLASSES = ("cat", "dog")
# three images, a cat, a dog and a cat, of which each network takes another one for the wrong kind
CAT_PROBABILITIES = {"first": (0.4, 0.1, 0.9), "second": (0.9, 0.6, 0.8), "third": (0.8, 0.2, 0.3)}


def write_run(folder, cats, classes=CLASSES, indices=(0, 1, 2), test="same images"):
    """Write a run whose network gives the three images these probabilities of a cat."""
    write_finished_run(folder, [make_entry({"test/accuracy": 2 / 3})], data={"test_identity": ["all", test]})
    parts = {part: empty_indices() for part in ("train", "test", "val", "unlabelled")}
    source = Source(np.zeros((4, 1, 1, 1), np.uint8), np.zeros(4, np.int64), classes, names=IndexNames(4), **parts)
    probabilities = np.array([cats, 1 - np.array(cats)], dtype=np.float32).T
    predictions = Predictions(probabilities, np.array([0, 1, 0]), np.array(indices))
    write_predictions(RunFolder(folder).test_file, predictions, classes, source)
    return RunFolder(folder), read_record(RunFolder(folder))


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / name, cats) for name, cats in CAT_PROBABILITIES.items()]


def test_the_mean_answer_is_right_where_each_run_is_wrong_once(runs):
    ensemble = combine_runs(runs)
    assert ensemble.accuracies == pytest.approx([2 / 3] * 3)
    assert (ensemble.interval.value, ensemble.images) == (1.0, 3)  # mean probabilities of a cat: 0.7, 0.3, 0.67


def test_runs_that_were_tested_otherwise_are_no_ensemble(runs, tmp_path):
    cats = CAT_PROBABILITIES["first"]
    others = {
        "its classes differ": write_run(tmp_path / "a", cats, classes=("cat", "bird")),
        "it was tested on other images": write_run(tmp_path / "b", cats, indices=(0, 1, 3)),
        "/c: it was tested on other images": write_run(tmp_path / "c", cats, test="another fold"),
        "is named twice": runs[0],
    }
    for message, other in others.items():
        with pytest.raises(UserError, match=message):
            combine_runs([*runs, other])


def test_the_command_prints_each_run_and_all_as_one(runs, monkeypatch, capsys):
    monkeypatch.setattr("tutelage.app.evaluate.open_tested_run", {str(run[0].path): run for run in runs}.__getitem__)
    evaluate([str(folder.path) for folder, _ in runs])
    *lines, last, _ = capsys.readouterr().out.splitlines()
    assert lines == ["first       66.7 %", "second      66.7 %", "third       66.7 %"]
    assert last.startswith("all as one  100.0 % (")


def test_a_sweep_over_seeds_says_what_all_seeds_are_worth_together(runs):
    jobs = [Job({"model": "mlp", "seed": str(seed)}, *run, []) for seed, run in enumerate(runs)]
    (line,) = describe_ensembles(combine_seeds(["model"], jobs))
    assert line.startswith("mlp: the mean answer of 3 seeds is right for 100.0 % (")
    assert line.endswith("of the test images, one alone for 66.7 % on average")
    assert combine_seeds(["model"], jobs[:1]) == {}


def test_the_page_of_a_sweep_has_a_row_for_the_seeds_of_each_setting(runs):
    report_sweep([Outcome(["model=mlp", f"seed={seed}"], folder.path) for seed, (folder, _) in enumerate(runs)], "it")
    (page,) = runs[0][0].path.parent.glob("sweep-*/index.html")
    table = page.read_text().partition("<h2>Several seeds as one</h2>")[2]
    cells = re.findall(r"<td.*?>(.*?)</td>", table)
    assert cells[:3] == ["all runs", "3", "66.7 %"]
    assert cells[3].startswith("100.0 % (")
