"""The report of a finished run: one page with its pictures embedded, and the same pictures as files beside it."""

import csv
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from tutelage.config import Config
from tutelage.data import UNKNOWN, ImageDataModule, data_module
from tutelage.models import ImageClassifier, Perceptron, compute_confusion_matrix, load_classifier
from tutelage.randomness import Key
from tutelage.report import page, pictures
from tutelage.report.curves import Curve, read_curves
from tutelage.report.rounds import draw_rounds
from tutelage.runs import (
    RunFolder,
    main_stage_name,
    open_tested_run,
    read_config,
    stage_folders,
    train_entries,
    weights_files,
)
from tutelage.runs.predictions import read_predictions
from tutelage.terminal.table import build_header, build_notes, build_rows

ORIGINALS, VIEWS = 5, 7
SAMPLES = 24
COLUMNS = 8
CURVES_CAPTION = (
    "Training loss (left) and accuracy on augmented labelled images (right) over optimizer steps, one line per stage, "
    "each from its own first step. Losses of different methods, such as a student's, cannot be compared."
)


def write_report(folder: RunFolder, config: Config | None = None) -> None:
    """Write ``report/index.html`` and its PNG files for a finished run.

    Args:
        folder: the run's folder.
        config: the run's config, if the caller has it (its data may be at another path now); by default the stored one.
    """
    _, record = open_tested_run(str(folder.path))
    config = config or read_config(folder)
    data = data_module(config.data)
    entries, folders = record["stages"], stage_folders(folder, record)
    network = load_classifier(weights_files(folder, record)[main_stage_name(record)])
    classes = network.spec.classes
    shown = [_draw_confusion(folder, record, folders, classes)]
    if any(entry.get("steps") for entry in entries):  # a network without steps stored its images unaugmented
        views = _draw_views(folder, config, data, _find_augmented_stage(record))
        shown = [_draw_curves(folder, record, folders), *shown, views]
    shown += [_draw_shift(folder, curve) for curve in read_curves(folder)]
    shown += _draw_templates(folder, network)
    shown += draw_rounds(folder, record, folders, data)
    shown += _draw_mistakes(folder, record, folders, data, classes)
    page.write_page(
        folder.report / "index.html", folder.path.name, folder.path.parent.name, _render_body(record, shown)
    )


def _draw_curves(folder: RunFolder, record: Mapping[str, Any], folders: Mapping[str, RunFolder]) -> page.Picture:
    tables = {}
    for entry in train_entries(record):
        with folders[entry["name"]].metrics_file.open() as file:
            tables[entry["name"]] = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    figure = pictures.draw_learning_curves(tables)
    return page.save_picture(folder.report / "curves.png", figure, "Learning curves", CURVES_CAPTION)


def _draw_confusion(
    folder: RunFolder, record: Mapping[str, Any], folders: Mapping[str, RunFolder], classes: Sequence[str]
) -> page.Picture:
    name = main_stage_name(record)
    predictions = read_predictions(folders[name].test_file)
    figure = pictures.draw_confusion_matrix(compute_confusion_matrix(predictions), classes)
    caption = (
        f"Number of test images by true class (rows) and class predicted by {name} (columns), of "
        f"{len(predictions.labels):,} images. The diagonal is correct; a darker cell is a larger share of its row."
    )
    return page.save_picture(folder.report / "confusion.png", figure, "Confusion matrix", caption)


def _find_augmented_stage(record: Mapping[str, Any]) -> str:
    """Return the last stage that trained the final network on augmented images."""
    entries = {entry["name"]: entry for entry in record["stages"]}
    name = main_stage_name(record)
    while not entries[name].get("augmented", True) and "starts_from" in entries[name]:
        name = str(entries[name]["starts_from"])
    return name


