"""The report of a finished run: one self-contained page, ``report/index.html``."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from tutelage.config import Config
from tutelage.data import UNKNOWN, ImageDataModule, Predictions, data_module
from tutelage.models import ImageClassifier, load_classifier
from tutelage.report.answer_parts import make_answers
from tutelage.report.answers import find_mistakes, mean_confidence
from tutelage.report.asked import describe_request, make_reasons, name_data
from tutelage.report.comparison import compare_predictions
from tutelage.report.curves import chart_shift, read_curves
from tutelage.report.learning_curves import make_curves, read_tables
from tutelage.report.mistakes import MISTAKES, make_mistakes
from tutelage.report.neighbours import find_neighbours
from tutelage.report.next_steps import Outcome, suggest
from tutelage.report.rounds import make_rounds
from tutelage.report.seen import Seen, make_seen
from tutelage.report.templating import Column, Number, Table, write_page
from tutelage.report.weight_images import NOTE as WEIGHTS_NOTE
from tutelage.report.weight_images import make_weight_tiles
from tutelage.runs import (
    RunFolder,
    main_stage_name,
    open_tested_run,
    read_config,
    stage_folders,
    train_entries,
    weights_files,
)
from tutelage.runs.context import choose_device
from tutelage.runs.predictions import read_predictions
from tutelage.terminal.columns import TEST, has_tasks
from tutelage.terminal.intervals import CONFIDENCE_LEVEL, Interval, format_percent, wilson_interval
from tutelage.terminal.table import build_header, build_notes, build_rows

SECTIONS = {  # their names in the page, and what links to them say
    "next": "what to try next",
    "asked": "what was asked",
    "stages": "stages",
    "curves": "curves",
    "confusion": "confusion",
    "classes": "classes",
    "calibration": "calibration",
    "mistakes": "mistakes",
    "seen": "what it saw",
    "weights": "templates",
    "rounds": "rounds",
    "shifts": "shifts",
    "made": "versions",
}
MAX_CONTROLS = 3  # that have a number of their own
SKIPPED = "Training images that look like them are left out: computing features takes too long on this machine."
TEXT_COLUMNS = 2  # of the table of stages: the stage and its network


def write_report(folder: RunFolder, config: Config | None = None) -> None:
    """Write ``report/index.html`` for a finished run.

    Args:
        folder: the run's folder.
        config: the run's config, if the caller has it (its data may be at another path now); by default the stored one.
    """
    _, record = open_tested_run(str(folder.path))
    config = config or read_config(folder)
    data, folders = data_module(config.data), stage_folders(folder, record)
    final = main_stage_name(record)
    network = load_classifier(weights_files(folder, record)[final])
    predictions = _read_known(folders[final])
    outcome = _measure_outcome(config, record, folders, data, predictions)
    mistakes, mistake_notes = _show_mistakes(config, network, data, predictions, final)
    parts = {
        "suggestions": suggest(outcome),
        "curves": make_curves(read_tables(record, folders)) if _takes_steps(record) else [],
        "answers": make_answers(predictions, network.spec.classes),
        "mistakes": mistakes,
        "mistake_notes": mistake_notes,
        "seen": _show_seen(config, record, data),
        "weights": make_weight_tiles(network),
        "rounds": make_rounds(record, folders, data.source),
        "shifts": [chart_shift(c.shift, c.description, c.strengths, c.accuracy) for c in read_curves(folder)],
    }
    write_page(
        folder.report / "index.html",
        "run.html.j2",
        **parts,
        has_charts=bool(parts["curves"] or parts["shifts"] or parts["rounds"]),
        over=_describe_run(folder, record, config),
        heading=f"{name_data(config.data)}, {outcome.labels:,} {'label' if outcome.labels == 1 else 'labels'}",
        sentence=_describe_result(record, outcome, predictions),
        numbers=_list_numbers(record, outcome),
        warnings=_list_warnings(record),
        links=_list_links(parts),
        asked=describe_request(config, record, data),
        reasons=make_reasons(config),
        stages=_make_stage_table(record),
        notes=[*build_notes(record), *record.get("data", {}).get("notes", [])],
        weights_note=WEIGHTS_NOTE,
        command=record.get("command", ""),
        facts=_list_facts(record),
        final=final,
        metrics=_make_metric_table(record),
    )


def _read_known(folder: RunFolder) -> Predictions:
    """Return a network's predictions on the test images whose true class is known."""
    predictions = read_predictions(folder.test_file)
    return predictions.select(predictions.labels != UNKNOWN)


def _takes_steps(record: Mapping[str, Any]) -> bool:
    """Return whether any network was trained by steps; one that was not has stored its images unaugmented."""
    return any(entry.get("steps") for entry in record["stages"])


