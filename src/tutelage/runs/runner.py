"""One runner for every strategy: executes its stages, writes each finished one down, goes on where it was stopped."""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tutelage import __version__
from tutelage.augmentation import Pipeline
from tutelage.config import Config, NearestNeighboursConfig
from tutelage.data import ImageDataModule, abbreviate, data_module, placed
from tutelage.errors import UserError
from tutelage.models import VIEW_COUNTS, freeze, load_first_task, load_pretrained, make_classifier
from tutelage.process_group import ALONE, ProcessGroup
from tutelage.randomness import Key
from tutelage.runs.cluster.crash_guard import session
from tutelage.runs.cluster.parallel import check_spread
from tutelage.runs.cluster.process_checks import propagate_failure
from tutelage.runs.cluster.signals import Signals, Stopped
from tutelage.runs.context import RunContext, is_intact, spec_of
from tutelage.runs.cost import answering, comparing, flops_of, size_of
from tutelage.runs.cost import training as training_cost
from tutelage.runs.evaluate import leave_untested, test
from tutelage.runs.fit import fit, memorise
from tutelage.runs.folder import Record, RunFolder, write_config
from tutelage.runs.label import label
from tutelage.runs.observer import Observer, StageWork
from tutelage.runs.teacher_cache import answers_asked, asking, check, check_given, outline
from tutelage.runs.weight_sources import weights
from tutelage.storage import remove_partials
from tutelage.strategies import PseudoLabelStage, Stage, TrainStage

TWO_CLASSES = ("one", "other")
TEST = "test"  # the work behind the last stage


