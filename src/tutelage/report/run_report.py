"""The report of a finished run: one page that holds its pictures, and the pictures beside it."""

import csv
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from tutelage.config import Config, NoisyStudentConfig
from tutelage.data import UNKNOWN, ImageDataModule, data_module
from tutelage.models import ImageClassifier, Perceptron, Predictions, compute_confusion_matrix, load_classifier
from tutelage.randomness import Key
from tutelage.report import page, pictures
from tutelage.report.curves import Curve, stored_curves
from tutelage.report.rounds import round_shown
from tutelage.runs import RunFolder, last_fit, read_record, stage_folders, stored_config, trained
from tutelage.terminal.table import header, notes, rows

ORIGINALS, VIEWS = 5, 7
SAMPLES = 24
COLUMNS = 8
CURVES = (
    "What is minimised (losses of several terms, such as a student's, do not compare with others), and the accuracy on "
    "labelled images as they are augmented; one line a stage, each from its own first step."
)


def write_report(folder: RunFolder, config: Config | None = None) -> None:
    """Write ``report/index.html`` and its PNG files for a finished run.

    Args:
        folder: the run's.
        config: the run's config, where it is at hand (data may lie elsewhere now); else the stored one.
    """
    record = read_record(folder)
    assert record is not None  # noqa: S101 - the caller has seen the record
    config = config or stored_config(folder)
    data = data_module(config.data)
    entries, places = record["stages"], stage_folders(folder, record)
    network = load_classifier(trained(folder, record)[last_fit(record)])
    shown = [_confusion(folder, record, places, network.spec.classes)]
    if any(entry.get("steps") for entry in entries):  # otherwise images were stored as they are
        shown = [_curves(folder, record, places), *shown, _views(folder, config, data, _noised(config, record))]
    shown += [_shift(folder, curve) for curve in stored_curves(folder)]
    shown += _templates(folder, network)
    shown += round_shown(folder, record, places, data)
    shown += _mistakes(folder, record, places, data, network.spec.classes)
    page.write(folder.report / "index.html", folder.path.name, folder.path.parent.name, _body(record, shown))


def _curves(folder: RunFolder, record: Mapping[str, Any], places: Mapping[str, RunFolder]) -> page.Picture:
    tables = {}
    for entry in record["stages"]:
        if entry["kind"] == "fit":
            with places[entry["name"]].metrics_file.open() as file:
                tables[entry["name"]] = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return page.picture(folder.report / "curves.png", pictures.learning_curves(tables), "Learning curves", CURVES)


def _confusion(
    folder: RunFolder, record: Mapping[str, Any], places: Mapping[str, RunFolder], classes: Sequence[str]
) -> page.Picture:
    name = last_fit(record)
    answers = _answers(places[name])
    matrix = compute_confusion_matrix(
        Predictions(answers["probabilities"].astype(np.float32), answers["labels"], answers["indices"])
    )
    told = f"{name} on the {len(answers['labels'])} test images; rows are true classes."
    return page.picture(
        folder.report / "confusion.png",
        pictures.confusion_matrix(matrix, classes),
        "Confusion matrix",
        told,
    )


def _noised(config: Config, record: Mapping[str, Any]) -> str:
    """Return the last stage that the run is after and that saw augmented images."""
    last = last_fit(record)
    if isinstance(config.strategy, NoisyStudentConfig) and config.strategy.finetune is not None:
        return next(str(entry.get("after", last)) for entry in record["stages"] if entry["name"] == last)
    return last


def _views(folder: RunFolder, config: Config, data: ImageDataModule, stage: str) -> page.Picture:
    from tutelage.augmentation import Pipeline

    view = Pipeline(config.augmentation.transforms, Key(config.seed, stage, "labelled"))
    images, titles = [], []
    for index in data.splits.labelled[:: max(1, len(data.splits.labelled) // ORIGINALS)][:ORIGINALS]:
        image = data.source.images[int(index)]
        images += [image, *(view(image, pass_, int(index)) for pass_ in range(VIEWS))]
        name = pictures.shortened(data.source.classes[data.source.labels[index]])
        titles += [f"{name}: original", *(f"pass {pass_}" for pass_ in range(VIEWS))]
    told = "Labelled images as they are, and as the last network saw them in its first passes."
    return page.picture(
        folder.report / "views.png", pictures.tiles(images, titles, VIEWS + 1), "What the network saw", told
    )


def _shift(folder: RunFolder, curve: Curve) -> page.Picture:
    told = f"The test images, {curve.told}; at 0 they are as they are."
    lines = {name: (curve.strengths, values) for name, values in curve.accuracy.items()}
    figure = pictures.shift_curves(curve.shift, lines)
    return page.picture(folder.report / f"shift_{curve.shift}.png", figure, f"Shift: {curve.shift}", told)


def _templates(folder: RunFolder, network: ImageClassifier) -> list[page.Picture]:
    """Return the pictures of a perceptron's weights; of other networks none."""
    if not isinstance(network, Perceptron) or not isinstance(network.head, nn.Linear):
        return []
    spec = network.spec
    weights = network.head.weight.detach().reshape(-1, spec.channels, spec.image_size, spec.image_size).mean(dim=1)
    figure = pictures.templates(weights.numpy(), spec.classes)
    return [page.picture(folder.report / page.TEMPLATES, figure, "Templates", page.TEMPLATES_TOLD)]


def _mistakes(
    folder: RunFolder,
    record: Mapping[str, Any],
    places: Mapping[str, RunFolder],
    data: ImageDataModule,
    classes: Sequence[str],
) -> list[page.Picture]:
    name, source = last_fit(record), data.source
    answers = _answers(places[name])
    given, sure = answers["probabilities"].argmax(axis=1), answers["probabilities"].max(axis=1).astype(float)
    wrong = np.flatnonzero((given != answers["labels"]) & (answers["labels"] != UNKNOWN))
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:SAMPLES]
    if not len(worst):
        return []
    names = [pictures.shortened(c) for c in classes]
    titles = [f"{names[given[i]]} {sure[i]:.0%}\ntruth: {names[answers['labels'][i]]}" for i in worst]
    images = [source.images[int(answers["indices"][i])] for i in worst]
    told = f"Test images that {name} got wrong, the most confident first ({len(wrong)} of {len(given)} are wrong)."
    return [
        page.picture(
            folder.report / "mistakes.png", pictures.tiles(images, titles, COLUMNS), "Most confident mistakes", told
        )
    ]


def _answers(place: RunFolder) -> dict[str, np.ndarray]:
    with np.load(place.test_file, allow_pickle=False) as stored:
        return dict(stored)


def _body(record: Mapping[str, Any], shown: Sequence[page.Picture]) -> str:
    best = last_fit(record)
    measured = "".join(
        f"<tr><td>{html.escape(name)}</td><td></td><td>{value:.4f}</td></tr>"
        for name, value in record["result"].items()
    )
    facts = {key: record[key] for key in ("version", "git", "python", "packages", "threads", "started", "finished")}
    return (
        f"<p class=note><code>{html.escape(record['command'])}</code></p>"
        f"{page.table(header(record), rows(record), best)}{page.notes(notes(record))}{page.figures(shown)}"
        f"<h2>All measures of {html.escape(best)}</h2><table>{measured}</table>"
        f"<h2>How it was made</h2><pre>{html.escape(json.dumps(facts, indent=2))}</pre>"
    )
