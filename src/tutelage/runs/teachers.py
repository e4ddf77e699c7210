"""The teachers of a stage: loaded, checked before the run starts, and made ready on their device."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tutelage.config import Config
from tutelage.data import CachedLogits
from tutelage.errors import UserError
from tutelage.models import ImageClassifier, Teacher, load_classifier, make_classifier
from tutelage.runs.context import RunContext
from tutelage.runs.teacher_cache import cache_logits
from tutelage.runs.weight_sources import find_network
from tutelage.strategies import TeacherSpec, TrainStage

TEACHERS_KEY = "strategy.teachers"
CHECKED_IMAGES = 64  # by which a lower precision is compared with float32
PROBABILITY_TOLERANCE = 0.01  # of a lower precision's softmax: that of cached logits is off by up to half of it
NEAR_TIE = 0.05  # of the largest probability: rounding may decide between classes as close as that
LOWER_PRECISION = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def load_teacher(context: RunContext, spec: TeacherSpec) -> Teacher:
    """Return the teacher of a stage.

    Raises:
        UserError: its weights are missing, or its networks have different classes.
    """
    if isinstance(spec.networks, str):
        return Teacher([context.load_network(spec.networks)])
    networks = {path: load_classifier(find_network(str(path), TEACHERS_KEY)) for path in spec.networks}
    if several := next((path for path, network in networks.items() if network.spec.tasks), None):
        raise UserError(
            f"{TEACHERS_KEY}={several}: it has a head a task; name a network that has one for all its classes"
        )
    return Teacher(list(networks.values()))


def stages_of_given_teachers(context: RunContext) -> list[TrainStage]:
    """Return the first stage of each teacher that the run was given, rather than trained, in their order."""
    first: dict[Sequence[Path], TrainStage] = {}
    for stage in context.train_stages:
        if stage.teacher and stage.teacher.networks and not isinstance(stage.teacher.networks, str):
            first.setdefault(stage.teacher.networks, stage)
    return list(first.values())


def teacher_without_weights(context: RunContext, spec: TeacherSpec) -> Teacher:
    """Return the teacher of a stage on the meta device; weight files are read once.

    Raises:
        UserError: its weights are missing, or its networks have different classes.
    """
    teacher = context.weightless_teachers.get(spec.networks)
    if teacher is not None:
        return teacher
    if isinstance(spec.networks, str):
        model = next(stage.model for stage in context.train_stages if stage.name == spec.networks)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            teacher = Teacher([make_classifier(model.arguments(), context.image_spec)])
    else:
        teacher = load_teacher(context, spec).to(torch.device("meta"))
    context.weightless_teachers[spec.networks] = teacher
    return teacher


def check_teacher_files(config: Config) -> None:
    """Raise a UserError unless the teachers that a config names are networks of runs."""
    for name in config.strategy.given_teachers:
        find_network(name, TEACHERS_KEY)


def check_teacher(context: RunContext, stage: TrainStage) -> None:
    """Raise a UserError unless a stage's module takes its student and its teacher; say which option has no effect."""
    spec = stage.teacher
    if spec is None:
        return
    if not spec.features:
        teacher = teacher_without_weights(context, spec)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            stage.module(make_classifier(stage.model.arguments(), context.image_spec), teacher)
    if context.config.augmentation.mix is not None and spec.cached_views is not None:
        context.observer.say(
            f"note: stage {stage.name}: images are mixed with others in each step: the teacher's logits are cached for "
            "every step, not for views that repeat"
        )


def prepare_teacher(
    context: RunContext, stage: TrainStage, spec: TeacherSpec, network: ImageClassifier, teacher: Teacher | None
) -> Mapping[str, CachedLogits]:
    """Move a stage's live teacher to its device, or cache its logits; return the cached logits by stream.

    Args:
        context: the run.
        stage: the stage.
        spec: the teacher's settings.
        network: the stage's network at its start, whose features are cached where there is no teacher.
        teacher: the teacher.

    Raises:
        Stopped: a signal asks for it; computed logits are saved.
        UserError: the disk is full, or logits are not finite.
    """
    if teacher is not None:
        teacher.to(context.device)
        lower = torch.float16 if spec.live else LOWER_PRECISION.get(context.config.trainer.precision)
        teacher.autocast_dtype = None
        if lower is not None and context.device.type == "cuda":
            is_right = context.group.broadcast_from_rank0(lambda: _is_precise(context, teacher, lower))
            teacher.autocast_dtype = lower if is_right else None
    if spec.live:
        return {}
    cached = cache_logits(context, stage, spec, network, teacher)
    if teacher is not None:
        teacher.to(torch.device("cpu"))
    return {spec.stream: cached}


def _is_precise(context: RunContext, teacher: Teacher, lower: torch.dtype) -> bool:
    """Return whether a lower precision gives float32's probabilities and, but for near-ties, its predictions.

    Some of the labelled images are compared.
    """
    labelled = context.data.splits.labelled[:CHECKED_IMAGES]
    images = next(iter(context.data.eval_dataloader(labelled, CHECKED_IMAGES))).images.to(context.device)
    expected = teacher(images).softmax(dim=1)
    teacher.autocast_dtype = lower
    probabilities = teacher(images).softmax(dim=1)
    of_predictions = expected.gather(1, probabilities.argmax(dim=1, keepdim=True))
    are_same = of_predictions >= (1 - NEAR_TIE) * expected.amax(dim=1, keepdim=True)
    return bool((probabilities - expected).abs().max() <= PROBABILITY_TOLERANCE and are_same.all())