def run(
    config: Config,
    folder: RunFolder,
    identity: dict[str, Any],
    command: str,
    observer: Observer,
    group: ProcessGroup = ALONE,
) -> dict[str, Any]:
    """Execute a run, or what is left of it, and return its record.

    The caller holds the folder's lock; of several processes the first one does.

    Args:
        config: the whole config.
        folder: the run's folder; made here, once the config has proved to fit the data.
        identity: the scientific part of the config, to be recorded.
        command: what was typed, to be recorded.
        observer: is told what goes on.
        group: the processes of the run, each of which calls this.

    Raises:
        UserError: the config does not fit the data.
        Stopped: a signal asked for it; all is saved.
    """
    record = Record(folder, group)
    record.content = group.broadcast_from_rank0(lambda: record.content)
    cores = max(1, len(os.sched_getaffinity(0)) // group.world.local_size)
    prepare_torch(config.trainer.threads or record.threads or cores)
    if group.size > 1:  # where it is not set, Lightning takes as many threads as there are cores
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    data = data_module(config.data)
    with Signals().watched() as signals, _quiet():
        context = RunContext(config, folder, record, data, signals, observer, group)
        group.check_signals = context.answer

        def tell(what: str, share: float) -> None:
            observer.reading(what, share)
            context.answer()

        data.tell, data.device, data.share, data.neighbours = (
            tell,
            context.device,
            context.share,
            group.world.local_size,
        )
        size_of(config.model.arguments(), spec_of(config.data, TWO_CLASSES))  # before data is read or fetched
        check_given(config)
        group.by_turns(lambda: (data.source, context.older))
        context.plan = context.planned()
        _check(context)
        if record.content and record.content["version"] != __version__:
            observer.say(f"warning: begun by version {record.content['version']}, goes on with {__version__}")
        record.content = group.broadcast_from_rank0(lambda: _begin(context, identity, command))
        observer.say(f"run: {folder.path}")
        _tell_of_data(context)
        _show_plan(context)
        try:
            with propagate_failure(group):
                _execute(context)
        except Stopped:
            record.stop()
            raise
        except Exception as error:
            record.fail(f"{type(error).__name__}: {error}")
            raise
    return record.content


def _begin(context: RunContext, identity: dict[str, Any], command: str) -> dict[str, Any]:
    """Make the run's folder, or clear up what is there, and return the record of a run under way."""
    beginning, folder = session(context), context.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    remove_partials(folder.path)
    write_config(folder, _placed(context.config).model_dump(mode="json"))
    context.record.begin(identity, command, torch.get_num_threads(), _told_of(context.data), beginning)
    return context.record.content


def _placed(config: Config) -> Config:
    """Return the config with whole paths of its data, so that the run can be looked at from anywhere."""
    root, unlabelled = config.data.root, config.data.unlabelled
    whole = {} if unlabelled is None else {"unlabelled": placed(unlabelled)}
    if root is not None and (path := Path(root).expanduser()).exists():
        whole["root"] = str(path.resolve())
    return config.model_copy(update={"data": config.data.model_copy(update=whole)})


def _execute(context: RunContext) -> None:
    """Execute the stages that are not finished, then the test."""
    number = 0
    while number < len(context.plan):
        stage = context.plan[number]
        if not context.group.broadcast_from_rank0(lambda one=stage: _is_done(context, one)):  # type: ignore[misc]
            context.show(stage.name)
            context.record.finish_stage(_done(context, stage))
        _plan_again(context)
        number += 1
    if context.config.evaluate_test:
        context.show(TEST)
    context.group.broadcast_from_rank0(
        lambda: test(context) if context.config.evaluate_test else leave_untested(context)
    )


def _is_done(context: RunContext, stage: Stage) -> bool:
    """Return whether a stage is finished and what it left is still there."""
    return context.record.stage(stage.name) is not None and is_intact(context, stage)


def _plan_again(context: RunContext) -> None:
    """Plan what follows from the stages that are finished by now; note which of them are not chosen after all."""
    names = [stage.name for stage in context.plan]
    context.plan = context.planned()
    for stage in context.plan:
        entry = context.record.stage(stage.name)
        if isinstance(stage, TrainStage) and stage.rejected and entry is not None and not entry.get("rejected"):
            context.record.finish_stage({**entry, "rejected": True})
            context.observer.say(
                f"note: {stage.name} is no better on validation: it is not chosen, and there are no more"
            )
    if names != [stage.name for stage in context.plan]:
        _show_plan(context)


def _show_plan(context: RunContext) -> None:
    """OnProgress the observer what there is to do, and how much of it each part is."""
    plan = _plan(
        context, {stage.name: context.size(stage).flops for stage in context.plan if isinstance(stage, TrainStage)}
    )
    context.observer.begin(plan)
    context.parts = [part.name for part in plan]


def _done(context: RunContext, stage: Stage) -> dict[str, Any]:
    """Execute a stage and return its entry in the ledger."""
    if isinstance(stage, PseudoLabelStage):
        return label(context, stage)
    return (
        context.group.broadcast_from_rank0(lambda: memorise(context, stage)) if stage.one_pass else fit(context, stage)
    )


def _check(context: RunContext) -> None:
    """Try the device, the pipeline and every network, before anything is written.

    Raises:
        UserError: one of them cannot be had.
    """
    trainer = context.config.trainer
    if context.device.type == "cpu" and trainer.accelerator == "gpu":
        raise UserError("trainer.accelerator=gpu: no CUDA device is visible; use trainer=cpu or trainer=auto")
    if context.device.type == "cpu" and trainer.precision == "16-mixed":
        raise UserError("trainer.precision=16-mixed: no CUDA device is visible; use 32-true or bf16-mixed")
    if context.device.type == "cpu" and trainer.sync_batchnorm:
        raise UserError("trainer.sync_batchnorm=true: no CUDA device is visible, and torch has none for the CPU; false")
    views = context.config.augmentation
    Pipeline(views.transforms, Key(0, "check"), views.strong).check(context.data.source.images[0])
    sizes = {stage.name: context.size(stage) for stage in context.plan if isinstance(stage, TrainStage)}
    for stage in context.plan:
        if isinstance(stage, TrainStage) and stage.grows_from is not None:
            own, teachers = sizes[stage.name].parameters, sizes[stage.grows_from].parameters
            if own < teachers:
                raise UserError(
                    f"strategy.students: {stage.name} would have {own:,} weights, fewer than the {teachers:,} of its "
                    f"teacher; give students sizes that suit the model"
                )
        if isinstance(stage, TrainStage):
            check(context, stage)
            if trainer.parallel == "fsdp" and context.group.size > 1:
                _check_spread(context, stage)
            if not stage.augmented:
                _check_finetuned(context, stage)
    if context.config.init_from is not None:
        _check_start(context)
    elif isinstance(context.config.model, NearestNeighboursConfig) and context.config.model.backbone is not None:
        context.observer.say("note: the backbone's weights are random; init_from=FILE gives it others")


def _check_spread(context: RunContext, stage: TrainStage) -> None:
    """Raise a UserError unless the weights of a stage's network can be spread over devices."""
    arguments = stage.model.arguments()
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        check_spread(arguments.get("name", arguments["_target_"]), make_classifier(arguments, context.sees(stage)))


def _check_finetuned(context: RunContext, stage: TrainStage) -> None:
    """Raise a UserError unless the weights before serve a stage that goes on at a size of its own."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        networks = [make_classifier(stage.model.arguments(), spec) for spec in (context.spec, context.sees(stage))]
    before, after = ([tensor.shape for tensor in network.state_dict().values()] for network in networks)
    if before != after:
        name = stage.model.arguments().get("name", stage.model.target.rpartition(".")[2].lower())
        raise UserError(
            f"strategy.finetune.image_size={stage.image_size}: the weights of model {name} depend on the size of the "
            "image; take a network that pools over the whole of it, such as model=resnet, or null"
        )
    try:
        freeze(networks[-1].backbone, stage.fine_tuning)
    except UserError as error:
        raise UserError(f"strategy.finetune.{str(error).removeprefix('strategy.')}") from None


def _check_start(context: RunContext) -> None:
    """Raise a UserError unless the weights of ``init_from`` fit every network that they start; say what they fill."""
    given = weights(context.config.init_from or "", "init_from")
    told = set()
    for stage in context.plan:
        if isinstance(stage, TrainStage):
            with torch.device("meta"):
                network = make_classifier(stage.model.arguments(), context.spec)
            freeze(network.backbone, stage.fine_tuning)
            if stage.starts_from is None and context.older is not None:
                told.add(load_first_task(network, context.older.network))
            elif stage.starts_from is None:
                told.add(load_pretrained(network, given))
    for line in sorted(told):
        context.observer.say(line)
    if context.older is not None and context.older.told:
        context.observer.say(f"note: task 1 is not measured: {context.older.told}")


def _plan(context: RunContext, flops: dict[str, float]) -> Sequence[StageWork]:
    """Return what the stages and the test will cost, given the operations of each network's forward."""
    splits, plan = context.data.splits, []
    for stage in context.plan:
        if isinstance(stage, PseudoLabelStage):
            asked = VIEW_COUNTS[stage.tta_views] * len(splits.pool)
            plan.append(StageWork(stage.name, answering(asked, flops[stage.teacher])))
        elif stage.one_pass:
            plan.append(StageWork(stage.name, answering(len(splits.labelled), flops[stage.name])))
            flops[stage.name] += comparing(len(splits.labelled), context.spec)
        else:
            images = stage.steps * stage.images_per_step
            before, live = _teaching(context, stage, flops)
            plan += before
            plan.append(StageWork(stage.name, training_cost(images, flops[stage.name]) + answering(images, live)))
    if context.config.evaluate_test:
        plan.append(StageWork(TEST, sum(answering(len(splits.test), each) for each in flops.values())))
    return plan


def _teaching(context: RunContext, stage: TrainStage, flops: dict[str, float]) -> tuple[Sequence[StageWork], float]:
    """Return what it will cost to ask a stage's teacher before it trains, and the operations of asking it in a step."""
    teaching = stage.teacher
    if teaching is None:
        return [], 0.0
    cost = flops[stage.name] if teaching.features else flops_of(outline(context, teaching), context.spec)
    if teaching.live:
        return [], cost
    return [StageWork(asking(stage), answering(answers_asked(context, stage), cost))], 0.0


def _told_of(data: ImageDataModule) -> dict[str, Any]:
    """Return what the record says of the data: its classes in the order of their labels, and how many images."""
    source = data.source
    return {
        "classes": list(source.classes),
        "images": len(source.labels),
        "test": len(data.splits.test),
        "left_out": list(source.left_out),
        "labelled": np.bincount(source.labels[data.splits.labelled], minlength=len(source.classes)).tolist(),
    }


def _tell_of_data(context: RunContext) -> None:
    """Say what the user should know of the data: files left out, classes with no image or a single one."""
    source, labelled = context.data.source, context.data.splits.labelled
    for note in source.notes:
        context.observer.say(f"note: {note}")
    if source.left_out:
        context.observer.say(
            f"warning: unreadable files are left out ({len(source.left_out):,}): {abbreviate(source.left_out)}"
        )
    counts = np.bincount(source.labels[labelled], minlength=len(source.classes))
    for number, told in ((0, "no labelled image"), (1, "a single labelled image")):
        names = [source.classes[c] for c in np.flatnonzero(counts == number)]
        if names and (number == 0 or context.config.data.labels_per_class != 1):
            what = "class" if len(names) == 1 else f"{len(names)} classes"
            context.observer.say(f"warning: {what} with {told}: {abbreviate(names)}")


def prepare_torch(threads: int) -> None:
    """Fix what decides over bits: threads and deterministic kernels, for every stage alike."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's notes about itself off the screen; a run has its own display."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for pattern in (
            ".*does not have many workers.*",
            ".*resuming from a checkpoint that ended.*",
            ".*logging interval.*",
            ".*GPU available but not used.*",
            ".*does not have a deterministic implementation.*",
            ".*in eval mode at the start of training.*",  # frozen parts, and teachers
            ".*srun.* command is available.*",
            ".*isinstance.*LeafSpec.*",
            ".*Grad strides do not match bucket view strides.*",  # of a convolution that sees one channel: slower alone
        ):
            warnings.filterwarnings("ignore", pattern)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