def _draw_views(folder: RunFolder, config: Config, data: ImageDataModule, stage: str) -> page.Picture:
    from tutelage.augmentation import Pipeline

    pipeline = Pipeline(config.augmentation.transforms, Key(config.seed, stage, "labelled"))
    images, titles = [], []
    for index in data.splits.labelled[:: max(1, len(data.splits.labelled) // ORIGINALS)][:ORIGINALS]:
        image = data.source.images[int(index)]
        images += [image, *(pipeline(image, pass_number, int(index)) for pass_number in range(VIEWS))]
        name = pictures.shorten_name(data.source.classes[data.source.labels[index]])
        titles += [f"{name}: original", *(f"pass {pass_number}" for pass_number in range(VIEWS))]
    caption = f"Labelled images (left) and their augmented views in the first {VIEWS} passes of stage {stage}."
    figure = pictures.draw_tiles(images, titles, VIEWS + 1)
    return page.save_picture(folder.report / "views.png", figure, "What the network saw", caption)


def _draw_shift(folder: RunFolder, curve: Curve) -> page.Picture:
    caption = (
        f"Test accuracy (y) over the strength of the shift (x), one line per network: test images {curve.description}. "
        "At 0 they are unchanged."
    )
    figure = pictures.draw_shift_curves(
        curve.shift, {name: (curve.strengths, values) for name, values in curve.accuracy.items()}
    )
    return page.save_picture(folder.report / f"shift_{curve.shift}.png", figure, f"Shift: {curve.shift}", caption)


def _draw_templates(folder: RunFolder, network: ImageClassifier) -> list[page.Picture]:
    """Return the picture of a perceptron's weights; none for other networks."""
    if not isinstance(network, Perceptron) or not isinstance(network.head, nn.Linear):
        return []
    spec = network.spec
    weights = network.head.weight.detach().reshape(-1, spec.channels, spec.image_size, spec.image_size).mean(dim=1)
    figure = pictures.draw_templates(weights.numpy(), spec.classes)
    return [page.save_picture(folder.report / page.TEMPLATES_FILE, figure, "Templates", page.TEMPLATES_CAPTION)]


def _draw_mistakes(
    folder: RunFolder,
    record: Mapping[str, Any],
    folders: Mapping[str, RunFolder],
    data: ImageDataModule,
    classes: Sequence[str],
) -> list[page.Picture]:
    """Return the wrongly predicted test images with the highest confidence; none if no prediction is wrong."""
    name, source = main_stage_name(record), data.source
    predictions = read_predictions(folders[name].test_file)
    labels = predictions.labels
    predicted = predictions.probabilities.argmax(axis=1)
    confidence = predictions.probabilities.max(axis=1).astype(float)
    wrong = np.flatnonzero((predicted != labels) & (labels != UNKNOWN))
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:SAMPLES]
    if not len(worst):
        return []
    names = [pictures.shorten_name(c) for c in classes]
    indices = predictions.indices[worst].tolist()
    titles = [
        f"{names[predicted[i]]} {confidence[i]:.0%}\ntruth: {names[labels[i]]}{pictures.file_line(source, index)}"
        for i, index in zip(worst, indices, strict=True)
    ]
    images = [source.images[index] for index in indices]
    caption = (
        f"Test images that {name} predicts wrongly ({len(wrong):,} of {len(predicted):,}), the most confident first: "
        f"predicted class, confidence, true class{', file' if source.has_file_names else ''}."
    )
    figure = pictures.draw_tiles(images, titles, COLUMNS)
    return [page.save_picture(folder.report / "mistakes.png", figure, "Most confident mistakes", caption)]


def _render_body(record: Mapping[str, Any], shown: Sequence[page.Picture]) -> str:
    final = main_stage_name(record)
    metrics = "".join(
        f"<tr><td>{html.escape(name)}</td><td></td><td>{value:.4f}</td></tr>"
        for name, value in record["result"].items()
    )
    facts = {key: record[key] for key in ("version", "git", "python", "packages", "threads", "started", "finished")}
    notes = [*build_notes(record), *record["data"]["notes"]]
    table = page.render_table(build_header(record), build_rows(record), final)
    return (
        f"<p class=note><code>{html.escape(record['command'])}</code></p>"
        f"{table}{page.render_notes(notes)}{page.render_pictures(shown)}"
        f"<h2>All metrics of {html.escape(final)}</h2><table>{metrics}</table>"
        f"<h2>How it was made</h2><pre>{html.escape(json.dumps(facts, indent=2, ensure_ascii=False))}</pre>"
    )
