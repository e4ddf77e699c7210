"""The report of a finished run: one page that holds its pictures, and the pictures beside it."""

import base64
import csv
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from tutelage.config import Config
from tutelage.data import TABLE, UNKNOWN, ImageDataModule, data_module
from tutelage.insight import pictures
from tutelage.insight.table import HEADER, last_fit, notes, rows
from tutelage.models import Answers, confusion
from tutelage.randomness import Key
from tutelage.runs import RunFolder, read_record
from tutelage.storage import write_text

ORIGINALS, VIEWS = 5, 7
SAMPLES = 24
COLUMNS = 8
CURVES = (
    "What is minimised (a student's loss has a second term, for the pool), and the accuracy on labelled images as "
    "they are augmented; one line a stage."
)
GOOD, BAD = "#2a7a2a", "#b02020"

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem .25rem 0; text-align: right; }
th { border-bottom: 1px solid #888; font-weight: 600; } th:first-child, td:first-child { text-align: left; }
th:nth-child(2), td:nth-child(2) { text-align: left; }
tr.best td { font-weight: 600; } .note { color: #666; font-size: .9rem; } img { max-width: 100%; }
code { background: #f3f3f3; padding: .1rem .3rem; }
"""


@dataclass(frozen=True)
class Picture:
    """A picture of the report: its file's name, its heading and what it shows."""

    file: str
    heading: str
    told: str


def write_report(folder: RunFolder, config: Config | None = None) -> None:
    """Write ``report/index.html`` and its PNG files for a finished run.

    Args:
        folder: the run's.
        config: the run's config, where it is at hand (data may lie elsewhere now); else the stored one.
    """
    record = read_record(folder)
    assert record is not None  # noqa: S101 - the caller has seen the record
    config = config or Config.model_validate(OmegaConf.to_container(OmegaConf.load(folder.config_file)))
    data = data_module(config.data)
    entries = record["stages"]
    places = {
        entry["name"]: folder.stage(number, entry["name"], len(entries)) for number, entry in enumerate(entries, 1)
    }
    shown = [_curves(folder, record, places), _confusion(folder, record, places, data)]
    shown += [_views(folder, config, data, last_fit(record))]
    shown += [_pseudo_labels(folder, entry, places, data) for entry in entries if entry["kind"] == "label"][-1:]
    shown += _mistakes(folder, record, places, data)
    write_text(folder.report / "index.html", _page(folder, record, shown))


def _curves(folder: RunFolder, record: Mapping[str, Any], places: Mapping[str, RunFolder]) -> Picture:
    tables = {}
    for entry in record["stages"]:
        if entry["kind"] == "fit":
            with places[entry["name"]].metrics_file.open() as file:
                tables[entry["name"]] = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return _save(folder, "curves.png", pictures.learning_curves(tables), "Learning curves", CURVES)


def _confusion(
    folder: RunFolder, record: Mapping[str, Any], places: Mapping[str, RunFolder], data: ImageDataModule
) -> Picture:
    name = last_fit(record)
    answers = _answers(places[name])
    matrix = confusion(Answers(answers["probabilities"].astype(np.float32), answers["labels"], answers["indices"]))
    told = f"{name} on the {len(answers['labels'])} test images; rows are true classes."
    return _save(
        folder, "confusion.png", pictures.confusion_matrix(matrix, data.source.classes), "Confusion matrix", told
    )


def _views(folder: RunFolder, config: Config, data: ImageDataModule, stage: str) -> Picture:
    from tutelage.augmentation import Pipeline

    view = Pipeline(config.augmentation.transforms, Key(config.seed, stage, "labelled"))
    images, titles = [], []
    for index in data.splits.labelled[:: max(1, len(data.splits.labelled) // ORIGINALS)][:ORIGINALS]:
        image = data.source.images[int(index)]
        images += [image, *(view(image, pass_, int(index)) for pass_ in range(VIEWS))]
        name = pictures.shortened(data.source.classes[data.source.labels[index]])
        titles += [f"{name}: original", *(f"pass {pass_}" for pass_ in range(VIEWS))]
    told = "Labelled images as they are, and as the last network saw them in its first passes."
    return _save(folder, "views.png", pictures.tiles(images, titles, VIEWS + 1), "What the network saw", told)


def _pseudo_labels(
    folder: RunFolder, entry: Mapping[str, Any], places: Mapping[str, RunFolder], data: ImageDataModule
) -> Picture:
    import pyarrow.parquet as pq

    table = pq.read_table(places[entry["name"]].path / TABLE).to_pylist()
    by_confidence = sorted(table, key=lambda row: -row["confidence"])
    chosen = [by_confidence[i] for i in np.linspace(0, len(table) - 1, min(SAMPLES, len(table))).astype(int)]
    titles, colors = [], []
    for row in chosen:
        label, truth = pictures.shortened(row["label"]), row["truth"]
        wrong = truth is not None and truth != row["label"]
        titles.append(f"{label} {row['confidence']:.0%}" + (f"\ntruth: {pictures.shortened(truth)}" if wrong else ""))
        colors.append("black" if truth is None else BAD if wrong else GOOD)
    images = [data.source.images[row["index"]] for row in chosen]
    told = (
        f"Pool images over the range of the teacher's confidence ({entry['name']}), most confident first. "
        "Green agrees with the truth that was set aside, red does not; training never sees it."
    )
    figure = pictures.tiles(images, titles, COLUMNS, colors)
    return _save(folder, "pseudo_labels.png", figure, "Pseudo-labels", told)


def _mistakes(
    folder: RunFolder, record: Mapping[str, Any], places: Mapping[str, RunFolder], data: ImageDataModule
) -> list[Picture]:
    name, source = last_fit(record), data.source
    answers = _answers(places[name])
    given, sure = answers["probabilities"].argmax(axis=1), answers["probabilities"].max(axis=1).astype(float)
    wrong = np.flatnonzero((given != answers["labels"]) & (answers["labels"] != UNKNOWN))
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:SAMPLES]
    if not len(worst):
        return []
    classes = [pictures.shortened(c) for c in source.classes]
    titles = [f"{classes[given[i]]} {sure[i]:.0%}\ntruth: {classes[answers['labels'][i]]}" for i in worst]
    images = [source.images[int(answers["indices"][i])] for i in worst]
    told = f"Test images that {name} got wrong, the most confident first ({len(wrong)} of {len(given)} are wrong)."
    return [_save(folder, "mistakes.png", pictures.tiles(images, titles, COLUMNS), "Most confident mistakes", told)]


def _answers(place: RunFolder) -> dict[str, np.ndarray]:
    with np.load(place.test_file, allow_pickle=False) as stored:
        return dict(stored)


def _save(folder: RunFolder, file: str, figure: Any, heading: str, told: str) -> Picture:
    pictures.save(figure, folder.report / file)
    return Picture(file, heading, told)


def _page(folder: RunFolder, record: Mapping[str, Any], shown: Sequence[Picture]) -> str:
    best = last_fit(record)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADER)
    body = "".join(
        f"<tr{' class=best' if row[0] == best else ''}>" + "".join(f"<td>{html.escape(v)}</td>" for v in row) + "</tr>"
        for row in rows(record)
    )
    told = "".join(f"<p class=note>{html.escape(line)}</p>" for line in notes(record))
    figures = "".join(
        f"<h2>{html.escape(one.heading)}</h2><p class=note>{html.escape(one.told)}</p>"
        f'<img alt="{html.escape(one.heading)}" src="data:image/png;base64,{_encoded(folder.report / one.file)}">'
        for one in shown
    )
    measured = "".join(
        f"<tr><td>{html.escape(name)}</td><td></td><td>{value:.4f}</td></tr>"
        for name, value in record["result"].items()
    )
    facts = {key: record[key] for key in ("version", "git", "python", "packages", "threads", "started", "finished")}
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{html.escape(folder.path.name)}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(folder.path.parent.name)}</h1>"
        f"<p class=note><code>{html.escape(record['command'])}</code></p>"
        f"<table><tr>{head}</tr>{body}</table>{told}{figures}"
        f"<h2>All measures of {html.escape(best)}</h2><table>{measured}</table>"
        f"<h2>How it was made</h2><pre>{html.escape(json.dumps(facts, indent=2))}</pre></html>\n"
    )


def _encoded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
