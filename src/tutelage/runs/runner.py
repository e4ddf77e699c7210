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
from tutelage.data import ImageDataModule, data_module, few, placed
from tutelage.errors import UserError
from tutelage.models import COUNTS, freeze, make_classifier, start_from, take_over
from tutelage.process_group import ALONE, Group
from tutelage.randomness import Key
from tutelage.runs.cluster.crash_guard import session
from tutelage.runs.cluster.parallel import check_spread
from tutelage.runs.cluster.process_checks import as_one
from tutelage.runs.cluster.signals import Signals, Stopped
from tutelage.runs.context import Run, is_intact, spec_of
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
from tutelage.strategies import Fit, Label, Stage

TWO_CLASSES = ("one", "other")
TEST = "test"  # the work behind the last stage


def run(
    config: Config,
    folder: RunFolder,
    identity: dict[str, Any],
    command: str,
    observer: Observer,
    group: Group = ALONE,
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
    record.content = group.decided(lambda: record.content)
    cores = max(1, len(os.sched_getaffinity(0)) // group.world.local_size)
    prepare_torch(config.trainer.threads or record.threads or cores)
    if group.size > 1:  # where it is not set, Lightning takes as many threads as there are cores
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    data = data_module(config.data)
    with Signals().watched() as signals, _quiet():
        this = Run(config, folder, record, data, signals, observer, group)
        group.heed = this.answer

        def tell(what: str, share: float) -> None:
            observer.reading(what, share)
            this.answer()

        data.tell, data.device, data.share, data.neighbours = tell, this.device, this.share, group.world.local_size
        size_of(config.model.arguments(), spec_of(config.data, TWO_CLASSES))  # before data is read or fetched
        check_given(config)
        group.by_turns(lambda: (data.source, this.older))
        this.plan = this.planned()
        _check(this)
        if record.content and record.content["version"] != __version__:
            observer.say(f"warning: begun by version {record.content['version']}, goes on with {__version__}")
        record.content = group.decided(lambda: _begin(this, identity, command))
        observer.say(f"run: {folder.path}")
        _tell_of_data(this)
        _show_plan(this)
        try:
            with as_one(group):
                _execute(this)
        except Stopped:
            record.stop()
            raise
        except Exception as error:
            record.fail(f"{type(error).__name__}: {error}")
            raise
    return record.content


def _begin(this: Run, identity: dict[str, Any], command: str) -> dict[str, Any]:
    """Make the run's folder, or clear up what is there, and return the record of a run under way."""
    beginning, folder = session(this), this.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    remove_partials(folder.path)
    write_config(folder, _placed(this.config).model_dump(mode="json"))
    this.record.begin(identity, command, torch.get_num_threads(), _told_of(this.data), beginning)
    return this.record.content


def _placed(config: Config) -> Config:
    """Return the config with whole paths of its data, so that the run can be looked at from anywhere."""
    root, unlabelled = config.data.root, config.data.unlabelled
    whole = {} if unlabelled is None else {"unlabelled": placed(unlabelled)}
    if root is not None and (path := Path(root).expanduser()).exists():
        whole["root"] = str(path.resolve())
    return config.model_copy(update={"data": config.data.model_copy(update=whole)})


def _execute(this: Run) -> None:
    """Execute the stages that are not finished, then the test."""
    number = 0
    while number < len(this.plan):
        stage = this.plan[number]
        if not this.group.decided(lambda one=stage: _is_done(this, one)):  # type: ignore[misc]
            this.show(stage.name)
            this.record.finish_stage(_done(this, stage))
        _plan_again(this)
        number += 1
    if this.config.evaluate_test:
        this.show(TEST)
    this.group.decided(lambda: test(this) if this.config.evaluate_test else leave_untested(this))


def _is_done(this: Run, stage: Stage) -> bool:
    """Return whether a stage is finished and what it left is still there."""
    return this.record.stage(stage.name) is not None and is_intact(this, stage)


def _plan_again(this: Run) -> None:
    """Plan what follows from the stages that are finished by now; note which of them are not chosen after all."""
    names = [stage.name for stage in this.plan]
    this.plan = this.planned()
    for stage in this.plan:
        entry = this.record.stage(stage.name)
        if isinstance(stage, Fit) and stage.rejected and entry is not None and not entry.get("rejected"):
            this.record.finish_stage({**entry, "rejected": True})
            this.observer.say(f"note: {stage.name} is no better on validation: it is not chosen, and there are no more")
    if names != [stage.name for stage in this.plan]:
        _show_plan(this)


def _show_plan(this: Run) -> None:
    """Tell the observer what there is to do, and how much of it each part is."""
    plan = _plan(this, {stage.name: this.size(stage).flops for stage in this.plan if isinstance(stage, Fit)})
    this.observer.begin(plan)
    this.parts = [part.name for part in plan]


def _done(this: Run, stage: Stage) -> dict[str, Any]:
    """Execute a stage and return its entry in the ledger."""
    if isinstance(stage, Label):
        return label(this, stage)
    return this.group.decided(lambda: memorise(this, stage)) if stage.one_pass else fit(this, stage)


def _check(this: Run) -> None:
    """Try the device, the pipeline and every network, before anything is written.

    Raises:
        UserError: one of them cannot be had.
    """
    trainer = this.config.trainer
    if this.device.type == "cpu" and trainer.accelerator == "gpu":
        raise UserError("trainer.accelerator=gpu: no CUDA device is visible; use trainer=cpu or trainer=auto")
    if this.device.type == "cpu" and trainer.precision == "16-mixed":
        raise UserError("trainer.precision=16-mixed: no CUDA device is visible; use 32-true or bf16-mixed")
    if this.device.type == "cpu" and trainer.sync_batchnorm:
        raise UserError("trainer.sync_batchnorm=true: no CUDA device is visible, and torch has none for the CPU; false")
    views = this.config.augmentation
    Pipeline(views.transforms, Key(0, "check"), views.strong).check(this.data.source.images[0])
    sizes = {stage.name: this.size(stage) for stage in this.plan if isinstance(stage, Fit)}
    for stage in this.plan:
        if isinstance(stage, Fit) and stage.grows_from is not None:
            own, teachers = sizes[stage.name].parameters, sizes[stage.grows_from].parameters
            if own < teachers:
                raise UserError(
                    f"strategy.students: {stage.name} would have {own:,} weights, fewer than the {teachers:,} of its "
                    f"teacher; give students sizes that suit the model"
                )
        if isinstance(stage, Fit):
            check(this, stage)
            if trainer.parallel == "fsdp" and this.group.size > 1:
                _check_spread(this, stage)
            if not stage.augmented:
                _check_finetuned(this, stage)
    if this.config.init_from is not None:
        _check_start(this)
    elif isinstance(this.config.model, NearestNeighboursConfig) and this.config.model.backbone is not None:
        this.observer.say("note: the backbone's weights are random; init_from=FILE gives it others")


def _check_spread(this: Run, stage: Fit) -> None:
    """Raise a UserError unless the weights of a stage's network can be spread over devices."""
    arguments = stage.model.arguments()
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        check_spread(arguments.get("name", arguments["_target_"]), make_classifier(arguments, this.sees(stage)))


def _check_finetuned(this: Run, stage: Fit) -> None:
    """Raise a UserError unless the weights before serve a stage that goes on at a size of its own."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        networks = [make_classifier(stage.model.arguments(), spec) for spec in (this.spec, this.sees(stage))]
    before, after = ([tensor.shape for tensor in network.state_dict().values()] for network in networks)
    if before != after:
        name = stage.model.arguments().get("name", stage.model.target.rpartition(".")[2].lower())
        raise UserError(
            f"strategy.finetune.image_size={stage.image_size}: the weights of model {name} depend on the size of the "
            "image; take a network that pools over the whole of it, such as model=resnet, or null"
        )
    try:
        freeze(networks[-1].backbone, stage.tuning)
    except UserError as error:
        raise UserError(f"strategy.finetune.{str(error).removeprefix('strategy.')}") from None


def _check_start(this: Run) -> None:
    """Raise a UserError unless the weights of ``init_from`` fit every network that they start; say what they fill."""
    given = weights(this.config.init_from or "", "init_from")
    told = set()
    for stage in this.plan:
        if isinstance(stage, Fit):
            with torch.device("meta"):
                network = make_classifier(stage.model.arguments(), this.spec)
            freeze(network.backbone, stage.tuning)
            if stage.starts_from is None and this.older is not None:
                told.add(take_over(network, this.older.network))
            elif stage.starts_from is None:
                told.add(start_from(network, given))
    for line in sorted(told):
        this.observer.say(line)
    if this.older is not None and this.older.told:
        this.observer.say(f"note: task 1 is not measured: {this.older.told}")


def _plan(this: Run, flops: dict[str, float]) -> Sequence[StageWork]:
    """Return what the stages and the test will cost, given the operations of each network's forward."""
    splits, plan = this.data.splits, []
    for stage in this.plan:
        if isinstance(stage, Label):
            asked = COUNTS[stage.views] * len(splits.pool)
            plan.append(StageWork(stage.name, answering(asked, flops[stage.teacher])))
        elif stage.one_pass:
            plan.append(StageWork(stage.name, answering(len(splits.labelled), flops[stage.name])))
            flops[stage.name] += comparing(len(splits.labelled), this.spec)
        else:
            images = stage.steps * stage.images_per_step
            before, live = _teaching(this, stage, flops)
            plan += before
            plan.append(StageWork(stage.name, training_cost(images, flops[stage.name]) + answering(images, live)))
    if this.config.evaluate_test:
        plan.append(StageWork(TEST, sum(answering(len(splits.test), each) for each in flops.values())))
    return plan


def _teaching(this: Run, stage: Fit, flops: dict[str, float]) -> tuple[Sequence[StageWork], float]:
    """Return what it will cost to ask a stage's teacher before it trains, and the operations of asking it in a step."""
    teaching = stage.teaching
    if teaching is None:
        return [], 0.0
    cost = flops[stage.name] if teaching.features else flops_of(outline(this, teaching), this.spec)
    if teaching.live:
        return [], cost
    return [StageWork(asking(stage), answering(answers_asked(this, stage), cost))], 0.0


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


def _tell_of_data(this: Run) -> None:
    """Say what the user should know of the data: files left out, classes with no image or a single one."""
    source, labelled = this.data.source, this.data.splits.labelled
    for note in source.notes:
        this.observer.say(f"note: {note}")
    if source.left_out:
        this.observer.say(f"warning: unreadable files are left out ({len(source.left_out):,}): {few(source.left_out)}")
    counts = np.bincount(source.labels[labelled], minlength=len(source.classes))
    for number, told in ((0, "no labelled image"), (1, "a single labelled image")):
        names = [source.classes[c] for c in np.flatnonzero(counts == number)]
        if names and (number == 0 or this.config.data.labels_per_class != 1):
            what = "class" if len(names) == 1 else f"{len(names)} classes"
            this.observer.say(f"warning: {what} with {told}: {few(names)}")


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
