"""Cross-validation in a sweep: what its table says of the folds together."""

import json

import numpy as np
import pytest
from scipy import stats

from helpers.configs import data_config
from helpers.runs import make_entry, write_finished_run
from helpers.sources import make_source
from tutelage.config import SweeperConfig
from tutelage.config.compose import compose
from tutelage.data.splits import identify_test, split
from tutelage.errors import UserError
from tutelage.report.folds import describe_missing_folds, pool_folds
from tutelage.report.gains import measure_overlap
from tutelage.report.jobs import are_numbers, find_grid_values, group_jobs, read_finished_jobs, to_number
from tutelage.report.label_efficiency import build_lines
from tutelage.report.pairs import compare_with_references
from tutelage.report.searches import build_full_command
from tutelage.report.sweep_report import report_sweep
from tutelage.runs.weight_sources import TEST_IDENTITY, check_tested_by_sources
from tutelage.sweeps.folder import Outcome
from tutelage.terminal.intervals import wilson_interval

IMAGES = (40, 30, 30)  # of the test set of each fold
CORRECT = {  # images that were right, by strategy, fold and seed
    ("supervised", 0, 1): 30,
    ("supervised", 0, 2): 32,
    ("supervised", 1, 1): 20,
    ("supervised", 1, 2): 22,
    ("supervised", 2, 1): 24,
    ("supervised", 2, 2): 23,
    ("fixmatch", 0, 1): 36,
    ("fixmatch", 0, 2): 36,
    ("fixmatch", 1, 1): 25,
    ("fixmatch", 1, 2): 26,
    ("fixmatch", 2, 1): 27,
    ("fixmatch", 2, 2): 27,
}


def write_sweep(root, grouped=False, more=()):
    outcomes = []
    for (strategy, fold, seed), correct in CORRECT.items():
        folder = root / f"{strategy}-{fold}-{seed}"
        entry = make_entry({"val/accuracy": 0.5, "test/accuracy": correct / IMAGES[fold]})
        data = {"test": IMAGES[fold], "labelled": [10, 10], "grouped": grouped}
        write_finished_run(folder, [entry], data=data, identity={"data": {"folds": 3, "fold": fold}})
        overrides = ["data.folds=3", f"data.fold={fold}", f"strategy={strategy}", f"seed={seed}", *more]
        outcomes.append(Outcome(overrides, folder))
    return outcomes


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (10, 10), (1, 7), (45, 50), (912, 1000)])
def test_the_interval_of_an_accuracy_is_wilsons(correct, count):
    interval = wilson_interval(correct, count)
    expected = stats.binomtest(correct, count).proportion_ci(method="wilson")
    assert interval == pytest.approx((correct / count, expected.low, expected.high))


def test_the_folds_of_a_setting_are_one_row_with_the_interval_over_their_images(tmp_path, capsys):
    report_sweep(write_sweep(tmp_path), "tutelage train -m ...")
    lines = capsys.readouterr().out.splitlines()
    # 35 + 25.5 + 27 of 100, a mean over two seeds; 31 + 21 + 23.5
    for name, correct in (("fixmatch", 36 + 25.5 + 27), ("supervised", 31 + 21 + 23.5)):
        low, high = (100 * end for end in wilson_interval(correct, 100)[1:])
        (row,) = [line for line in lines if line.startswith(name) and " - " not in line]
        assert f"6  50.0 % +- 0.0  {correct:.1f} % ({low:.1f} to {high:.1f})" in row
    assert any("Folds make one row: test is the accuracy over the test images of all folds" in line for line in lines)
    (page,) = tmp_path.glob("sweep-*/index.html")
    text = page.read_text()
    assert f"{88.5:.1f} % ({100 * wilson_interval(88.5, 100).low:.1f} to" in text
    assert text.count("fold 2</a>") == 4  # of two settings and two seeds
    assert "over fold" not in text  # folds are repetitions, not something to compare
    assert [file.name for file in page.parent.iterdir()] == ["index.html"]


def test_images_of_groups_are_said_to_be_counted_as_independent(tmp_path):
    jobs, _, _ = read_finished_jobs(write_sweep(tmp_path, grouped=True))
    assert str(pool_folds(jobs)).endswith(" by images)")


