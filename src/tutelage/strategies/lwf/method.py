"""Learning without forgetting (Li and Hoiem 2016, "Learning without Forgetting").

A network learns one task after another, each with a head of its own on the shared backbone. The images of old tasks are
no longer there: in their place the network keeps the logits that it gave, before it learned the new task, for the new
task's images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tutelage.data import EvalBatch, Source, Splits, Stream, StreamBatch
from tutelage.errors import UserError
from tutelage.models import CrossEntropy, FineTuning, Heads, ImageClassifier, accuracy, softened_divergence, task_heads
from tutelage.strategies.learner import StudentModule
from tutelage.strategies.lwf.config import LwFStrategy
from tutelage.strategies.lwf.imprinting import imprinting_stages
from tutelage.strategies.stage_context import Length, StageContext
from tutelage.strategies.stages import Stage, TeacherSpec, TrainStage

HEAD_ALONE = FineTuning(frozen_layers=None)
COMPARISON_NOTES = {
    "finetuning": "finetuning: the new task's images alone teach backbone and new head, after as long a warm-up.",
    "feature_extraction": "feature_extraction: only the new head learns, for as many steps, warm-up included.",
    "joint": "joint: the images of all tasks so far teach the whole network, for as many steps: the upper bound.",
}


class LwF(StudentModule):
    """A network with a head for each task that learns new tasks from images and old ones from recorded logits.

    Args:
        student: its head is ``Heads``.
        new: the tasks whose images are shown; their heads learn.
        old: the tasks whose recorded logits come with the images; their heads learn too. All others are frozen.
        temperature: T, softens the recorded probabilities and the student's.
        old_weight: lambda, the weight of the old tasks' loss.
    """

    def __init__(
        self,
        student: ImageClassifier,
        new: Sequence[int],
        old: Sequence[int] = (),
        temperature: float = 1.0,
        old_weight: float = 0.0,
    ) -> None:
        super().__init__(student)
        self._old = old
        self._temperature = temperature
        self._old_weight = old_weight
        self._heads.train_tasks(new, old)
        self._new_classes = [c for task in new for c in self._heads.tasks[task]]

    @property
    def _heads(self) -> Heads:
        return task_heads(self.student)

    @property
    def _label_smoothing(self) -> float:
        loss = self.student.loss_function
        if not isinstance(loss, CrossEntropy):
            raise TypeError(f"{type(loss).__name__}: within each task's head there is cross-entropy alone")
        return loss.label_smoothing

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss (the paper's figure 3), its parts, the accuracy within each image's task, and the agreement.

        ``agreement`` is how often an old head still predicts the recorded class, as a mean over the old tasks.
        """
        images, targets, recorded = batch["labelled"]
        logits = self.student(images)
        loss_new = self._new_task_loss(logits, targets)
        classes = targets if targets.ndim == 1 else targets.argmax(dim=1)
        task_logits = self._heads.mask_other_tasks(logits.detach(), classes)
        parts = {"loss": loss_new, "loss_new": loss_new.detach(), "accuracy": accuracy(task_logits, targets)}
        if not self._old or recorded is None:
            return parts
        old_tasks = [self._heads.tasks[task] for task in self._old]
        loss_old = torch.stack(
            [softened_divergence(logits[:, task], recorded[:, task], self._temperature) for task in old_tasks]
        ).sum()
        same = [(logits[:, task].argmax(dim=1) == recorded[:, task].argmax(dim=1)).float().mean() for task in old_tasks]
        return {
            **parts,
            "loss": loss_new + self._old_weight * loss_old,
            "loss_old": loss_old.detach(),
            "agreement": torch.stack(same).mean(),
        }

    def _new_task_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of classes (B,) or probabilities (B, C), each within the head of its task."""
        log_probabilities, weights = self._heads.log_probabilities(logits), self.student.class_weights
        smoothing = self._label_smoothing
        if targets.ndim == 1 and not smoothing:
            return functional.nll_loss(log_probabilities, targets, weights, reduction="sum") / len(targets)
        if targets.ndim == 1:
            targets = functional.one_hot(targets, logits.shape[1]).to(log_probabilities)
        targets = functional.pad(targets, (0, logits.shape[1] - targets.shape[1]))  # old classes have probability 0
        if smoothing:
            targets = self._heads.smooth(targets, smoothing)
        weighted = targets if weights is None else targets * weights
        return -(weighted * log_probabilities).sum(dim=1).mean()

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return logits (B', C), within each image's task, and labels (B',) of the images of the new tasks."""
        mask = torch.isin(batch.labels, torch.tensor(self._new_classes, device=batch.labels.device))
        images, labels = batch.images[mask], batch.labels[mask]
        return {"logits": self._heads.mask_other_tasks(self.student(images).float(), labels), "labels": labels}


