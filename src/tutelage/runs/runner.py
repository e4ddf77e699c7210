"""The runner of every strategy: runs its stages one after another, and goes on with the first that is not finished."""

from functools import partial
from typing import Any

from tutelage.runs.checkpoints import newest_sound
from tutelage.runs.context import RunContext
from tutelage.runs.cost import TEST_PART, first_part, stage_costs
from tutelage.runs.evaluate import evaluate_networks, finish_untested
from tutelage.runs.fit import fit_in_one_pass, fit_stage
from tutelage.runs.label import label_pool
from tutelage.strategies import PseudoLabelStage, Stage, TrainStage


def run_stages(context: RunContext) -> None:
    """Run the stages that are not finished, then evaluate the networks.

    Raises:
        UserError: a stage fails for a reason that the user can change.
        Stopped: a signal asks for it; the state is saved.
    """
    _show_parts(context)
    number = 0
    while number < len(context.stages):
        stage = context.stages[number]
        if not context.group.broadcast_from_rank0(partial(context.is_stage_complete, stage)):
            _drop_stage(context, stage)
            context.show_part(first_part(stage))
            if isinstance(stage, TrainStage) and not stage.one_pass:
                entry = fit_stage(context, stage)
            else:
                entry = _run_other_stage(context, stage)
            context.record.finish_stage(entry)
        has_changed = context.follow_results(finished=number + 1)
        _mark_rejected(context)
        if has_changed:
            _show_parts(context)
        number += 1
    if context.evaluates_test:
        context.show_part(TEST_PART)
        context.say_position(TEST_PART)
        context.group.broadcast_from_rank0(partial(evaluate_networks, context))
    else:
        context.group.broadcast_from_rank0(partial(finish_untested, context))


def _drop_stage(context: RunContext, stage: Stage) -> None:
    """Remove the entry of a stage; where it was finished and starts anew, loggers have rows that are void."""
    if context.group.is_rank0 and context.record.stage_entry(stage.name) is not None:
        checkpoint, _ = newest_sound(context.stage_folder(stage).checkpoints)
        if checkpoint is None:
            context.tracking.void_stage(stage.name)
    context.record.drop_stage(stage.name)


def _run_other_stage(context: RunContext, stage: Stage) -> dict[str, Any]:
    """Run a stage without an optimizer and return its entry in the ledger."""
    if isinstance(stage, PseudoLabelStage):
        return label_pool(context, stage)
    return context.group.broadcast_from_rank0(partial(fit_in_one_pass, context, stage))


def _mark_rejected(context: RunContext) -> None:
    """Note in the ledger which finished networks did not gain on validation."""
    for stage in context.train_stages:
        entry = context.record.stage_entry(stage.name)
        if stage.rejected and entry is not None and not entry.get("rejected"):
            context.record.finish_stage({**entry, "rejected": True})
            context.observer.say(
                f"note: {stage.name} is no better on validation: it is not chosen, and there are no more"
            )


def _show_parts(context: RunContext) -> None:
    """Tell the observer the parts of the run and how long they are expected to take."""
    parts = stage_costs(context)
    context.observer.begin(parts)
    context.parts = [part.name for part in parts]