def test_a_fold_without_a_result_is_named(tmp_path):
    outcomes = [each for each in write_sweep(tmp_path) if each.path.name not in {"fixmatch-1-2", "fixmatch-2-2"}]
    jobs, keys, _ = read_finished_jobs(outcomes)
    assert keys == ["strategy"]
    assert describe_missing_folds(keys, jobs) == [
        "incomplete cross-validation: fixmatch seed 2: no result of folds 1, 2 of 3"
    ]


def test_methods_are_compared_fold_by_fold_with_an_interval_that_minds_shared_training_images(tmp_path):
    jobs, keys, _ = read_finished_jobs(write_sweep(tmp_path))
    gains = np.array(
        [100 * (CORRECT["fixmatch", f, s] - CORRECT["supervised", f, s]) / IMAGES[f] for f in range(3) for s in (1, 2)]
    )
    half = stats.t.ppf(0.975, 5) * gains.std(ddof=1) * np.sqrt(1 / 6 + 1 / 2)  # Nadeau and Bengio: test by training
    assert compare_with_references(keys, jobs) == [
        f"fixmatch - supervised: {gains.mean():+.1f} (95 % interval {gains.mean() - half:.1f} to "
        f"{gains.mean() + half:.1f}) points, paired by seed and fold"
    ]
    assert measure_overlap([jobs[0].record, jobs[1].record]) == 0  # two seeds of one fold


def test_a_line_over_label_counts_has_one_value_a_seed_over_its_folds(tmp_path):
    outcomes = write_sweep(tmp_path / "few", more=["data.labels=10%"])
    outcomes += write_sweep(tmp_path / "many", more=["data.labels=100"])
    jobs, keys, _ = read_finished_jobs(outcomes)
    line = next(line for line in build_lines(keys, jobs) if line.name == "supervised")
    assert line.points[0].accuracies[:2] == pytest.approx(((30 + 20 + 24) / 100, (32 + 22 + 23) / 100))


def test_a_search_over_folds_ranks_their_mean_and_trains_the_best_on_all_of_them(tmp_path):
    outcomes = write_sweep(tmp_path)
    jobs, keys, _ = read_finished_jobs(outcomes, tested=False)
    assert pool_folds(jobs) is None
    assert find_grid_values(outcomes) == {"strategy": ["fixmatch", "supervised"]}
    assert [len(members) for members in group_jobs(keys, jobs).values()] == [6, 6]
    command = build_full_command(jobs[0], "tutelage train -m", SweeperConfig(_target_="grid"))
    assert "'data.fold=range(3)'" in command
    assert "data.fold=0" not in command


def test_a_teacher_that_has_learned_from_the_fold_is_refused(tmp_path):
    write_sweep(tmp_path)
    teacher = tmp_path / "supervised-1-1"  # a run of fold 1
    source = make_source(np.repeat(np.arange(2), 12), test=0, unlabelled=3)
    test_of_fold = [
        identify_test(source, split(source, data_config(folds=3, fold=fold, labels_per_class=fold))) for fold in (1, 2)
    ]
    record = json.loads((teacher / "run.json").read_text())
    (teacher / "run.json").write_text(json.dumps(record | {"data": {TEST_IDENTITY: test_of_fold[0]}}))
    (teacher / "best.ckpt").touch()
    for weights in (teacher, teacher / "best.ckpt"):
        config = compose(["strategy=teacher_student", f"strategy.teachers=[{weights}]"])
        with pytest.raises(UserError, match=r"strategy.teachers=.*: it has another test set out of the same images"):
            check_tested_by_sources(config, test_of_fold[1])
        check_tested_by_sources(config, test_of_fold[0])
        check_tested_by_sources(config, ("of other images", test_of_fold[1][1]))


def test_shares_in_percent_are_numbers_along_an_axis_of_their_own():
    assert are_numbers(["10%", "2.5%"])
    assert are_numbers(["10", "1e-3"])
    assert not are_numbers(["10%", "100"])
    assert not are_numbers(["10%", "null"])
    assert to_number("2.5%") == 2.5
