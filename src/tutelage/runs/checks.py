"""Checks before a run writes anything: its devices, its augmentation, and every network of its stages."""

import torch

from tutelage.augmentation import Pipeline
from tutelage.config import MONITORS, Config, NearestNeighboursConfig
from tutelage.data import ImageDataModule
from tutelage.errors import UserError
from tutelage.models import freeze, load_pretrained, make_classifier, make_loss
from tutelage.randomness import Key
from tutelage.runs.callbacks import EpochTable
from tutelage.runs.cluster.parallel import check_shardable
from tutelage.runs.context import RunContext, make_image_spec
from tutelage.runs.extra_callbacks import make_extra_callbacks
from tutelage.runs.network_size import measure_network
from tutelage.runs.teachers import check_teacher, check_teacher_files
from tutelage.runs.weight_sources import find_weights
from tutelage.strategies import TrainStage

SINGLE_VALUE = "Expected more than 1 value per channel"  # in torch's message
TWO_CLASSES = ("first", "second")  # stand in for the classes while the data is not read yet


def check_before_data(config: Config) -> None:
    """Check the network, the loss, the callbacks and the teachers' files before data is read or downloaded.

    Raises:
        UserError: the network, the loss or a callback cannot be built, or a teacher is no network of a run.
    """
    measure_network(config.model.arguments(), make_image_spec(config.data, TWO_CLASSES))
    make_loss(config.loss.arguments())
    make_extra_callbacks(config.callbacks.extra, [EpochTable.__qualname__])
    check_teacher_files(config)


def check_stages(context: RunContext) -> None:
    """Check the device, the augmentation and the network of every stage.

    Raises:
        UserError: one of them does not work.
    """
    _check_device(context)
    _check_monitor(context)
    _check_augmentation(context.config, context.data)
    for stage in context.train_stages:
        context.network_size(stage)  # builds the network
        _check_frozen_layers(context, stage)
        if stage.grows_from is not None:
            _check_growth(context, stage)
        _check_batch_norm(context, stage)
        check_teacher(context, stage)
        if context.config.trainer.parallel == "fsdp" and context.group.size > 1:
            _check_sharding(context, stage)
        if not stage.augmented:
            _check_finetuning(context, stage)
    if context.config.init_from is not None:
        _check_initial_weights(context)
    elif isinstance(context.config.model, NearestNeighboursConfig) and context.config.model.backbone is not None:
        context.observer.say("note: the backbone's weights are random; init_from=FILE gives it others")


def _check_device(context: RunContext) -> None:
    """Raise a UserError unless the device is there that the trainer's config asks for."""
    trainer = context.config.trainer
    if context.device.type != "cpu":
        return
    if trainer.accelerator == "gpu":
        raise UserError("trainer.accelerator=gpu: no CUDA device is visible; use trainer=cpu or trainer=auto")
    if trainer.precision == "16-mixed":
        raise UserError("trainer.precision=16-mixed: no CUDA device is visible; use 32-true or bf16-mixed")
    if trainer.sync_batchnorm:
        raise UserError("trainer.sync_batchnorm=true: no CUDA device is visible, and torch has none for the CPU; false")


def _check_monitor(context: RunContext) -> None:
    """Raise a UserError where a metric is to select the best weights, but there is no validation to measure it on."""
    monitor = context.config.callbacks.monitor
    if monitor != MONITORS[0] and not context.has_validation:
        raise UserError(
            f"callbacks.monitor={monitor}: there are no validation images; give some by data.validation=inside or "
            f"outside:N, or leave it at {MONITORS[0]}"
        )


def _check_augmentation(config: Config, data: ImageDataModule) -> None:
    """Raise a UserError unless the pipeline can be built and takes the first labelled image."""
    augmentation, image = config.augmentation, data.images[int(data.splits.labelled[0])]
    Pipeline(augmentation.transforms, Key(0, "check"), augmentation.strong).check(image)


