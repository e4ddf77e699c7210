"""Accuracy by the number of labels: lines, table, picture and paired gains, from hand-written records."""

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from helpers.configs import data_config
from helpers.runs import write_finished_run
from helpers.sources import make_source
from tutelage.data import split
from tutelage.report import label_efficiency as efficiency
from tutelage.report import pictures
from tutelage.report.jobs import read_finished_jobs
from tutelage.report.pairs import compare_with_references
from tutelage.report.sweep_report import report_sweep
from tutelage.sweeps.folder import Outcome

PER_CLASS, CLASSES = (10, 20), 10
ACCURACY = {  # of seeds 1, 2, 3, by strategy and labels a class
    ("supervised", 10): (0.70, 0.72, 0.71),
    ("supervised", 20): (0.76, 0.75, 0.77),
    ("noisy_student", 10): (0.75, 0.76, 0.78),
    ("noisy_student", 20): (0.79, 0.79, 0.80),
}


def fit(name, accuracy, control=False, held=0):
    return {
        "name": name,
        "kind": "train",
        "control": control,
        "seconds": 1.0,
        "labels": 10,
        "validation": "inside" if held else "none",
        "validation_images": held,
        "result": {"test/accuracy": accuracy},
        "files": {},
    }


def write_run(folder, overrides, stages, per_class, classes=CLASSES):
    write_finished_run(folder, stages, data={"test": 100, "labelled": [per_class] * classes})
    return Outcome(overrides, folder)


def write_sweep(root, accuracy=ACCURACY, seeds=3):
    return [
        write_run(
            root / f"{strategy}-{per_class}-{seed}",
            [f"strategy={strategy}", f"data.labels_per_class={per_class}", f"seed={seed + 1}", "debug=tiny"],
            [fit("network", value)],
            per_class,
        )
        for (strategy, per_class), values in accuracy.items()
        for seed, value in enumerate(values[:seeds])
    ]


def test_a_line_a_strategy_over_the_number_of_labels_in_all(tmp_path):
    jobs, keys, _ = read_finished_jobs(write_sweep(tmp_path))
    reference, student = efficiency.build_lines(keys, jobs)
    assert (reference.name, reference.is_reference, student.name, student.is_reference) == (
        "supervised",
        True,
        "noisy_student",
        False,
    )
    assert [(point.label_count, point.accuracies) for point in student.points] == [
        (100, ACCURACY["noisy_student", 10]),
        (200, ACCURACY["noisy_student", 20]),
    ]
    values = ACCURACY["noisy_student", 10]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert student.points[0].interval == pytest.approx((np.mean(values), low, high))


def test_labels_held_out_for_validation_are_labels_too(tmp_path):
    (job,), _, _ = read_finished_jobs([write_run(tmp_path / "a", ["seed=1"], [fit("network", 0.5, held=12)], 9)])
    assert efficiency.count_labels(job) == 102


def test_a_fraction_of_all_labels_and_all_of_them_have_positions(tmp_path):
    outcomes = [
        write_run(tmp_path / value, [f"data.labels={value}"], [fit("network", 0.5)], labels, classes=3)
        for value, labels in (("0.1", 7), ("null", 70))
    ]
    jobs, keys, _ = read_finished_jobs(outcomes)
    (line,) = efficiency.build_lines(keys, jobs)
    assert [point.label_count for point in line.points] == [21, 210]


def test_datasets_of_other_numbers_of_classes_have_lines_at_their_own_positions(tmp_path):
    outcomes = [
        write_run(
            tmp_path / f"{data}-{each}",
            [f"data={data}", f"data.labels_per_class={each}"],
            [fit("network", 0.5)],
            each,
            classes,
        )
        for data, classes in (("few", 10), ("many", 100))
        for each in (5, 10)
    ]
    jobs, keys, _ = read_finished_jobs(outcomes)
    assert {line.name: [point.label_count for point in line.points] for line in efficiency.build_lines(keys, jobs)} == {
        "few": [50, 100],
        "many": [500, 1000],
    }


def test_a_sweep_that_leaves_the_budget_alone_has_no_such_lines(tmp_path):
    jobs, keys, _ = read_finished_jobs(write_sweep(tmp_path, {("a", 10): (0.1,), ("b", 10): (0.2,)}))
    assert efficiency.build_lines(keys, jobs) == []


def test_where_nothing_but_the_budget_varies_the_control_is_a_line(tmp_path):
    outcomes = [
        write_run(
            tmp_path / str(n), [f"data.labels_per_class={n}"], [fit("student-1", 0.8), fit("control", 0.7, True)], n
        )
        for n in PER_CLASS
    ]
    jobs, keys, _ = read_finished_jobs(outcomes)
    lines = {
        line.name: ([point.accuracies for point in line.points], line.is_reference)
        for line in efficiency.build_lines(keys, jobs)
    }
    assert lines == {"student-1": ([(0.8,), (0.8,)], False), "control": ([(0.7,), (0.7,)], True)}


def test_the_table_has_a_row_a_number_of_labels_and_a_column_a_line(tmp_path):
    jobs, keys, _ = read_finished_jobs(write_sweep(tmp_path)[:-1])  # one run is missing
    head, rows = efficiency.tabulate_lines(efficiency.build_lines(keys, jobs))
    assert head == ["labels", "runs", "supervised", "noisy_student"]
    assert rows == [
        ["100", "3", "71.0 % +- 1.0", "76.3 % +- 1.5"],
        ["200", "2-3", "76.0 % +- 1.0", "79.0 % +- 0.0"],
    ]


