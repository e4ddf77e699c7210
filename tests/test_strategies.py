"""What every strategy has, also one from outside: a name, a part of the identity, and a list of stages that can run."""

import inspect
from dataclasses import replace

import pytest

from helpers.stages import plan_stages
from tutelage.config import Strategy
from tutelage.config.compose import compose
from tutelage.errors import UserError
from tutelage.strategies import PseudoLabelStage, TeacherSpec, check_stage_list


class TwoWords(Strategy):
    def stages(self, context):
        return []


class TwoWordsStrategy(TwoWords):
    pass


class Named(TwoWords):
    name = "other"


def test_a_strategy_is_named_after_its_class_or_by_itself():
    assert (TwoWords.name, TwoWordsStrategy.name, Named.name) == ("two_words", "two_words", "other")
    assert type("Below", (Named,), {}).name == "below", "a name is not inherited"


def test_a_strategy_without_stages_is_none():
    class Nothing(Strategy):
        pass

    assert inspect.isabstract(Nothing)


def test_the_identity_of_a_strategy_has_its_class_and_no_key_at_its_default():
    config = compose(["strategy=pseudo_label"])
    identity = config.strategy.identity(config)
    assert identity.pop("_target_") == "tutelage.strategies.pseudo_label.PseudoLabelStrategy"
    assert identity == {"unlabelled_ratio": 8.0, "ramp_begins": 0.1, "ramp_ends": 0.6, "final_weight": 3.0}


def labelling(name: str, teacher: str) -> PseudoLabelStage:
    return PseudoLabelStage(name, teacher, select=lambda labels: None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda main, control: [], "no stage that trains the run's network"),
        (lambda main, control: [control], "no stage that trains the run's network"),
        (lambda main, control: [main, main], "several stages called 'pseudo_label'"),
        (lambda main, control: [main, "x"], "returned a str; each is a TrainStage or a PseudoLabelStage"),
        (lambda main, control: [replace(main, name="a/b")], "a stage called 'a/b'"),
        (lambda main, control: [replace(main, starts_from="control"), control], "needs 'control': no stage of that"),
        (lambda main, control: [replace(main, teacher=TeacherSpec("pool", "t"))], "'pseudo_label', which needs 't'"),
        (lambda main, control: [main, labelling("labels", "nobody")], "'labels', which needs 'nobody'"),
    ],
)
def test_stages_that_cannot_run_are_refused(change, reason):
    _, stages = plan_stages("pseudo_label", labels_per_class=3)
    check_stage_list("pseudo_label", [*stages, labelling("labels", "pseudo_label")])
    with pytest.raises(UserError, match=r"^strategy=mine: stages\(\) returned ") as error:
        check_stage_list("mine", change(*stages))
    assert reason in str(error.value)


def test_a_name_that_is_no_folders_is_refused():
    with pytest.raises(ValueError, match=r"name='../x': letters, digits"):
        type("Below", (TwoWords,), {"name": "../x"})


def test_stages_are_a_list():
    with pytest.raises(UserError, match="returned a NoneType, not a list of stages"):
        check_stage_list("mine", None)
