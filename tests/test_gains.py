"""A method's gains: confidence intervals against scipy's, and the lines at the end of a sweep."""

import numpy as np
import pytest
from scipy import stats

from tutelage.report.gains import collect_accuracies, describe_gains, estimate_mean, estimate_ratio_of_means


def record(aims_at="teacher", **accuracies):
    stages = [
        {
            "name": name,
            "kind": "train",
            "control": name == "control",
            "result": {"test/accuracy": value, "test/f1": 1.0},
            **({"aims_at": aims_at} if aims_at and "student" in name else {}),
        }
        for name, value in accuracies.items()
    ]
    labels = {"name": "labels", "kind": "pseudo_label", "result": {}}
    return {"stages": [labels, *stages]}


RECORDS = [
    record(teacher=0.92, student=0.90, control=0.88),
    record(teacher=0.93, student=0.92, control=0.89),
    record(teacher=0.94, student=0.91, control=0.90),
]


def test_the_interval_of_a_mean_is_students():
    values = np.array([1.0, 2.5, 0.5, 1.5])
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert estimate_mean(values) == pytest.approx((values.mean(), low, high))


def test_a_ratio_of_means_is_no_mean_of_ratios_and_lies_in_its_interval():
    numerators, denominators = np.array([1.0, 3.0]), np.array([4.0, 1.0])
    ratio = estimate_ratio_of_means(numerators, denominators)
    assert ratio.value == pytest.approx(4 / 5)
    assert (ratio.low, ratio.high) == pytest.approx((0.25, 3.0))  # of two runs a resample may take one twice
    assert estimate_ratio_of_means(numerators, denominators) == ratio


def test_the_interval_of_a_ratio_agrees_with_scipys_bootstrap():
    generator = np.random.default_rng(1)
    denominators = generator.normal(3, 0.4, 12)
    numerators = 0.7 * denominators + generator.normal(0, 0.2, 12)
    expected = stats.bootstrap(
        (numerators, denominators),
        lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
        paired=True,
        method="percentile",
        vectorized=True,
        random_state=2,
    ).confidence_interval
    ratio = estimate_ratio_of_means(numerators, denominators)
    assert (ratio.low, ratio.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_only_accuracies_of_networks_are_compared():
    accuracies = collect_accuracies(RECORDS)
    assert list(accuracies) == ["teacher", "student", "control"]
    assert list(accuracies["teacher"]) == ["test/accuracy"]
    assert accuracies["student"]["test/accuracy"] == pytest.approx([90, 92, 91])


def test_a_student_is_compared_with_its_control_and_its_teacher():
    over, gap = describe_gains(RECORDS, "student")
    assert over.startswith("student - control: 2.0 (95 % interval -0.5 to 4.5) points")
    assert gap.startswith("student closes 50.0 % (95 % interval 25.0 to 75.0) of the gap from control to teacher")


def test_a_teacher_that_a_student_does_not_aim_at_is_no_goal():
    records = [record(None, **{"teacher": t, "student-1": 0.9, "control": 0.5}) for t in (0.8, 0.81)]
    assert [line.partition(":")[0] for line in describe_gains(records, "student-1")] == ["student-1 - control"]


def test_one_run_has_no_spread_and_nothing_is_claimed_of_it():
    assert describe_gains(RECORDS[:1], "student") == []


def test_what_a_network_retains_of_an_old_task_is_compared_with_fine_tuning():
    def run(first, retained, tuned):
        accuracy = {"task-1": (first, None), "lwf-2": (retained, 0.90), "finetuning-2": (tuned, 0.91)}
        return {
            "stages": [
                {
                    "name": name,
                    "kind": "train",
                    "control": name.startswith("fine"),
                    "result": {"test/task-1": old} | ({} if new is None else {"test/task-2": new}),
                }
                for name, (old, new) in accuracy.items()
            ]
        }

    older = [run(0.9, 0.88, 0.7), run(0.9, 0.86, 0.7)]
    for record in older:  # task 1 came with init_from: the warm-up has it first
        record["stages"][0]["name"] = "warm-up-2"
    assert describe_gains(older, "lwf-2")[0].startswith("lwf-2 keeps 85.0 %")
    retained, new = describe_gains([run(0.9, 0.88, 0.7), run(0.9, 0.86, 0.7)], "lwf-2")
    assert retained.startswith("lwf-2 keeps 85.0 % (95 % interval 80.0 to 90.0) of what finetuning-2 forgets of task-1")
    assert new == "lwf-2 - finetuning-2 on the new task-2: -1.0 (95 % interval -1.0 to -1.0) points"