def test_what_a_strategy_gained_is_printed_paired_by_seed(tmp_path):
    jobs, keys, _ = read_finished_jobs(write_sweep(tmp_path))
    gains = 100 * (np.array(ACCURACY["noisy_student", 10]) - ACCURACY["supervised", 10])
    low, high = stats.t.interval(0.95, 2, gains.mean(), stats.sem(gains))
    first, second = compare_with_references(keys, jobs)
    assert first == (
        f"noisy_student - supervised at 100 labels: +5.3 (95 % interval {low:.1f} to {high:.1f}) points, paired by seed"
    )
    assert second.startswith("noisy_student - supervised at 200 labels: +3.3 (")


def test_a_run_without_its_pair_is_left_out_of_the_comparison(tmp_path):
    jobs, keys, _ = read_finished_jobs(
        [outcome for outcome in write_sweep(tmp_path) if "supervised-10-1" not in str(outcome.path)]
    )
    gains = 100 * np.array([0.75 - 0.70, 0.78 - 0.71])
    assert compare_with_references(keys, jobs)[0].startswith(
        f"noisy_student - supervised at 100 labels: {gains.mean():+.1f} ("
    )


def test_one_pair_says_nothing(tmp_path):
    jobs, keys, _ = read_finished_jobs(write_sweep(tmp_path, seeds=1))
    assert compare_with_references(keys, jobs) == []


def test_an_ablation_is_compared_with_the_whole_method(tmp_path):
    values = {"nothing": (0.8, 0.81), "noise": (0.75, 0.77)}
    outcomes = [
        write_run(
            tmp_path / f"{arm}{seed}", [f"experiment/without={arm}", f"seed={seed}"], [fit("student-2", value)], 10
        )
        for arm, accuracies in values.items()
        for seed, value in enumerate(accuracies)
    ]
    jobs, keys, _ = read_finished_jobs(outcomes)
    (line,) = compare_with_references(keys, jobs)
    assert line.startswith("without noise - without nothing: -4.5 (")


def test_the_picture_stands_first_on_the_page_then_the_table_then_the_gains(tmp_path, capsys):
    report_sweep(write_sweep(tmp_path / "worth"), "tutelage train -m it")
    (file,) = tmp_path.glob("worth/sweep-*/index.html")
    page = file.read_text()
    values = 100 * np.array(ACCURACY["noisy_student", 10])
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    cell = f"76.3 % ({low:.1f} to {high:.1f})"
    order = [page.index(part) for part in ("What a label is worth", cell, "+5.3 (", "The settings", "All runs")]
    assert order == sorted(order)
    assert (file.parent / "labels.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert re.search(r"^100 +3 +71.0 % \+- 1.0 +76.3 % \+- 1.5$", printed, re.MULTILINE)
    assert "noisy_student - supervised at 200 labels: +3.3" in printed


def test_the_chart_has_the_means_their_bands_and_a_grey_reference(tmp_path):
    jobs, keys, _ = read_finished_jobs(write_sweep(tmp_path)[:-1])  # of one line's last point only two runs are there
    chart = efficiency.chart_lines(efficiency.build_lines(keys, jobs))
    assert (chart.has_log_x, chart.is_share, chart.x_ticks) == (True, True, [100, 200])
    reference, student = chart.lines
    assert (reference.is_reference, student.is_reference, student.color) == (True, False, 0)
    for place, labels in enumerate(PER_CLASS):
        values = ACCURACY["supervised", labels]
        low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        assert (reference.y[place], reference.low[place], reference.high[place]) == pytest.approx(
            (np.mean(values), low, high)
        )
    assert student.low[1] == student.y[1] == student.high[1] == pytest.approx(0.79)


def test_the_picture_has_a_band_where_there_are_seeds_and_names_every_line(tmp_path):
    jobs, keys, _ = read_finished_jobs(write_sweep(tmp_path))
    lines = {
        line.name: [(p.label_count, p.interval) for p in line.points] for line in efficiency.build_lines(keys, jobs)
    }
    (axes,) = pictures.draw_label_curves(lines, references=["supervised"]).axes
    assert axes.get_xscale() == "log"
    assert {text.get_text() for text in axes.texts} == set(lines)
    line_values = {tuple(np.round(line.get_ydata(), 6)) for line in axes.lines}
    assert line_values == {tuple(round(p[1].value, 6) for p in points) for points in lines.values()}
    band = axes.collections[0].get_paths()[0].vertices[:, 1]  # the reference's lies lowest
    ends = [point[1] for point in lines["supervised"]]
    assert (band.min(), band.max()) == pytest.approx((min(i.low for i in ends), max(i.high for i in ends)))


@given(st.lists(st.floats(-3, 3), max_size=8), st.floats(0.01, 1))
def test_names_are_moved_apart_and_keep_their_order_and_mean(positions, spacing):
    moved = pictures.space_apart(sorted(positions), spacing)
    assert len(moved) == len(positions)
    assert all(b - a >= spacing - 1e-9 for a, b in pairwise(moved))
    assert sum(moved) == pytest.approx(sum(positions), abs=1e-6)


def test_names_that_lie_apart_stay_where_they_are():
    assert pictures.space_apart([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])


@pytest.mark.parametrize(("per_class", "limit", "labelled"), [(4, None, 8), (4, 6, 2), (2, 6, 4), (9, 6, 6), (4, 8, 4)])
def test_a_small_trial_of_a_label_budget_leaves_a_pool_as_the_whole_would(per_class, limit, labelled):
    """Two classes of 9: a limit that swallows the budget leaves half of each class labelled."""
    source = make_source(np.array([0, 1] * 9), test=2, unlabelled=0)
    splits = split(source, data_config(labels_per_class=per_class, limit=limit, validation="none"))
    assert len(splits.labelled) == labelled
    assert bool(len(splits.pool)) is (per_class < 9)
