"""Learning without forgetting (Li and Hoiem 2016, "Learning without Forgetting").

A network learns one task after another, each with a head of its own on the shared backbone. The images of old tasks are
gone: what stands for them is what the network, before it learned the new task, answered to the new task's images.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tutelage.config import Config, LwFConfig
from tutelage.data import EvalBatch, Source, Splits, Stream, StreamBatch
from tutelage.errors import UserError
from tutelage.models import FineTuning, Heads, ImageClassifier, accuracy
from tutelage.models.losses import softened_divergence
from tutelage.strategies.learner import StudentModule
from tutelage.strategies.stages import Length, Stage, TeacherSpec, TrainStage, labelled_stream, length

EVERYTHING, HEAD_ALONE = FineTuning(), FineTuning(frozen_layers=None)
TOLD = {
    "finetuning": "finetuning: the new task's images alone teach backbone and new head, after as long a warm-up.",
    "feature_extraction": "feature_extraction: only the new head learns, for as many steps, warm-up included.",
    "joint": "joint: the images of all tasks so far teach the whole network, for as many steps: what is to be had.",
}


class LwF(StudentModule):
    """A network with a head a task that learns some tasks from images and keeps its answers for others.

    Args:
        student: its head is ``Heads``.
        new: the tasks that images are shown of; their heads learn.
        kept: old tasks whose recorded answers come with the images; their heads learn too. All others stand still.
        temperature: T, softens recorded answers and those to be like them.
        old_weight: lambda, what the old tasks' answers weigh.
    """

    def __init__(
        self,
        student: ImageClassifier,
        new: Sequence[int],
        kept: Sequence[int] = (),
        temperature: float = 1.0,
        old_weight: float = 0.0,
    ) -> None:
        super().__init__(student)
        self._kept = kept
        self._temperature = temperature
        self._old_weight = old_weight
        self._heads.learn(new, kept)
        self._new = [c for task in new for c in self._heads.tasks[task]]

    @property
    def _heads(self) -> Heads:
        assert isinstance(self.student.head, Heads)  # noqa: S101 - the runner made it for the strategy's tasks
        return self.student.head

    def training_step(self, batch: dict[str, StreamBatch], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss (the paper's figure 3), its parts, and how right the answers are.

        ``agreement`` is the share of old answers that are still the recorded ones, a mean over the old tasks.
        """
        images, targets, recorded = batch["labelled"]
        logits = self.student(images)
        loss_new = self._own_heads_loss(logits, targets)
        hard = targets if targets.ndim == 1 else targets.argmax(dim=1)
        own = self._heads.of_own_task(logits.detach(), hard)
        found = {"loss": loss_new, "loss_new": loss_new.detach(), "accuracy": accuracy(own, targets)}
        if not self._kept or recorded is None:
            return found
        old = [self._heads.tasks[task] for task in self._kept]
        loss_old = torch.stack(
            [softened_divergence(logits[:, task], recorded[:, task], self._temperature) for task in old]
        ).sum()
        same = [(logits[:, task].argmax(dim=1) == recorded[:, task].argmax(dim=1)).float().mean() for task in old]
        return {
            **found,
            "loss": loss_new + self._old_weight * loss_old,
            "loss_old": loss_old.detach(),
            "agreement": torch.stack(same).mean(),
        }

    def _own_heads_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of classes (B,) or probabilities (B, C), each within the head of its task."""
        log_probabilities, weights = self._heads.log_probabilities(logits), self.student.class_weights
        if targets.ndim == 1:
            return functional.nll_loss(log_probabilities, targets, weights, reduction="sum") / len(targets)
        targets = functional.pad(targets, (0, logits.shape[1] - targets.shape[1]))  # by nothing for old classes
        weighted = targets if weights is None else targets * weights
        return -(weighted * log_probabilities).sum(dim=1).mean()

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return logits (B', C) and labels (B',) of the images of the tasks that are learned, told their task."""
        shown = torch.isin(batch.labels, torch.tensor(self._new, device=batch.labels.device))
        images, labels = batch.images[shown], batch.labels[shown]
        return {"logits": self._heads.of_own_task(self.student(images).float(), labels), "labels": labels}


