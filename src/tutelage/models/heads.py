"""Several heads on one backbone, one a task: each tells its own classes apart and knows nothing of the others'."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from tutelage.errors import UserError
from tutelage.models.base import ImageClassifier, ImageSpec

UNLEARNED = -1e4  # the logit of a class that no head has learned: no probability, and finite as float16 too


class Heads(nn.Module):
    """A linear layer for each task; their logits stand at the columns of the tasks' classes.

    Args:
        inputs: D, numbers of a feature vector.
        tasks: the numbers of each task's classes; no class stands in two.
        classes: C, all classes, of which some may be in no task.
    """

    learned: Tensor

    def __init__(self, inputs: int, tasks: Sequence[Sequence[int]], classes: int) -> None:
        super().__init__()
        self.tasks = [list(task) for task in tasks]
        self.each = nn.ModuleList(nn.Linear(inputs, len(task)) for task in tasks)
        self.register_buffer("learned", torch.zeros(len(tasks), dtype=torch.bool))
        in_turn = [c for task in tasks for c in task]
        columns = [in_turn.index(c) if c in in_turn else 0 for c in range(classes)]
        task_of = [next((t for t, task in enumerate(tasks) if c in task), len(tasks)) for c in range(classes)]
        # No buffers: averaged weights average these too, and an index has no mean.
        self.columns = torch.tensor(columns)  # (C,) within the heads' in turn
        self.task_of = torch.tensor(task_of)  # (C,), beyond the last: of no task

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.columns, self.task_of = fn(self.columns), fn(self.task_of)
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, C) of features (B, D)."""
        return self._in_order([head(features) for head in self.each], UNLEARNED)

    def learn(self, new: Sequence[int], kept: Sequence[int] = ()) -> None:
        """Let the heads of some tasks learn and all others stand still; ``new`` ones count as learned from now on."""
        self.learned[list(new)] = True
        for task, head in enumerate(self.each):
            head.requires_grad_(task in {*new, *kept})

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return log-probabilities (B, C), each class's among those of its own task, of logits (B, C).

        Classes that no head has learned are at ``UNLEARNED``.
        """
        return self._in_order([functional.log_softmax(logits[:, task], dim=1) for task in self.tasks], UNLEARNED)

    def of_own_task(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Return logits (B, C) where those outside the task that each of ``classes`` (B,) is of are minus infinity."""
        return logits.masked_fill(self.task_of[classes][:, None] != self.task_of, -torch.inf)

    def _in_order(self, of_tasks: Sequence[Tensor], otherwise: float) -> Tensor:
        """Return what heads gave (B, classes of the task) each as (B, C), in the order of the classes."""
        known = functional.pad(self.learned, (0, 1))[self.task_of]
        return torch.where(known, torch.cat(list(of_tasks), dim=1)[:, self.columns], otherwise)


def grown(spec: ImageSpec, old: ImageSpec) -> ImageSpec:
    """Return what a network sees and tells apart that knew ``old`` classes and is to learn those of ``spec`` too.

    The old ones are its first task. Their columns come last, so that the new images' labels are columns as they are.

    Raises:
        UserError: images are not what the old network sees.
    """
    for name in ("channels", "image_size"):
        if getattr(spec, name) != getattr(old, name):
            raise UserError(f"data.{name}={getattr(spec, name)}: the network of init_from sees {getattr(old, name)}")
    new = len(spec.classes)
    tasks = (tuple(range(new, new + len(old.classes))), tuple(range(new)))
    return replace(old, classes=(*spec.classes, *old.classes), tasks=tasks)


def load_first_task(network: ImageClassifier, old: ImageClassifier) -> str:
    """Let a network whose spec has ``grown`` begin as the old one, and return what was done, as a sentence.

    Args:
        network: on the meta device the fit is checked and nothing copied.
        old: its head becomes that of the first task.

    Raises:
        UserError: the networks differ, or the old one has tasks of its own.
    """
    heads, own, theirs = network.head, network.backbone.state_dict(), old.backbone.state_dict()
    if not isinstance(heads, Heads) or not isinstance(old.head, nn.Linear):
        raise UserError("init_from: the old network has several heads; give all tasks in one run by strategy.tasks")
    if [(n, t.shape) for n, t in own.items()] != [(n, t.shape) for n, t in theirs.items()]:
        raise UserError("init_from: the old network is another one; model and its keys are to be the old run's")
    if not any(tensor.is_meta for tensor in network.parameters()):
        network.backbone.load_state_dict(theirs)
        heads.each[0].load_state_dict(old.head.state_dict())
        heads.learn([0])
    return f"init_from: the old network's {len(old.spec.classes)} classes are task 1, the data's are task 2"
