"""Expected durations of the parts of a run, from which the display computes the time left.

The constants are rounded measurements of LeNet-5, a small VGG, ResNets and an MLP, on one thread of an EPYC and on
small images. Only their ratios matter: how fast this machine is, the run itself measures (``terminal.time_left``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from tutelage.models import VIEW_COUNTS, ImageSpec
from tutelage.runs.context import RunContext
from tutelage.runs.evaluate import count_test_images
from tutelage.runs.network_size import ForwardSize, NetworkSize, measure_forward
from tutelage.runs.observer import Part, Work
from tutelage.runs.teacher_cache import caching_part, count_logits
from tutelage.runs.teachers import stages_of_given_teachers, teacher_without_weights
from tutelage.strategies import PseudoLabelStage, Stage, TrainStage

BACKWARD_FORWARDS = 2.0  # a backward costs as much as two forwards
STEP_SECONDS = 8e-4  # of Lightning, the loss and the optimizer's calls, in each step
UPDATE_SECONDS = 2e-9  # of the optimizer, for each parameter that learns
VALIDATION_SECONDS = 0.02  # of metrics, a row of metrics.csv and the best weights' file, in each validation
READ_SECONDS, READ_VALUE_SECONDS = 1e-6, 1e-9  # of reading an image, and for each of its pixel's values
AUGMENT_SECONDS, AUGMENT_VALUE_SECONDS = 2e-5, 1e-8  # of augmenting it
TEST_PART = "test"  # the part of the run after the last stage


@dataclass(frozen=True)
class Speed:
    """The speed of a device: operations and tensor elements in a second, and seconds of an operator's call."""

    flops: float
    elements: float
    call: float

    def forward(self, size: ForwardSize) -> float:
        """Return the seconds of an image's forward, in a batch so large that the calls do not count."""
        return size.flops / self.flops + size.elements / self.elements


CPU_THREAD = Speed(2e11, 1.25e9, 5e-6)
CUDA = Speed(1e13, 2e11, 1e-5)  # of the order that data sheets give for float32; not measured


def stage_costs(context: RunContext) -> Sequence[Part]:
    """Return the parts of a run, with the seconds that their work is expected to take.

    A training stage may have two parts, of which the first caches its teacher's logits. The work of a part is, in this
    order: training steps and, where there are any, validations; or the pool; or the test images of each network and
    of each given teacher.
    """
    parts, sizes = [], {stage.name: context.network_size(stage) for stage in context.train_stages}
    speed, splits = _device_speed(context.device), context.data.splits
    for stage in context.stages:
        if isinstance(stage, PseudoLabelStage):
            images = VIEW_COUNTS[stage.tta_views] * len(splits.pool)
            parts.append(Part(stage.name, [_prediction(context, sizes[stage.teacher].forward, images, speed)]))
        elif stage.one_pass:
            forward = sizes[stage.name].forward
            parts.append(Part(stage.name, [_prediction(context, forward, len(splits.labelled), speed)]))
            sizes[stage.name] = _with_comparisons(sizes[stage.name], len(splits.labelled), context.image_spec)
        else:
            parts += _training_parts(context, stage, sizes[stage.name], speed)
    if context.evaluates_test:
        images = count_test_images(context)
        networks = [_prediction(context, size.forward, images, speed) for size in sizes.values()]
        parts.append(Part(TEST_PART, [*networks, *_given_teachers(context, images, speed)]))
    return parts


def _device_speed(device: torch.device) -> Speed:
    """Return the speed of a device: a GPU's, or that of the threads that torch uses on the CPU."""
    if device.type == "cuda":
        return CUDA
    threads = torch.get_num_threads()
    return replace(CPU_THREAD, flops=threads * CPU_THREAD.flops, elements=threads * CPU_THREAD.elements)


def first_part(stage: Stage) -> str:
    """Return the name of the part of the run that a stage begins with."""
    if isinstance(stage, PseudoLabelStage) or stage.teacher is None or stage.teacher.live:
        return stage.name
    return caching_part(stage)


