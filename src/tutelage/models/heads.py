"""Several heads on one backbone, one for each task; a head classifies among its own task's classes alone."""

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
    """A linear layer for each task; its logits are written to the columns of the task's classes.

    Args:
        inputs: D, features of an image.
        tasks: the class indices of each task; no class is in two tasks.
        classes: C, number of all classes, of which some may be in no task.
    """

    learned: Tensor

    def __init__(self, inputs: int, tasks: Sequence[Sequence[int]], classes: int) -> None:
        super().__init__()
        self.tasks = [list(task) for task in tasks]
        self.each = nn.ModuleList(nn.Linear(inputs, len(task)) for task in tasks)
        self.register_buffer("learned", torch.zeros(len(tasks), dtype=torch.bool))
        head_outputs = [c for task in tasks for c in task]
        columns = [head_outputs.index(c) if c in head_outputs else 0 for c in range(classes)]
        task_of_class = [next((t for t, task in enumerate(tasks) if c in task), len(tasks)) for c in range(classes)]
        # No buffers: weight averaging averages buffers too, and the mean of indices has no meaning.
        self.columns = torch.tensor(columns)  # (C,) column of each class in the heads' concatenated outputs
        self.task_of_class = torch.tensor(task_of_class)  # (C,), the number of tasks for a class of no task

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.columns, self.task_of_class = fn(self.columns), fn(self.task_of_class)
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, C) of features (B, D); those of classes that no head has learned are ``UNLEARNED``."""
        return self._arrange_by_class([head(features) for head in self.each])

    def train_tasks(self, new: Sequence[int], old: Sequence[int] = ()) -> None:
        """Train the heads of the ``new`` and ``old`` tasks and freeze all others; ``new`` tasks count as learned."""
        self.learned[list(new)] = True
        for task, head in enumerate(self.each):
            head.requires_grad_(task in {*new, *old})

    def learned_classes(self) -> list[int]:
        """Return the class indices of the tasks that have been learned."""
        return [c for task, learned in zip(self.tasks, self.learned.tolist(), strict=True) if learned for c in task]

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return log-probabilities (B, C) of logits (B, C), where the softmax is taken within each task.

        Those of classes that no head has learned are ``UNLEARNED``.
        """
        return self._arrange_by_class([functional.log_softmax(logits[:, task], dim=1) for task in self.tasks])

    def smooth(self, probabilities: Tensor, label_smoothing: float) -> Tensor:
        """Return probabilities (B, C) of which a part is spread evenly over the classes of each class's own task."""
        even = torch.zeros_like(probabilities)
        for task in self.tasks:
            even[:, task] = probabilities[:, task].mean(dim=1, keepdim=True)
        return (1 - label_smoothing) * probabilities + label_smoothing * even

    def mask_other_tasks(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return logits (B, C) with minus infinity at the classes outside the task of each of ``labels`` (B,)."""
        return logits.masked_fill(self.task_of_class[labels][:, None] != self.task_of_class, -torch.inf)

    def _arrange_by_class(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the outputs of each head (B, classes of the task) as one tensor (B, C) in the order of the classes."""
        learned = functional.pad(self.learned, (0, 1))[self.task_of_class]
        return torch.where(learned, torch.cat(list(outputs), dim=1)[:, self.columns], UNLEARNED)


def task_heads(network: ImageClassifier) -> Heads:
    """Return the head of a network with a head for each task.

    Raises:
        TypeError: the network has one head.
    """
    if not isinstance(network.head, Heads):
        raise TypeError(f"{type(network).__name__}: the network has one head, not one for each task")
    return network.head


def check_images(spec: ImageSpec, old: ImageSpec) -> None:
    """Raise a UserError if images differ in channels or size from those that an old network sees."""
    for name in ("channels", "image_size"):
        if getattr(spec, name) != getattr(old, name):
            raise UserError(f"data.{name}={getattr(spec, name)}: the network of init_from sees {getattr(old, name)}")


def copy_backbone(network: ImageClassifier, old: ImageClassifier) -> bool:
    """Copy the backbone of an old network; return False for a network on the meta device, of which the fit is checked.

    Raises:
        UserError: the networks differ.
    """
    new_state, old_state = network.backbone.state_dict(), old.backbone.state_dict()
    if [(n, t.shape) for n, t in new_state.items()] != [(n, t.shape) for n, t in old_state.items()]:
        raise UserError("init_from: the old network is another one; model and its keys are to be the old run's")
    if any(tensor.is_meta for tensor in network.parameters()):
        return False
    network.backbone.load_state_dict(old_state)
    return True


def with_added_task(spec: ImageSpec, old: ImageSpec) -> ImageSpec:
    """Return the spec of a network that was trained on the ``old`` classes and is to learn those of ``spec`` too.

    The old classes are its first task. Their columns come last, so that the labels of the new images are right as
    column numbers without a change.

    Raises:
        UserError: the new images differ from the old network's in channels or size, or classes were added to it singly.
    """
    check_images(spec, old)
    if old.added:
        raise UserError(
            f"init_from: class {old.classes[0]!r} was added to the old network alone, and no task can come after that; "
            "add the next class alone too, or begin from the run before"
        )
    new = len(spec.classes)
    tasks = (tuple(range(new, new + len(old.classes))), tuple(range(new)))
    return replace(old, classes=(*spec.classes, *old.classes), tasks=tasks)


def load_first_task(network: ImageClassifier, old: ImageClassifier) -> str:
    """Copy the old network's weights into a network whose spec is ``with_added_task``; return a sentence on it.

    Args:
        network: its backbone and first head get the weights; on the meta device only the fit is checked.
        old: its head becomes that of the first task.

    Raises:
        UserError: the networks differ, or the old one has tasks of its own.
    """
    heads = network.head
    if not isinstance(heads, Heads) or not isinstance(old.head, nn.Linear):
        raise UserError("init_from: the old network has several heads; give all tasks in one run by strategy.tasks")
    if copy_backbone(network, old):
        heads.each[0].load_state_dict(old.head.state_dict())
        heads.train_tasks([0])
    return f"init_from: the old network's {len(old.spec.classes)} classes are task 1, the data's are task 2"
