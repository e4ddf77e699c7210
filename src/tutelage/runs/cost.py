"""Estimated costs of the parts of a run, from which the display computes the time left."""

from collections.abc import Sequence

from tutelage.models import VIEW_COUNTS
from tutelage.runs.context import RunContext
from tutelage.runs.network_size import count_flops
from tutelage.runs.observer import PartCost
from tutelage.runs.teacher_cache import caching_part, count_logits
from tutelage.runs.teachers import stages_of_given_teachers, teacher_without_weights
from tutelage.strategies import PseudoLabelStage, TrainStage

LOADING_FLOPS = 1.5e7  # reading and augmenting an image, measured on small images
FORWARD_FRACTION = 1 / 3  # of a training step's operations: a backward costs two forwards
TEST_PART = "test"  # the part of the work after the last stage


def training_cost(images: int, flops: float) -> float:
    """Return the cost of training on a number of images."""
    return images * (flops / FORWARD_FRACTION + LOADING_FLOPS)


def inference_cost(images: int, flops: float) -> float:
    """Return the cost of a forward of a number of images."""
    return images * flops


def stage_costs(context: RunContext) -> Sequence[PartCost]:
    """Return the costs of the stages and of the evaluation on the test set."""
    flops = {stage.name: context.network_size(stage).flops for stage in context.train_stages}
    splits, parts = context.data.splits, []
    for stage in context.stages:
        if isinstance(stage, PseudoLabelStage):
            images = VIEW_COUNTS[stage.tta_views] * len(splits.pool)
            parts.append(PartCost(stage.name, inference_cost(images, flops[stage.teacher])))
        elif stage.one_pass:
            parts.append(PartCost(stage.name, inference_cost(len(splits.labelled), flops[stage.name])))
            spec = context.image_spec  # each image is compared with each labelled one
            flops[stage.name] += 2.0 * len(splits.labelled) * spec.channels * spec.image_size**2
        else:
            images = stage.steps * stage.images_per_step
            cached_parts, live_flops = _teacher_costs(context, stage, flops)
            cost = training_cost(images, flops[stage.name]) + inference_cost(images, live_flops)
            parts += [*cached_parts, PartCost(stage.name, cost)]
    if context.evaluates_test:
        given = [stage.teacher for stage in stages_of_given_teachers(context) if stage.teacher]
        teachers = [count_flops(teacher_without_weights(context, spec), context.image_spec) for spec in given]
        cost = sum(inference_cost(len(splits.test), network_flops) for network_flops in (*flops.values(), *teachers))
        parts.append(PartCost(TEST_PART, cost))
    return parts


def _teacher_costs(context: RunContext, stage: TrainStage, flops: dict[str, float]) -> tuple[Sequence[PartCost], float]:
    """Return the cost of caching a stage's teacher logits, and the operations of a live teacher for an image."""
    spec = stage.teacher
    if spec is None:
        return [], 0.0
    if spec.features:
        cost = flops[stage.name]
    else:
        cost = count_flops(teacher_without_weights(context, spec), context.image_spec)
    if spec.live:
        return [], cost
    return [PartCost(caching_part(stage), inference_cost(count_logits(context, stage), cost))], 0.0
