"""The export of a run's network: written, checked against the network, described by a card, whole or absent."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.data import data_module
from tutelage.errors import UserError
from tutelage.inference.classifier import Classifier, load_networks
from tutelage.inference.export.card import write_card
from tutelage.inference.export.formats import LOGITS, PROBABILITIES, Format, LoadedFiles
from tutelage.inference.export.graphs import Onnx, Pt2
from tutelage.inference.export.weights import Safetensors, TimmLayout
from tutelage.inference.loading import LoadedNetwork
from tutelage.models import Heads, ImageClassifier
from tutelage.runs.weight_sources import find_run_data
from tutelage.storage import write_folder

FORMATS: Mapping[str, Format] = {each.name: each for each in (Onnx(), Pt2(), Safetensors(), TimmLayout())}
CHECKED = 32  # pictures, at most
ABSENT = "nothing was written: take another format"
TOLERANCE = 1e-4  # of logits, times their largest magnitude where that is above 1


@dataclass(frozen=True)
class Exported:
    """An export that is written.

    Attributes:
        folder: of the files.
        files: their names.
        difference: the largest one between a logit of the files and one of the network.
        pictures: how many they were compared on.
        pictures_note: which pictures they are.
    """

    folder: Path
    files: tuple[str, ...]
    difference: float
    pictures: int
    pictures_note: str


def export_network(
    run: str, format_name: str, out: Path, stage: str | None = None, task: int | None = None
) -> Exported:
    """Write the network of a finished run to a new folder, in one of ``FORMATS``, with a model card.

    Args:
        run: its folder.
        format_name: a key of ``FORMATS``.
        out: the folder to make; it appears whole, or not at all.
        stage: the stage whose network is meant; None for the last one.
        task: of a network with several heads the one that is meant, from 1.

    Raises:
        UserError: there is no such network, the format has no place for it, the folder is taken, a package is missing,
            or the files give other logits than the network.
    """
    chosen = FORMATS[format_name]
    chosen.check_packages()
    classifier = load_networks([run], stage, task, device="cpu")
    member, _ = classifier.members[0], classifier.network  # the second refuses what cannot be taken away
    chosen.check_network(member.network)
    images, note = _read_pictures(run, classifier)
    difference = 0.0

    def write(folder: Path) -> None:
        nonlocal difference
        chosen.write(take_network(member), classifier.data.fit, folder)
        subject = f"{run}: --format {format_name}"
        difference = check_files(chosen.load(folder), classifier.network, member.classes, images, subject)
        checked = (
            f"{len(images)} pictures ({note}): its logits differ from the run's network's by {difference:.1e} at most"
        )
        write_card(folder, chosen, run, member, stage, checked)

    write_folder(out, write)
    return Exported(out, tuple(sorted(file.name for file in out.iterdir())), difference, len(images), note)


def take_network(member: LoadedNetwork) -> ImageClassifier:
    """Return a copy of a network; where it has several heads, with one linear head, for the classes of the task."""
    network = copy.deepcopy(member.network).cpu().eval().requires_grad_(False)
    if member.columns is not None and isinstance(network.head, Heads):
        network.head = _join_heads(network.head, torch.tensor(member.columns))
        network.spec = replace(network.spec, classes=member.classes, tasks=())
    return network


def _join_heads(heads: Heads, columns: Tensor) -> nn.Linear:
    """Return the linear layer that gives the logits of some columns, in their order."""
    layers = [layer for layer in heads.each if isinstance(layer, nn.Linear)]
    rows = heads.columns[columns]
    joined = nn.Linear(layers[0].in_features, len(columns)).requires_grad_(False)
    joined.weight.copy_(torch.cat([layer.weight for layer in layers])[rows])
    joined.bias.copy_(torch.cat([layer.bias for layer in layers])[rows])
    return joined


def check_files(
    loaded: LoadedFiles, network: nn.Module, classes: tuple[str, ...], images: np.ndarray, subject: str
) -> float:
    """Compare what exported files give with what a network gives; return the largest difference of logits.

    Args:
        loaded: what was read from the files.
        network: plain, on the CPU.
        classes: of the network, in the order of its logits.
        images: (N, C', S, S) uint8; all at once, and the first one alone.
        subject: what messages call the export.

    Raises:
        UserError: the names of the classes, logits, probabilities or predicted classes differ.
    """
    if loaded.classes != classes:
        raise UserError(f"{subject}: its classes are {list(loaded.classes)}, the network's {list(classes)}; {ABSENT}")
    largest = 0.0
    for batch in (images, images[:1]):
        with torch.inference_mode():
            reference = network(torch.from_numpy(batch)).float()
        logits, outputs = reference.numpy(), loaded.compute(batch)
        expected = {LOGITS: logits, PROBABILITIES: reference.softmax(dim=1).numpy()}
        for name, values in outputs.items():
            if values.shape != logits.shape:
                raise UserError(f"{subject}: its {name} are {values.shape}, the network's {logits.shape}; {ABSENT}")
            difference = float(np.abs(values - expected[name]).max())
            limit = TOLERANCE * max(1.0, float(np.abs(expected[name]).max()))
            if not difference <= limit:
                raise UserError(
                    f"{subject}: checked on {len(batch)} pictures, its {name} differ from the network's by "
                    f"{difference:.2e}, and {limit:.0e} is allowed; {ABSENT}"
                )
        others = int((outputs[LOGITS].argmax(axis=1) != logits.argmax(axis=1)).sum())
        if others:
            raise UserError(
                f"{subject}: {others} of {len(batch)} pictures have another class than by the network; {ABSENT}"
            )
        largest = max(largest, float(np.abs(outputs[LOGITS] - logits).max()))
    return largest


def _read_pictures(run: str, classifier: Classifier) -> tuple[np.ndarray, str]:
    """Return images (N, C', S, S) uint8 of the run's data, else random ones, and which they are."""
    if find_run_data(run)[0] is not None:
        data = data_module(classifier.data)
        try:
            splits = data.splits
            part, name = (splits.test, "of the test set") if len(splits.test) else (splits.labelled, "with labels")
            picked = part[np.linspace(0, len(part) - 1, min(CHECKED, len(part))).astype(int)]
            images = np.stack([data.images[index] for index in picked.tolist()])
            return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), name
        except UserError:  # its files have changed while they were read
            pass
    shape: tuple[int, ...] = (CHECKED, classifier.data.channels, *2 * (classifier.data.image_size,))
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return images, "random ones, as the run's data is not here"