def _check_growth(context: RunContext, stage: TrainStage) -> None:
    """Raise a UserError where a student is smaller than its teacher."""
    teacher = next(other for other in context.train_stages if other.name == stage.grows_from)
    own, teacher_size = (context.network_size(each).parameters for each in (stage, teacher))
    if own < teacher_size:
        raise UserError(
            f"strategy.students: {stage.name} would have {own:,} weights, fewer than the {teacher_size:,} of its "
            f"teacher; give students sizes that suit the model"
        )


def _check_frozen_layers(context: RunContext, stage: TrainStage) -> None:
    """Raise a UserError where more layers of a stage's network are to be frozen than it has."""
    if not stage.fine_tuning.frozen_layers:
        return
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = make_classifier(stage.model.arguments(), context.stage_image_spec(stage))
    try:
        freeze(network.backbone, stage.fine_tuning)
    except UserError as error:
        if stage.fine_tuning.frozen_layers != stage.model.frozen_layers:
            raise UserError(f"strategy.finetune.{str(error).removeprefix('model.')}") from None
        raise UserError(f"stage {stage.name}: {error}") from None


def _check_batch_norm(context: RunContext, stage: TrainStage) -> None:
    """Raise a UserError where batch norm has a single value of each channel, of which there is no variance.

    That is so where a step, or a part of it that the norm sees, has one image that is one pixel wide at the norm.
    """
    shard, is_joined = context.data.runtime.shard, context.config.trainer.sync_batchnorm  # over the processes
    pieces = shard.accumulate if is_joined else shard.pieces
    if stage.one_pass or stage.images_per_step > pieces:
        return
    spec, arguments = context.stage_image_spec(stage), stage.model.arguments()
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        network = make_classifier(arguments, spec)
        freeze(network.backbone, stage.fine_tuning)
        network.train()
        try:
            network.features(torch.empty(1, spec.channels, spec.image_size, spec.image_size, dtype=torch.uint8))
        except ValueError as error:
            if SINGLE_VALUE not in str(error):
                raise
            batch = f"data.batch_size={context.config.data.batch_size}"
            raise UserError(
                f"{batch}{f' in {pieces} parts' if pieces > 1 else ''}: batch norm of model "
                f"{arguments.get('name', arguments['_target_'])} needs two images or more at a time; give at least "
                f"data.batch_size={2 * pieces}, or larger images"
            ) from None


def _check_sharding(context: RunContext, stage: TrainStage) -> None:
    """Raise a UserError unless the weights of a stage's network can be sharded over devices."""
    arguments = stage.model.arguments()
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = make_classifier(arguments, context.stage_image_spec(stage))
    check_shardable(arguments.get("name", arguments["_target_"]), network)


def _check_finetuning(context: RunContext, stage: TrainStage) -> None:
    """Raise a UserError unless the weights of the stage before fit a stage at an image size of its own."""
    specs = (context.image_spec, context.stage_image_spec(stage))
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        networks = [make_classifier(stage.model.arguments(), spec) for spec in specs]
    before, after = ([tensor.shape for tensor in network.state_dict().values()] for network in networks)
    if before != after:
        name = stage.model.arguments().get("name", stage.model.target.rpartition(".")[2].lower())
        raise UserError(
            f"strategy.finetune.image_size={stage.image_size}: the weights of model {name} depend on the size of the "
            "image; take a network that pools over the whole of it, such as model=resnet, or null"
        )


def _check_initial_weights(context: RunContext) -> None:
    """Raise a UserError unless the weights of ``init_from`` fit every network that starts from them; say how."""
    source, previous = find_weights(context.config.init_from or "", "init_from"), context.previous_run
    notes = set()
    for stage in context.train_stages:
        with torch.device("meta"):
            network = make_classifier(stage.model.arguments(), context.image_spec)
        if stage.starts_from is None and previous is not None:
            notes.add(previous.give_weights(network))
        elif stage.starts_from is None:
            notes.add(load_pretrained(network, source))
    for note in sorted(notes):
        context.observer.say(note)
    if previous is not None and previous.no_data_reason:
        old = "the old classes are" if context.image_spec.added else "task 1 is"
        context.observer.say(f"note: {old} not measured: {previous.no_data_reason}")
