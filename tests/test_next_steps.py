"""What a report says to try next: honest rules over the record, each with words that the command takes."""

from dataclasses import replace
from functools import cache

import pytest

from tutelage.config.compose import compose
from tutelage.config.recipe import Recipe
from tutelage.report.next_steps import Outcome, suggest
from tutelage.terminal.intervals import Interval, wilson_interval

EVEN = [20] * 10


@cache
def config_of(*overrides):
    return compose(["data=digits", *overrides])


def make_outcome(overrides=(), accuracy=0.9, images=1000, result=(), stages=1, **fields):
    stage = {"name": "supervised", "kind": "train", "result": {}}
    interval = None if accuracy is None else wilson_interval(accuracy * images, images)
    record = {"result": {"train/accuracy": 0.95, **dict(result)}, "stages": [stage] * stages, "data": {"test": images}}
    values = {"confidence": 0.9, "counts": EVEN, **fields}
    return Outcome(config_of(*overrides), {**record, "command": "tutelage train"}, interval, **values)


def overrides_of(outcome):
    return [suggestion.override for suggestion in suggest(outcome)]


def test_a_good_run_has_nothing_to_try():
    assert suggest(make_outcome()) == []


def test_a_run_without_test_accuracy_has_nothing_to_try():
    assert suggest(make_outcome(accuracy=None)) == []


@pytest.mark.parametrize(
    ("outcome", "override", "said"),
    [
        (lambda: make_outcome(confidence=0.97), "loss.label_smoothing=0.1", "right 7 points less often"),
        (
            lambda: make_outcome(accuracy=0.8, confidence=0.8, result={"train/accuracy": 1.0}),
            "augmentation=randaugment",
            "by heart",
        ),
        (
            lambda: make_outcome(result={"train/accuracy": 0.7}),
            "schedule.epochs=20",
            "only 70.0 % of its training images",
        ),
        (lambda: make_outcome(["schedule.steps=50"], result={"train/accuracy": 0.7}), "schedule.steps=100", "longer"),
        (lambda: make_outcome(pool=1000), "strategy=noisy_student", "1,000 images without labels were not used"),
        (
            lambda: make_outcome(counts=[500, 20], result={"test/accuracy": 0.9, "test/balanced_accuracy": 0.7}),
            "data.balance=weights",
            "70.0 % as the mean over classes",
        ),
        (lambda: make_outcome(images=100, has_own_test=False), "-m data.folds=5 'data.fold=range(5)'", "points wide"),
        (
            lambda: make_outcome(gain=Interval(0.02, -0.01, 0.05)),
            "-m seed=0,1,2,3,4",
            "-1.0 to +5.0 points, may be chance",
        ),
    ],
)
def test_a_weakness_has_a_reason_and_words_that_the_command_takes(outcome, override, said):
    (suggestion,) = suggest(outcome())
    assert suggestion.override == override
    assert said in suggestion.reason


def test_the_command_takes_all_these_words():
    words = "loss.label_smoothing=0.1 augmentation=randaugment schedule.steps=100 strategy=noisy_student seed=0"
    config = config_of(*words.split(), "data.balance=weights", "data.folds=5", "data.fold=0")
    assert (config.loss.label_smoothing, config.strategy.name, config.data.folds) == (0.1, "noisy_student", 5)


def test_few_photographs_ask_for_weights_that_others_have_taught():
    config = config_of()
    found = {"name": "small_images", "found": "", "reasons": {}}
    changes = {"recipe": Recipe(**found), "data": config.data.model_copy(update={"channels": 3})}
    outcome = replace(make_outcome(), config=config.model_copy(update=changes))
    assert overrides_of(outcome) == ["recipe=photos_small"]
    assert overrides_of(replace(outcome, counts=[100] * 10)) == []


@pytest.mark.parametrize(
    "outcome",
    [
        lambda: make_outcome(confidence=0.96, images=30),  # within the interval
        lambda: make_outcome(["loss.label_smoothing=0.2"], confidence=0.97),  # it has been tried
        lambda: make_outcome(
            ["augmentation=randaugment"], accuracy=0.8, confidence=0.8, result={"train/accuracy": 1.0}
        ),
        lambda: make_outcome(pool=1000, stages=2),
        lambda: make_outcome(pool=300),
        lambda: make_outcome(
            ["data.balance=weights"], counts=[500, 20], result={"test/accuracy": 0.9, "test/balanced_accuracy": 0.7}
        ),
        lambda: make_outcome(counts=[500, 20], result={"test/accuracy": 0.9, "test/balanced_accuracy": 0.89}),
        lambda: make_outcome(images=100),  # its makers chose the test set
        lambda: make_outcome(gain=Interval(0.02, 0.01, 0.05)),
        lambda: make_outcome(["model=nearest_neighbours"], confidence=0.99, pool=1000, result={"train/accuracy": 0.5}),
    ],
)
def test_what_does_not_apply_is_not_said(outcome):
    assert suggest(outcome()) == []


def test_of_a_shrunk_run_only_the_whole_command_is_said():
    outcome = make_outcome(["debug=tiny"], result={"train/accuracy": 0.3})
    outcome.record["command"] = "tutelage train debug=tiny 'callbacks.shifts=[crop]' seed=3"
    assert overrides_of(outcome) == ["tutelage train 'callbacks.shifts=[crop]' seed=3"]
