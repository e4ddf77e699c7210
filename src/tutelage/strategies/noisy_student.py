"""Noisy-student self-training (Xie et al. 2020, "Self-training with Noisy Student improves ImageNet classification").

The paper's algorithm 1: train a teacher on the labelled images; let it label the pool without noise; train a student,
as large or larger, with noise, on both; make the student the teacher and go on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from tutelage.config import Config, NoisyStudentConfig, Targeted
from tutelage.data import Plain, Selection, Shown, Source, Splits, Stream
from tutelage.errors import UserError
from tutelage.models import ImageClassifier, accuracy, cross_entropy
from tutelage.strategies.stages import Fit, Label, Length, Stage, labelled_stream, length, pool_batch, supervised_on


class NoisyStudent(pl.LightningModule):
    """A student that learns from labelled images and from a teacher's stored labels of the pool.

    Labelled and pool images, each batch of its own size, go through one concatenated forward, so that batch
    normalisation sees them together; the loss is the sum of both mean cross-entropies.
    """

    def __init__(self, student: ImageClassifier) -> None:
        super().__init__()
        self.student = student

    @property
    def classifier(self) -> ImageClassifier:
        """The student."""
        return self.student

    def training_step(self, batch: dict[str, Shown], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss, its parts, and how right the answers are.

        ``agreement`` is what the stored labels weigh on the student's answers to the pool (see ``accuracy``): the share
        that is answered as the teacher did where labels are hard, how sure the teacher was of it where they are soft.
        """
        labelled, pool = batch["labelled"], batch["pool"]
        logits = self.student(torch.cat([labelled.images, pool.images]))
        on_labelled, on_pool = logits.split([len(labelled.images), len(pool.images)])
        loss_labelled = cross_entropy(on_labelled, labelled.targets, self.student.class_weights)
        loss_pool = cross_entropy(on_pool, pool.targets)
        return {
            "loss": loss_labelled + loss_pool,
            "loss_labelled": loss_labelled.detach(),
            "loss_pool": loss_pool.detach(),
            "accuracy": accuracy(on_labelled.detach(), labelled.targets),
            "agreement": accuracy(on_pool.detach(), pool.targets),
        }

    def validation_step(self, batch: Plain, batch_idx: int) -> dict[str, Tensor]:
        """Return the student's logits (B, C) and the labels (B,)."""
        return self.student.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the student's optimizer."""
        return self.student.configure_optimizers()


def select(probabilities: np.ndarray, config: NoisyStudentConfig) -> Selection:
    """Return the pool images to train on (section 2 and appendix A of the paper).

    Answers below ``confidence`` are dropped. With ``balance`` each class that was answered gets the same number, the
    mean over all classes: its most confident images, or all of them with duplicates where there are fewer.
    """
    count, classes = probabilities.shape
    answer, certainty = probabilities.argmax(axis=1), probabilities.max(axis=1)
    kept = np.flatnonzero(certainty >= config.confidence)
    entries, copies = kept, np.zeros(len(kept), dtype=np.int64)
    if config.balance and len(kept):
        each = max(1, round(len(kept) / classes))
        chosen = []
        for c in range(classes):
            members = kept[answer[kept] == c]
            if len(members):
                by_certainty = members[np.argsort(-certainty[members], kind="stable")]
                chosen.append(np.resize(by_certainty, each))  # repeats from the most certain on, or cuts
        entries = np.concatenate(chosen)
        copies = _occurrence(entries, count)
    targets = probabilities[entries]
    if not config.soft_labels:
        targets = np.eye(classes, dtype=np.float32)[answer[entries]]
    return Selection(entries.astype(np.int64), copies, targets.astype(np.float32))


def _occurrence(entries: np.ndarray, count: int) -> np.ndarray:
    """Return for each place how often its entry stood before it."""
    seen = np.zeros(count, dtype=np.int64)
    copies = np.empty(len(entries), dtype=np.int64)
    for place, entry in enumerate(entries):
        copies[place] = seen[entry]
        seen[entry] += 1
    return copies


def stages(config: Config, source: Source, splits: Splits) -> Sequence[Stage]:
    """Return teacher, then labels and student in turn, then the control.

    The control is plain supervised training on the same labels with the last student's architecture, augmentation and
    noise, for as many steps as all the other stages together: what it lacks against the last student is the method.

    Raises:
        UserError: there is no pool.
    """
    recipe = config.strategy
    assert isinstance(recipe, NoisyStudentConfig)  # noqa: S101 - the strategy was chosen by this type
    labelled = labelled_stream(config, source, splits)
    of_pool = pool_batch(config, splits, recipe.unlabelled_ratio)
    labelled_size, pool_size = (labelled.length, labelled.batch_size), (len(splits.pool), of_pool)

    def on_both(name: str, model: Targeted, extent: Length, labels: str, teacher: str) -> Fit:
        def streams(selections: Mapping[str, Selection]) -> Sequence[Stream]:
            chosen = selections[labels]
            if not len(chosen.entries):
                raise UserError(f"strategy.confidence={recipe.confidence}: no pool image reaches it; set it lower")
            return [labelled, Stream("pool", splits.pool[chosen.entries], chosen.targets, of_pool, chosen.copies)]

        return Fit(
            name=name,
            model=model,
            steps=extent.steps,
            epoch_steps=extent.epoch_steps,
            images_per_step=labelled.batch_size + of_pool,
            streams=streams,
            module=NoisyStudent,
            grows_from=teacher,
        )

    extent = length(config, recipe.teacher_length, labelled_size)
    fits = [supervised_on("teacher", config.model, extent, labelled)]
    plan: list[Stage] = [*fits]
    for number, student in enumerate(recipe.students, start=1):
        labels = Label(f"labels-{number}", fits[-1].name, partial(select, config=recipe))
        extent = length(config, student.length, labelled_size, pool_size)
        fits.append(on_both(f"student-{number}", config.grown(student), extent, labels.name, labels.teacher))
        plan += [labels, fits[-1]]
    if recipe.control:
        steps = sum(fit.steps for fit in fits)
        control = supervised_on("control", fits[-1].model, Length(steps, fits[-1].epoch_steps), labelled)
        plan.append(replace(control, control=True))
    return plan
