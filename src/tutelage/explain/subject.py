"""What a page explains: a run's network, some pictures, and the run's own data where it still is what it was."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.data import UNKNOWN, DataRuntime, ImageDataModule, data_module
from tutelage.data.datasets.download import OnProgress
from tutelage.data.files.decoding import UnreadableImageError
from tutelage.data.loading.batches import channels_first
from tutelage.errors import UserError
from tutelage.inference.classifier import Classifier, load_networks, set_up_inference
from tutelage.inference.inputs import find_inputs
from tutelage.inference.loading import LoadedNetwork, find_tasks
from tutelage.models import ImageClassifier
from tutelage.report.pictures import shorten_path
from tutelage.runs import RunFolder, main_stage_name, open_finished_run
from tutelage.runs.folder import stage_folders
from tutelage.runs.network_size import measure_network
from tutelage.runs.predictions import read_predictions
from tutelage.runs.weight_sources import find_run_data
from tutelage.storage import digest

MAX_PICTURES = 12
OWN_PICTURES = 4  # of the test set, where none are named
DIGEST_LENGTH, MAX_NAME_LENGTH = 8, 40


@dataclass(frozen=True)
class Picture:
    """A picture that is explained.

    Attributes:
        name: of its file, or its number in the data.
        pixels: (S, S, C) uint8, as the network sees it.
        label: its class, as an index into ``Subject.classes``; None where it is not known.
    """

    name: str
    pixels: np.ndarray
    label: int | None


@dataclass(frozen=True)
class Subject:
    """A network and what it is explained on.

    Attributes:
        folder: of the run.
        record: its ledger.
        stage: whose network it is.
        classifier: the network, ready to be used.
        data: the run's own; None where it is gone or has changed.
        pictures: at least one.
        name: of the page's folder.
        notes: what is to be known about all that.
    """

    folder: RunFolder
    record: Mapping[str, Any]
    stage: str
    classifier: Classifier
    data: ImageDataModule | None
    pictures: Sequence[Picture]
    name: str
    notes: Sequence[str]

    @property
    def member(self) -> LoadedNetwork:
        """The network and how it sees pictures."""
        return self.classifier.members[0]

    @property
    def entry(self) -> Mapping[str, Any]:
        """The stage's entry in the ledger."""
        entry: Mapping[str, Any] = next(each for each in self.record["stages"] if each["name"] == self.stage)
        return entry

    @property
    def network(self) -> ImageClassifier:
        """The network, in eval mode."""
        return self.member.network

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that it tells apart."""
        return self.classifier.classes

    @property
    def columns(self) -> list[int]:
        """The column of each class in the network's logits."""
        return list(range(len(self.classes)) if self.member.columns is None else self.member.columns)

    @cached_property
    def images(self) -> Tensor:
        """The pictures (B, C, S, S) uint8."""
        return channels_first(np.stack([picture.pixels for picture in self.pictures]))

    @cached_property
    def logits(self) -> Tensor:
        """Logits (B, C) float32 of the pictures, on the CPU."""
        with torch.inference_mode():
            logits: Tensor = self.network(self.images.to(self.classifier.device))
        return logits.float().cpu()[:, self.columns]

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Probabilities (B, C) of the pictures."""
        probabilities: np.ndarray = self.logits.softmax(dim=1).numpy()
        return probabilities

    @cached_property
    def predicted(self) -> np.ndarray:
        """The class (B,) of the largest probability of each picture."""
        predicted: np.ndarray = self.probabilities.argmax(axis=1)
        return predicted

    @cached_property
    def multiply_adds(self) -> float:
        """Multiply-adds of a forward pass of one picture; at least one for each pixel."""
        spec = self.network.spec
        flops = measure_network(self.network.model_config, spec).forward.flops
        return max(flops / 2, spec.channels * spec.image_size**2)


def load_subject(
    run: str, paths: Sequence[str], stage: str | None, task: int | None, on_progress: OnProgress
) -> Subject:
    """Return what a page is to explain.

    Args:
        run: a finished run's folder.
        paths: pictures, as ``predict`` takes them; none for some of the run's test set.
        stage: whose network is meant; None for the last one.
        task: of a network with several the one that is meant, from 1; None for the last one.
        on_progress: is called during long reads.

    Raises:
        UserError: there is no such run, stage or picture.
    """
    folder, record = open_finished_run(run)
    notes: list[str] = []
    words = ["explain", *([] if stage is None else [stage]), *([] if task is None else [f"task-{task}"])]
    tasks = len(find_tasks(run, stage))
    if task is None and tasks > 1:
        task = tasks
        notes.append(f"The network has {tasks} tasks, and the last one is shown; --task N shows another.")
    classifier = load_networks([run], stage, task)
    set_up_inference(classifier)
    stage_name = main_stage_name(record) if stage is None else stage
    data, reason = _find_data(run, classifier, on_progress)
    if paths:
        inputs = find_inputs(paths, classifier.data, on_progress)
        pictures, problems = _read_pictures(inputs.images, inputs.names)
        notes += [*inputs.notes, *problems]
        if not pictures:
            raise UserError(f"explain: none of the {len(inputs):,} pictures can be read: {problems[0]}")
        first = re.sub(r"[^\w.-]+", "-", Path(paths[0]).expanduser().resolve().name)[:MAX_NAME_LENGTH]
        words.append(f"{first}-{digest([inputs.digest])[:DIGEST_LENGTH]}")
    elif data is None:
        raise UserError(f"explain: {run}: {reason}; name pictures: tutelage explain {run} PICTURES...")
    else:
        pictures = _choose_pictures(folder, record, stage_name, classifier, data)
    if data is None:
        notes.append(f"The run's own data is left out: {reason}.")
    return Subject(folder, record, stage_name, classifier, data, pictures, "-".join(words), notes)


def _find_data(run: str, classifier: Classifier, on_progress: OnProgress) -> tuple[ImageDataModule | None, str]:
    """Return the run's data at the size that the network sees; None and the reason where it is not there."""
    config, reason = find_run_data(run)
    if config is None:
        return None, reason
    data = data_module(config, DataRuntime(device=classifier.device, on_progress=on_progress))
    size = classifier.data.image_size
    return (data if size == config.image_size else data.at_image_size(size)), ""