class _Plan:
    """The stages of a config, as they are put together."""

    def __init__(self, config: Config, recipe: LwFConfig, source: Source, splits: Splits) -> None:
        self.config = config
        self.recipe = recipe
        self.every = labelled_stream(config, source, splits)
        self.tasks = recipe.tasks or [[], list(range(len(source.classes)))]  # what init_from knows comes without images
        self.first = "task-1" if recipe.tasks else None

    def images(self, *tasks: int) -> Stream:
        """Return the stream of the labelled images of some tasks."""
        every = self.every
        shown = np.isin(every.targets, [c for task in tasks for c in self.tasks[task]])
        return Stream("labelled", every.indices[shown], every.targets[shown], every.batch_size, even=every.even)

    def whole(self, task: int) -> Length:
        """Return how long everything learns a task."""
        return self._length(1.0, task)

    def warm_up(self, task: int) -> Length:
        """Return how long a new head learns alone."""
        return self._length(self.recipe.warm_up, task)

    def both(self, task: int) -> Length:
        """Return how long a task is learned for in all, its warm-up included."""
        return Length(self.whole(task).steps + self.warm_up(task).steps, self.whole(task).epoch_steps)

    def _length(self, share: float, task: int) -> Length:
        stream = self.images(task)
        return length(self.config, share, (stream.length, stream.batch_size))

    def fit(
        self,
        name: str,
        extent: Length,
        new: Sequence[int],
        after: str | None,
        tuning: FineTuning = EVERYTHING,
        recorded: str = "",
        compared: str = "",
    ) -> TrainStage:
        """Return the stage that goes on from stage ``after`` with the images of the ``new`` tasks.

        Where answers are ``recorded`` of an earlier stage's network, those for all tasks before are kept.
        """
        recipe = self.recipe
        kept = range(new[0]) if recorded else ()
        views = recipe.cached_views if recipe.teacher_logits == "views" else None
        return TrainStage(
            name=name,
            model=self.config.model,
            steps=extent.steps,
            epoch_steps=extent.epoch_steps,
            images_per_step=self.every.batch_size,
            streams=lambda selections: [self.images(*new)],
            module=lambda network, *taught: LwF(network, new, kept, recipe.temperature, recipe.old_weight),
            control=bool(compared),
            starts_from=after,
            tuning=tuning,
            teaching=TeacherSpec("labelled", recorded, views) if recorded else None,
            told=TOLD.get(compared, ""),
        )

    def lwf(self) -> list[TrainStage]:
        """Return the method's own stages: each new head is warmed up, then everything learns."""
        plan = [self.fit(self.first, self.whole(0), [0], None)] if self.first else []
        for task in range(1, len(self.tasks)):
            warm, before = f"warm-up-{task + 1}", plan[-1].name if plan else None
            plan.append(self.fit(warm, self.warm_up(task), [task], before, HEAD_ALONE))
            # the warm-up left everything that old answers come from as it was
            plan.append(self.fit(f"lwf-{task + 1}", self.whole(task), [task], warm, recorded=warm))
        return plan

    def compared(self, method: str) -> list[TrainStage]:
        """Return the stages of what it is compared with, for as many steps a task as ``lwf`` takes."""
        plan: list[TrainStage] = []
        for task in range(1, len(self.tasks)):
            name, before = f"{method}-{task + 1}", plan[-1].name if plan else self.first
            if method == "joint":
                plan.append(self.fit(name, self.both(task), range(task + 1), before, compared=method))
            elif method == "feature_extraction":
                plan.append(self.fit(name, self.both(task), [task], before, HEAD_ALONE, compared=method))
            else:
                warm = f"warm-up-{task + 1}"  # of the second task it is the method's own
                if task > 1:
                    warm = f"{method}-{warm}"
                    plan.append(self.fit(warm, self.warm_up(task), [task], before, HEAD_ALONE, compared=method))
                plan.append(self.fit(name, self.whole(task), [task], warm, compared=method))
        return plan


def stages(config: Config, source: Source, splits: Splits) -> Sequence[Stage]:
    """Return the first task, each further one (warm-up, then section 3 of the paper), then the comparisons.

    Without ``tasks`` the first one is what the network of ``init_from`` knows; joint training would need its images.

    Raises:
        UserError: the tasks are not the data's.
    """
    recipe = config.strategy
    assert isinstance(recipe, LwFConfig)  # noqa: S101 - the strategy was chosen by this type
    present = set(source.labels[splits.labelled].tolist())
    for number, task in enumerate(recipe.tasks, start=1):
        if wrong := [c for c in task if c >= len(source.classes)]:
            raise UserError(
                f"strategy.tasks: task {number} names class {wrong[0]}; "
                f"this data has {len(source.classes)}, numbered from 0 to {len(source.classes) - 1}"
            )
        if not present & set(task):
            raise UserError(f"strategy.tasks: task {number} has no labelled image; give it other classes")
        if len(splits.validation) and not set(source.labels[splits.validation].tolist()) & set(task):
            raise UserError(f"strategy.tasks: task {number} has no validation image; use data.validation=none")
    plan = _Plan(config, recipe, source, splits)
    methods = [method for method in recipe.compare if recipe.tasks or method != "joint"]
    return [*plan.lwf(), *(stage for method in methods for stage in plan.compared(method))]