@dataclass(frozen=True)
class _TaskStages(StageContext):
    """Builds the stages in which tasks are learned one after another."""

    strategy: LwFStrategy = field(kw_only=True)

    @cached_property
    def tasks(self) -> list[list[int]]:
        """The classes of each task; without ``strategy.tasks`` the first is of init_from's network, without images."""
        return self.strategy.tasks or [[], list(range(len(self.source.classes)))]

    @property
    def first_stage(self) -> str | None:
        """The name of the stage that learns the first task; None where the network of init_from has learned it."""
        return "task-1" if self.strategy.tasks else None

    def task_stream(self, *tasks: int) -> Stream:
        """Return the stream of the labelled images of some tasks."""
        labelled = self.labelled
        mask = np.isin(labelled.targets, [c for task in tasks for c in self.tasks[task]])
        return Stream(
            "labelled", labelled.indices[mask], labelled.targets[mask], labelled.batch_size, even=labelled.even
        )

    def task_length(self, task: int) -> Length:
        """Return how long the whole network learns a task."""
        return self.length(1.0, self.task_stream(task))

    def warm_up_length(self, task: int) -> Length:
        """Return how long a new head learns alone."""
        return self.length(self.strategy.warm_up, self.task_stream(task))

    def total_length(self, task: int) -> Length:
        """Return how long a task is learned for in all, its warm-up included."""
        length = self.task_length(task)
        return Length(length.steps + self.warm_up_length(task).steps, length.epoch_steps)

    def task_stage(
        self,
        name: str,
        length: Length,
        new: Sequence[int],
        starts_from: str | None,
        fine_tuning: FineTuning | None = None,
        recorded: str = "",
        comparison: str = "",
    ) -> TrainStage:
        """Return the stage that goes on from the stage ``starts_from`` with the images of the ``new`` tasks.

        Where the logits of a stage's network are ``recorded``, the loss keeps those of all tasks before the new one.
        """
        strategy = self.strategy
        old = range(new[0]) if recorded else ()
        cached_views = strategy.cached_views if strategy.teacher_logits == "views" else None
        return self.supervised_stage(
            name,
            length,
            self.task_stream(*new),
            module=lambda network, *teacher: LwF(network, new, old, strategy.temperature, strategy.old_weight),
            control=bool(comparison),
            starts_from=starts_from,
            fine_tuning=fine_tuning,
            teacher=TeacherSpec("labelled", recorded, cached_views) if recorded else None,
            note=COMPARISON_NOTES.get(comparison, ""),
        )

    def lwf(self) -> list[TrainStage]:
        """Return the method's own stages: the head of each new task is warmed up, then the whole network learns."""
        stages = []
        if self.first_stage:
            stages = [self.task_stage(self.first_stage, self.task_length(0), [0], None)]
        for task in range(1, len(self.tasks)):
            warm_up, previous = f"warm-up-{task + 1}", stages[-1].name if stages else None
            stages.append(self.task_stage(warm_up, self.warm_up_length(task), [task], previous, HEAD_ALONE))
            # The warm-up leaves backbone and old heads unchanged: the old tasks' logits are those from before it.
            stages.append(self.task_stage(f"lwf-{task + 1}", self.task_length(task), [task], warm_up, recorded=warm_up))
        return stages

    def comparison(self, method: str) -> list[TrainStage]:
        """Return the stages of a method to compare with, for as many steps in each task as ``lwf`` takes."""
        stages: list[TrainStage] = []
        for task in range(1, len(self.tasks)):
            name, previous = f"{method}-{task + 1}", stages[-1].name if stages else self.first_stage
            length, total = self.task_length(task), self.total_length(task)
            if method == "joint":
                stages.append(self.task_stage(name, total, range(task + 1), previous, comparison=method))
            elif method == "feature_extraction":
                stages.append(self.task_stage(name, total, [task], previous, HEAD_ALONE, comparison=method))
            else:
                warm_up = f"warm-up-{task + 1}"  # for the second task, lwf's own stage serves
                if task > 1:
                    warm_up = f"{method}-{warm_up}"
                    warm_up_length = self.warm_up_length(task)
                    stages.append(
                        self.task_stage(warm_up, warm_up_length, [task], previous, HEAD_ALONE, comparison=method)
                    )
                stages.append(self.task_stage(name, length, [task], warm_up, comparison=method))
        return stages


def stages(strategy: LwFStrategy, context: StageContext) -> Sequence[Stage]:
    """Return the first task, each further one (warm-up, then section 3 of the paper), then the comparisons.

    Without ``strategy.tasks`` the network of ``init_from`` has learned the first task; joint training is then left out,
    as it would need that task's images.

    A single class beside that network is no task: it is imprinted.

    Raises:
        UserError: the tasks do not fit the data's classes.
    """
    if strategy.adds_task and len(context.source.classes) == 1:
        return imprinting_stages(context)
    _check_tasks(strategy.tasks, context.source, context.splits)
    build = _TaskStages(context.config, context.source, context.splits, strategy=strategy)
    methods = [method for method in strategy.compare if strategy.tasks or method != "joint"]
    return [*build.lwf(), *(stage for method in methods for stage in build.comparison(method))]


def _check_tasks(tasks: Sequence[Sequence[int]], source: Source, splits: Splits) -> None:
    """Check that each task's classes are the data's and have images.

    Raises:
        UserError: a class does not exist, or a task has no labelled image, or none for validation.
    """
    labelled_classes = set(source.labels[splits.labelled].tolist())
    for number, task in enumerate(tasks, start=1):
        if missing := [c for c in task if c >= len(source.classes)]:
            raise UserError(
                f"strategy.tasks: task {number} names class {missing[0]}; "
                f"this data has {len(source.classes)}, numbered from 0 to {len(source.classes) - 1}"
            )
        if not labelled_classes & set(task):
            raise UserError(f"strategy.tasks: task {number} has no labelled image; give it other classes")
        if len(splits.validation) and not set(source.labels[splits.validation].tolist()) & set(task):
            raise UserError(f"strategy.tasks: task {number} has no validation image; use data.validation=none")