def _read_pictures(images: Any, names: Sequence[str]) -> tuple[list[Picture], list[str]]:
    """Return the first pictures that can be read, and a line on each that cannot and on how many are left out."""
    pictures, problems = list[Picture](), list[str]()
    for number, name in enumerate(names):
        if len(pictures) == MAX_PICTURES:
            problems.append(f"{len(names) - number:,} further pictures are left out: {MAX_PICTURES} are shown.")
            break
        try:
            pictures.append(Picture(name, np.asarray(images[number]), None))
        except UnreadableImageError as error:
            problems.append(f"{name}: cannot be read: {error.reason}.")
    return pictures, problems


def _choose_pictures(
    folder: RunFolder, record: Mapping[str, Any], stage: str, classifier: Classifier, data: ImageDataModule
) -> list[Picture]:
    """Return pictures of the test set: the surest right answer, then the surest wrong ones, each of another class.

    Of a run that was not tested they are of the validation set, or else of the labelled images.
    """
    indices, truths, probabilities = _answers(folder, record, stage, classifier, data)
    is_right = probabilities.argmax(axis=1) == truths
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    right, wrong = order[is_right[order]], order[~is_right[order]]
    chosen = list(right[:1])
    for position in (*wrong, *right[1:]):
        if len(chosen) < OWN_PICTURES and truths[position] not in truths[chosen]:
            chosen.append(position)
    pictures = []
    for position in chosen:
        index = int(indices[position])
        name = shorten_path(data.source.names[index]) if data.source.has_file_names else f"image {index}"
        pictures.append(Picture(name, np.asarray(data.images[index]), int(truths[position])))
    return pictures


def _answers(
    folder: RunFolder, record: Mapping[str, Any], stage: str, classifier: Classifier, data: ImageDataModule
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the indices, the classes and the probabilities of images that pictures are chosen from."""
    file, member = stage_folders(folder, record)[stage].test_file, classifier.members[0]
    columns = np.arange(len(classifier.classes)) if member.columns is None else np.array(member.columns)
    if file.is_file():
        predictions = read_predictions(file)
        indices, labels, probabilities = predictions.indices, predictions.labels, predictions.probabilities
    else:
        indices = data.splits.validation if len(data.splits.validation) else data.splits.labelled
        labels = data.source.labels[indices]
        batches = data.eval_dataloader(indices, classifier.batch_size)
        probabilities = np.zeros((len(indices), len(member.network.spec.classes)), np.float32)
        probabilities[:, columns] = torch.cat([classifier.compute_probabilities(each.images) for each in batches])
    position_of = {int(column): position for position, column in enumerate(columns)}
    is_ours = np.array([int(label) in position_of and label != UNKNOWN for label in labels], dtype=bool)
    truths = np.array([position_of[int(label)] for label in labels[is_ours]], dtype=np.int64)
    if not len(truths):
        raise UserError(f"explain: {folder.path}: no image of its classes to show; name pictures: explain RUN PICTURES")
    return indices[is_ours], truths, probabilities[is_ours][:, columns]
