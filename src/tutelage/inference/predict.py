"""Labels for pictures: batches through a classifier, as rows on standard output or in a file."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from tutelage.data import DataRuntime
from tutelage.data.files.decoding import UnreadableImageError
from tutelage.data.loading.batches import channels_first
from tutelage.data.loading.workers import worker_deaths
from tutelage.data.modules import count_workers, make_loader
from tutelage.errors import UserError
from tutelage.inference.classifier import Classifier
from tutelage.inference.inputs import Inputs
from tutelage.inference.loading import LoadedNetwork
from tutelage.inference.parts import Parts, hold_parts
from tutelage.inference.rows import REASON, Columns, make_rows, write_csv
from tutelage.models import weight_hash
from tutelage.runs.observer import Observer, Part, Work
from tutelage.storage import digest

BATCHES_A_PART = 16  # 4,096 rows of a small network
IMAGES_A_SECOND = 500  # a first guess, for the time that is left


class PictureBatch(NamedTuple):
    """Images (B, C, S, S) uint8, and why each cannot be read, (B,); empty if it can. Its image is black then."""

    images: torch.Tensor
    reasons: list[str]


class PictureBatches(Dataset[PictureBatch]):
    """Pictures in their order; an item is a whole batch."""

    def __init__(self, inputs: Inputs, shape: tuple[int, int, int], batch_size: int) -> None:
        """Take pictures, the shape (S, S, C) of each, and how many are a batch."""
        self._images, self._indices, self._shape, self._batch_size = inputs.images, inputs.indices, shape, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self._indices) / self._batch_size)

    def __getitem__(self, batch: int) -> PictureBatch:
        first = batch * self._batch_size
        indices = self._indices[first : first + self._batch_size]
        images, reasons = np.zeros((len(indices), *self._shape), dtype=np.uint8), [""] * len(indices)
        for row, index in enumerate(indices):
            try:
                images[row] = self._images[int(index)]
            except UnreadableImageError as error:
                reasons[row] = error.reason
        return PictureBatch(channels_first(images), reasons)


class Labeller:
    """A classifier over some pictures.

    Attributes:
        inputs: the pictures.
        batch_count: batches of all pictures.
        batch_size: pictures in a batch; the last one may have fewer.
        unreadable: pictures so far that could not be read.
    """

    def __init__(self, classifier: Classifier, inputs: Inputs, columns: Columns, runtime: DataRuntime) -> None:
        """Take the pictures, the columns of their rows, and what the loader runs on.

        Raises:
            UserError: ``columns`` asks for more classes than there are.
        """
        classes = len(classifier.classes)
        if columns.top > classes:
            raise UserError(f"--top {columns.top}: there are {classes} classes; name a number from 1 to {classes}")
        self.inputs, self._classifier, self._columns, self._runtime = inputs, classifier, columns, runtime
        self.batch_size, data = classifier.batch_size, classifier.data
        shape = (data.image_size, data.image_size, data.channels)
        self._batches = PictureBatches(inputs, shape, self.batch_size)
        self.batch_count, self.unreadable = len(self._batches), 0

    def make_tables(self, numbers: Sequence[int]) -> Iterator[pa.Table]:
        """Yield the rows of some batches, in the order of their numbers.

        Raises:
            UserError: a network's answers are not finite.
        """
        classifier, inputs, columns = self._classifier, self.inputs, self._columns
        workers = min(count_workers(classifier.data, inputs.images, self._runtime), len(numbers))
        loader = make_loader(self._batches, workers, self._runtime, sampler=numbers)
        with worker_deaths():
            for number, batch in zip(numbers, loader, strict=True):
                probabilities, features = classifier.compute(batch.images, columns.views, columns.embed)
                first = number * self.batch_size
                indices = inputs.indices[first : first + self.batch_size]
                names = [inputs.names[int(index)] for index in indices]
                self.unreadable += sum(map(bool, batch.reasons))
                yield make_rows(
                    names,
                    batch.reasons,
                    probabilities.numpy(),
                    classifier.classes,
                    columns,
                    None if features is None else features.numpy(),
                )

    def describe(self) -> dict[str, Any]:
        """Return what the rows depend on, by the names that messages call it by."""
        classifier = self._classifier
        return {
            "pictures": [len(self.inputs), self.inputs.digest],
            "networks": [_identify_network(member) for member in classifier.members],
            "classes": list(classifier.classes),
            "reading of pictures": [*map(str, classifier.members[0].form), classifier.data.max_pixels],
            "options": asdict(self._columns),
            "device": classifier.device.type,
            "precision": str(classifier.precision),
            "batch size": self.batch_size,
        }


def predict_to_stream(labeller: Labeller, out: TextIO, observer: Observer) -> None:
    """Write rows as CSV, batch by batch."""
    _begin(observer, labeller)
    numbers = range(labeller.batch_count)
    write_csv(_report(labeller.make_tables(numbers), numbers, labeller, observer), out)


def predict_to_file(labeller: Labeller, out: Path, observer: Observer) -> bool:
    """Write rows to a file; a command that was stopped goes on where its parts end.

    Returns:
        False if an earlier command had finished the file, and only its parts were left.

    Raises:
        UserError: another process writes the file, or its parts are of other pictures or options.
    """
    with hold_parts(out):
        size = BATCHES_A_PART
        parts = Parts(out, math.ceil(labeller.batch_count / size), labeller.describe())
        if parts.is_finished:
            parts.finish()
            return False
        numbers = [n for part in parts.missing for n in range(part * size, (part + 1) * size)]
        numbers = [number for number in numbers if number < labeller.batch_count]
        _begin(observer, labeller)
        tables: list[pa.Table] = []
        for number, table in zip(
            numbers, _report(labeller.make_tables(numbers), numbers, labeller, observer), strict=True
        ):
            tables.append(table)
            if (number + 1) % size == 0 or number + 1 == labeller.batch_count:
                parts.write(number // size, pa.concat_tables(tables))
                tables = []
        labeller.unreadable = sum(len(table) - table[REASON].null_count for table in parts.read())
        parts.finish()
        return True


def _identify_network(member: LoadedNetwork) -> str:
    """Return a digest of what decides a network's answers; weights alone know neither k nor the normalisation."""
    network = member.network
    return digest([weight_hash(network), network.model_config, network.spec.to_dict(), member.columns])


def _begin(observer: Observer, labeller: Labeller) -> None:
    seconds = labeller.batch_count * labeller.batch_size / IMAGES_A_SECOND
    observer.begin([Part("label pictures", [Work(("predict",), seconds)])])
    observer.part(1)


def _report(
    tables: Iterable[pa.Table], numbers: Sequence[int], labeller: Labeller, observer: Observer
) -> Iterator[pa.Table]:
    """Yield tables, and tell the observer after each how much of all is done."""
    before = labeller.batch_count - len(numbers)
    for done, table in enumerate(tables, before + 1):
        images = min(done * labeller.batch_size, len(labeller.inputs))
        observer.progress(images / len(labeller.inputs), {"images": f"{images:,}/{len(labeller.inputs):,}"})
        yield table