def _list_controls(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [entry for entry in train_entries(record) if entry.get("control") and TEST in entry["result"]]


def _measure_outcome(
    config: Config,
    record: Mapping[str, Any],
    folders: Mapping[str, RunFolder],
    data: ImageDataModule,
    predictions: Predictions,
) -> Outcome:
    accuracy, controls, splits = record["result"].get(TEST), _list_controls(record), data.splits
    images = len(predictions.labels)
    gain = compare_predictions(predictions, _read_known(folders[controls[-1]["name"]])) if controls else None
    counts = np.bincount(data.source.labels[splits.labelled], minlength=len(data.source.classes))
    return Outcome(
        config,
        record,
        None if accuracy is None or not images else wilson_interval(accuracy * images, images),
        mean_confidence(predictions) if images else 0.0,
        gain,
        len(splits.pool),
        len(data.source.test) > 0,
        counts.tolist(),
    )


def _describe_run(folder: RunFolder, record: Mapping[str, Any], config: Config) -> str:
    finished = record.get("finished")
    day = f", {datetime.fromisoformat(finished).astimezone():%d %B %Y}" if finished else ""
    return f"{folder.path.parent.name}: {config.strategy.name.replace('_', ' ')}, seed {config.seed}{day}"


def _describe_result(record: Mapping[str, Any], outcome: Outcome, predictions: Predictions) -> str:
    final, images = main_stage_name(record), len(predictions.labels)
    right = int((predictions.probabilities.argmax(axis=1) == predictions.labels).sum())
    text = f"The network of stage {final} classifies {right:,} of {images:,} test images rightly"
    gain, controls = outcome.gain, _list_controls(record)
    if gain is None or not controls:
        return f"{text}."
    points = f"{100 * abs(gain.value):.1f} points {'more' if gain.value >= 0 else 'fewer'} than {controls[-1]['name']}"
    return f"{text}: {points} ({CONFIDENCE_LEVEL:.0%} interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f})."


def _list_numbers(record: Mapping[str, Any], outcome: Outcome) -> list[Number]:
    """Return the numbers that the page begins with."""
    result, accuracy, numbers = record["result"], outcome.accuracy, []
    name = "test accuracy over all tasks" if has_tasks(record) else "test accuracy"
    if accuracy is not None:
        numbers.append(Number(name, format_percent(accuracy.value), _describe_interval(accuracy)))
    for entry in _list_controls(record)[-MAX_CONTROLS:]:
        value = entry["result"][TEST]
        gain = 0.0 if accuracy is None else 100 * (accuracy.value - value)
        gained = f"{abs(gain):.1f} points {'gained' if gain >= 0 else 'lost'}"
        numbers.append(Number(str(entry["name"]), format_percent(value), gained))
    if "val/accuracy" in result:
        numbers.append(Number("validation accuracy", format_percent(result["val/accuracy"])))
    labels, classes = outcome.labels, sum(count > 0 for count in outcome.counts)
    numbers.append(Number("labels", f"{labels:,}", f"of {classes:,} {'class' if classes == 1 else 'classes'}"))
    if "test/calibration_error" in result:
        sure = f"{format_percent(outcome.confidence)} confident on average"
        numbers.append(Number("calibration error", format_percent(result["test/calibration_error"]), sure))
    return numbers


def _describe_interval(accuracy: Interval) -> str:
    return f"{100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}, Wilson's {CONFIDENCE_LEVEL:.0%} interval"


def _list_warnings(record: Mapping[str, Any]) -> list[str]:
    leaked = record.get("data", {}).get("leaked", [])
    if not leaked:
        return []
    return [f"{len(leaked):,} of the test images are also learned from; run.json names them."]


def _list_links(parts: Mapping[str, Any]) -> dict[str, str]:
    """Return the page's sections in their order: what links to them say, by their names."""
    is_shown = {**parts, "next": parts["suggestions"]}
    return {name: text for name, text in SECTIONS.items() if is_shown.get(name, True)}


def _make_stage_table(record: Mapping[str, Any]) -> Table:
    columns = [Column(name, number < TEXT_COLUMNS) for number, name in enumerate(build_header(record))]
    return Table("stages", columns, build_rows(record), best=main_stage_name(record))


def _show_mistakes(
    config: Config, network: ImageClassifier, data: ImageDataModule, predictions: Predictions, final: str
) -> tuple[Sequence[Any], list[str]]:
    """Return the most confident mistakes, and what is to be known of them."""
    positions, count = find_mistakes(predictions, MISTAKES), len(find_mistakes(predictions, len(predictions.labels)))
    if not len(positions):
        return [], []
    size = network.spec.image_size
    seen = data if size == config.data.image_size else data.at_image_size(size)
    indices = predictions.indices[positions].tolist()
    neighbours = find_neighbours(network, seen, indices, choose_device(config, 0))
    notes = [
        f"Images that {final} predicts wrongly ({count:,} of {len(predictions.labels):,}), the most confident first.",
        SKIPPED if neighbours is None else neighbours.describe(),
    ]
    return make_mistakes(predictions, network.spec.classes, data.source, neighbours), notes


def _show_seen(config: Config, record: Mapping[str, Any], data: ImageDataModule) -> Seen | None:
    if not _takes_steps(record):
        return None
    return make_seen(config, data, _find_augmented_stage(record))


def _find_augmented_stage(record: Mapping[str, Any]) -> str:
    """Return the last stage that trained the final network on augmented images."""
    entries = {entry["name"]: entry for entry in record["stages"]}
    name = main_stage_name(record)
    while not entries[name].get("augmented", True) and "starts_from" in entries[name]:
        name = str(entries[name]["starts_from"])
    return name


def _list_facts(record: Mapping[str, Any]) -> dict[str, str]:
    """Return how the run was made, by name; runs of earlier versions lack some of it."""
    packages = record.get("packages") or {}
    values = {
        "tutelage": record.get("version"),
        "commit": record.get("git"),
        "python": record.get("python"),
        "packages": ", ".join(f"{name} {number}" for name, number in packages.items()),
        "threads": record.get("threads"),
        "processes": record.get("processes"),
        "started": record.get("started"),
        "finished": record.get("finished"),
    }
    return {name: str(value) for name, value in values.items() if value}


def _make_metric_table(record: Mapping[str, Any]) -> Table:
    columns = (Column("metric", is_text=True), Column("value"))
    rows = [(name, f"{value:.4f}") for name, value in record["result"].items()]
    return Table("all metrics", columns, rows, is_searchable=True)