def _training_parts(context: RunContext, stage: TrainStage, size: NetworkSize, speed: Speed) -> Sequence[Part]:
    """Return the part in which a stage trains, after the one in which its teacher's logits are cached, if they are."""
    parts, steps = [], stage.steps
    live = 0.0  # seconds of a teacher that is run in each step, for an image
    if stage.teacher is not None:
        teacher = size.forward
        if not stage.teacher.features:
            teacher = measure_forward(teacher_without_weights(context, stage.teacher), context.image_spec)
        live = speed.forward(teacher)
        if not stage.teacher.live:
            seconds = count_logits(context, stage) * (live + _loading(context, stage))
            parts.append(Part(caching_part(stage), [Work(("prediction", str(teacher)), seconds)]))
            live = 0.0
    work = [Work(("training", str(size)), steps * (_step(context, stage, size, speed) + stage.images_per_step * live))]
    if context.selects_best(stage):
        count = -(-steps // stage.epoch_steps)
        each = _prediction(context, size.forward, len(context.data.splits.validation), speed)
        work.append(Work(("validation", str(size.forward)), count * (each.seconds + VALIDATION_SECONDS)))
    return [*parts, Part(stage.name, work)]


def _step(context: RunContext, stage: TrainStage, size: NetworkSize, speed: Speed) -> float:
    """Return the seconds of a training step, without those of a teacher."""
    images = stage.images_per_step
    if stage.teacher is not None and stage.teacher.features:  # the head alone is run
        head_flops = 2 * size.head_parameters * (1 + BACKWARD_FORWARDS)
        return STEP_SECONDS + size.head_parameters * UPDATE_SECONDS + images * head_flops / speed.flops
    is_frozen = stage.fine_tuning.frozen_layers is None
    forwards = 1.0 if is_frozen else 1 + BACKWARD_FORWARDS
    calls = STEP_SECONDS + forwards * size.forward.operators * speed.call
    update = UPDATE_SECONDS * (size.head_parameters if is_frozen else size.parameters)
    return calls + update + images * (forwards * speed.forward(size.forward) + _loading(context, stage))


def _loading(context: RunContext, stage: TrainStage) -> float:
    """Return the seconds of reading an image and augmenting it."""
    values, augmentation = _count_values(context.stage_image_spec(stage)), context.config.augmentation
    seconds = READ_SECONDS + values * READ_VALUE_SECONDS
    if stage.augmented and (augmentation.transforms or augmentation.strong):
        seconds += AUGMENT_SECONDS + values * AUGMENT_VALUE_SECONDS
    return seconds


def _prediction(context: RunContext, forward: ForwardSize, images: int, speed: Speed) -> Work:
    """Return the work of reading images and predicting their classes."""
    seconds = speed.forward(forward) + READ_SECONDS + _count_values(context.image_spec) * READ_VALUE_SECONDS
    return Work(("prediction", str(forward)), images * seconds)


def _given_teachers(context: RunContext, images: int, speed: Speed) -> Iterator[Work]:
    """Yield the work of testing each teacher that the run was given; those of other classes are not tested."""
    for stage in stages_of_given_teachers(context):
        if stage.teacher is not None:
            teacher = teacher_without_weights(context, stage.teacher)
            count = images if teacher.classes == context.image_spec.classes else 0
            yield _prediction(context, measure_forward(teacher, context.image_spec), count, speed)


def _with_comparisons(size: NetworkSize, count: int, spec: ImageSpec) -> NetworkSize:
    """Return the size of a nearest-neighbour network that compares each image with ``count`` others."""
    flops = size.forward.flops + 2.0 * count * _count_values(spec)
    return replace(size, forward=replace(size.forward, flops=flops))


def _count_values(spec: ImageSpec) -> int:
    return spec.channels * spec.image_size**2
