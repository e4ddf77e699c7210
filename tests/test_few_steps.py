"""The warning of a training stage with few optimizer steps: which stage, how few, and what gives it more."""

import re

import pytest

from helpers.runs import run
from tutelage.config.compose import compose
from tutelage.data import data_module, split
from tutelage.runs.fit import FEW_STEPS, few_steps_warning
from tutelage.strategies import StageContext

FEW_LABELS = ("data.limit=200", "data.labels_per_class=2", "data.batch_size=8", "strategy.control=false")
SCHEDULES = {
    "steps": ("schedule.epochs=null", "schedule.steps=60"),
    "epochs": ("schedule.epochs=7",),
    "min_steps": ("schedule.epochs=1", "schedule.min_steps=40"),
}


def plan_stages(*overrides: str):
    """Return a config and the training stages of transfer in two stages, of a third and two thirds of the schedule."""
    base = ("strategy=transfer_gradual", "strategy.head_length=0.3333", "init_from=none.pth", "model=mlp")
    config = compose([*base, *FEW_LABELS, *overrides])
    source = data_module(config.data).read()
    return config, config.strategy.stages(StageContext(config, source, split(source, config.data)))


def settings_of(warning: str) -> list[str]:
    return re.findall(r"schedule\.\w+=\d+", warning)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_each_setting_that_a_warning_names_gives_its_stage_enough_steps(schedule):
    config, stages = plan_stages(*schedule)
    head = stages[0]
    warning = few_steps_warning(config, head)
    assert warning.startswith(f"warning: stage {head.name} has {head.steps} optimizer steps, which is few; ")
    assert len(settings_of(warning)) == (1 if "schedule.epochs=null" in schedule else 2)
    for setting in settings_of(warning):
        longer, longer_stages = plan_stages(*schedule, setting)
        assert longer_stages[0].steps >= FEW_STEPS
        assert not few_steps_warning(longer, longer_stages[0])


def test_enough_steps_and_debugging_are_no_reason_for_a_warning():
    config, stages = plan_stages("schedule.epochs=null", f"schedule.steps={3 * FEW_STEPS}")
    assert stages[0].steps == FEW_STEPS
    assert [few_steps_warning(config, stage) for stage in stages] == [""] * len(stages)
    config, stages = plan_stages("debug=tiny")
    assert [few_steps_warning(config, stage) for stage in stages] == [""] * len(stages)


def test_a_run_says_once_that_it_has_few_steps(tmp_path, capfd):
    assert run(tmp_path, "model=perceptron", "schedule.epochs=3", "data.limit=100", "data.batch_size=50") == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "which is few" in line]
    assert lines == [
        "warning: stage supervised has 6 optimizer steps, which is few; "
        "schedule.min_steps=100 or schedule.epochs=50 gives it 100 or more"
    ]
