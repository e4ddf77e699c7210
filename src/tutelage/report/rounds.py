"""The part of a report on the rounds of a noisy student, made from the folder of each pseudo-labelling stage."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.data import ROUND, TABLE, UNKNOWN, Source
from tutelage.report.answer_parts import SEARCHED_ROWS
from tutelage.report.answers import Bins
from tutelage.report.gains import TEST_ACCURACY
from tutelage.report.panels import (
    CALIBRATION_CAPTION,
    Panel,
    draw_histogram,
    draw_reliability,
    lowest_confidence,
)
from tutelage.report.templating import Bar, Chart, Column, Line, Table, Tile, encode_image, is_small
from tutelage.runs import PSEUDO_LABEL, RunFolder

SAMPLES = 24
VALIDATION, AGREEMENT = "val/accuracy", "train/agreement"
CLASSES_NOTE = (
    "Pool images of each class: predicted by the teacher (light bar), kept as pseudo-labels (dark bar), and used to "
    "train the student, duplicates included."
)
CONFIDENCE_CAPTION = "Share of pool images at each confidence of the teacher"
TRUTH_CAPTION = "; green: correct, red: wrong, grey: true class unknown."
TRUTH_NOTE = "Red: another class than the true one. True classes only measure; training never sees them."
NO_TRUTH_NOTE = "The true classes are unknown."
CHANGED = "pseudo-labels changed"
CHANGED_CAPTION = "The share of the pool with another prediction than in the round before."
EXPLANATIONS = {
    "pseudo-labels correct": "correct: share of the kept pseudo-labels that equal the true class",
    "agreement": "agreement: of the student under noise with its pseudo-labels, at the end of training",
}


@dataclass(frozen=True)
class Panels:
    """Small drawings, one per round, with a heading and a caption."""

    heading: str
    caption: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Gallery:
    """Images with a heading and a caption."""

    heading: str
    caption: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Rounds:
    """What a page shows of the rounds.

    Attributes:
        measures: over the networks; empty where no stage wrote a summary of its round.
        classes: counts of pool images per class; None where no stage did.
        panels: drawings over confidence.
        galleries: pool images.
    """

    measures: Sequence[Chart]
    classes: Table | None
    panels: Sequence[Panels]
    galleries: Sequence[Gallery]
    classes_note: str = CLASSES_NOTE


def make_rounds(record: Mapping[str, Any], folders: Mapping[str, RunFolder], source: Source) -> Rounds | None:
    """Return what a page shows of a run's rounds; None if no stage labelled the pool.

    A run of a version that wrote no summary of its rounds has only examples of its pseudo-labels.

    Args:
        record: the content of ``run.json``.
        folders: the folder of each stage.
        source: the dataset with the pool's images.
    """
    label_stages = [entry["name"] for entry in record["stages"] if entry["kind"] == PSEUDO_LABEL]
    if not label_stages:
        return None
    summaries = {
        f"round {number}": summary
        for number, name in enumerate(label_stages, 1)
        if (summary := _read_summary(folders[name].path))
    }
    galleries = [_show_examples(label_stages[-1], folders[label_stages[-1]].path, source)]
    if not summaries:
        return Rounds([], None, [], galleries)
    name, summary = list(summaries.items())[-1]
    galleries += [*_show_changes(name, summary, source), *_show_errors(name, summary, source)]
    return Rounds(make_measures(record), make_class_counts(summaries), _draw_panels(summaries), galleries)


def _read_summary(stage: Path) -> dict[str, Any] | None:
    """Return the summary of a round (``round.json``); None if there is none or it cannot be read."""
    try:
        summary = json.loads((stage / ROUND).read_text())
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def make_measures(record: Mapping[str, Any]) -> list[Chart]:
    """Return the charts of measures over the networks of a run, in the order of training and without its controls.

    A measure of pseudo-labels belongs to the student that was trained on them.
    """
    headings = ("test accuracy", "validation accuracy", "pseudo-labels correct", CHANGED, "agreement")
    values: dict[str, dict[int, float]] = {heading: {} for heading in headings}
    networks: list[str] = []
    pool_result: Mapping[str, float] = {}
    for entry in record["stages"]:
        result = entry["result"]
        if entry["kind"] == PSEUDO_LABEL:
            pool_result = result
        elif not entry["control"]:
            accuracies = (result.get(TEST_ACCURACY), result.get(VALIDATION))
            pseudo_labels = (pool_result.get("pool/right"), pool_result.get("pool/changed"))
            for heading, value in zip(headings, (*accuracies, *pseudo_labels, result.get(AGREEMENT)), strict=True):
                if value is not None:
                    values[heading][len(networks)] = value
            networks.append(entry["name"] + (" (rejected)" if entry.get("rejected") else ""))
            pool_result = {}
    lines = [Line(heading, list(points), list(points.values())) for heading, points in values.items() if points]
    places = list(range(len(networks)))

    def make_chart(heading: str, caption: str, lines: Sequence[Line]) -> Chart:
        return Chart(heading, caption, "network", lines, is_share=True, x_ticks=places, x_labels=networks, is_wide=True)

    measures = [line for line in lines if line.name != CHANGED]
    explained = [EXPLANATIONS[line.name] for line in measures if line.name in EXPLANATIONS]
    caption = "; ".join(["Measures of the networks in the order of their training", *explained]) + "."
    changes = [line for line in lines if line.name == CHANGED and len(line.x) > 1]
    charts = [make_chart("Over the rounds", caption, measures)]
    return charts + [make_chart("Changes from round to round", CHANGED_CAPTION, [line]) for line in changes]


def make_class_counts(rounds: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the counts of each class: pool images that were kept, of those that were predicted, and uses of them."""
    classes = next(iter(rounds.values()))["classes"]
    columns = [Column("class", is_text=True)]
    for name in rounds:
        columns += [Column(f"{name}: kept of predicted"), Column("used")]
    most = max([1, *(count for summary in rounds.values() for count in summary["answered_per_class"])])
    rows: list[list[str | Bar]] = []
    for number, label in enumerate(classes):
        row: list[str | Bar] = [label]
        for summary in rounds.values():
            kept, predicted = summary["kept_per_class"][number], summary["answered_per_class"][number]
            row += [Bar(f"{kept:,} of {predicted:,}", kept / most, predicted / most)]
            row += [f"{summary['shown_per_class'][number]:,}"]
        rows.append(row)
    return Table("pseudo-labels per class", columns, rows, is_searchable=len(rows) > SEARCHED_ROWS)


def _draw_panels(rounds: Mapping[str, Mapping[str, Any]]) -> list[Panels]:
    """Return histograms of confidence and, where true classes are known, reliability diagrams."""
    counts = {name: np.array(summary["histogram"]) for name, summary in rounds.items()}
    bins = {
        name: Bins(*(np.array(summary[key]) for key in ("edges", "known", "right"))) for name, summary in rounds.items()
    }
    known = {name: each for name, each in bins.items() if each.known.sum()}
    low = lowest_confidence([(bins[name].edges, count) for name, count in counts.items()])
    high = max(float((count / max(1, count.sum())).max()) for count in counts.values())
    histograms = [draw_histogram(name, bins[name], count, low, high) for name, count in counts.items()]
    parts = [Panels("Confidence", CONFIDENCE_CAPTION + (TRUTH_CAPTION if known else "."), histograms)]
    if known:
        low = lowest_confidence([(each.edges, each.known) for each in known.values()])
        diagrams = [
            draw_reliability(f"{name}: {100 * each.right.sum() / each.known.sum():.1f} % correct", each, low)
            for name, each in known.items()
        ]
        parts.append(Panels("Reliability", CALIBRATION_CAPTION, diagrams))
    return parts


def _show_examples(stage_name: str, stage: Path, source: Source) -> Gallery:
    """Return pool images over the range of confidence; from a long table only the rows that are shown are read."""
    rows = _read_spread_rows(stage / TABLE)
    tiles = [_make_tile(source, row["index"], row["label"], row["confidence"], row["truth"]) for row in rows]
    caption = (
        f"Pool images of stage {stage_name} with the teacher's prediction and confidence, from the most to the least "
        f"confident. {_describe_truth(row['truth'] is not None for row in rows)}"
    )
    return Gallery("Pseudo-labels", caption, tiles)


def _read_spread_rows(table: Path) -> list[dict[str, Any]]:
    """Return rows of a table of pseudo-labels over the range of confidence, most confident first."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(table) as file:
        confidence = file.read(["confidence"])["confidence"].to_numpy()
        order = np.argsort(-confidence, kind="stable")
        wanted = order[np.linspace(0, len(order) - 1, min(SAMPLES, len(order))).astype(int)]
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        ends = np.cumsum(sizes)
        groups = np.searchsorted(ends, wanted, side="right")
        rows: dict[int, dict[str, Any]] = {}
        for group in np.unique(groups):
            positions = wanted[groups == group]
            content = file.read_row_group(int(group), ["index", "label", "confidence", "truth"])
            group_rows = content.take(positions - (ends[group] - sizes[group])).to_pylist()
            rows |= dict(zip(positions.tolist(), group_rows, strict=True))
    return [rows[position] for position in wanted.tolist()]


def _show_changes(name: str, summary: Mapping[str, Any], source: Source) -> list[Gallery]:
    """Return examples of pool images whose prediction changed since the round before; none if no prediction did."""
    examples, classes = summary["changed_examples"], summary["classes"]
    if not examples:
        return []
    tiles = []
    for each in examples:
        label, truth = classes[each["after"]], None if each["truth"] == UNKNOWN else classes[each["truth"]]
        was = f"was: {classes[each['before']]}"
        tiles.append(_make_tile(source, each["index"], label, each["confidence"], truth, was))
    caption = (
        f"Pool images that {name} labels differently than the round before ({summary['changed']:,} of "
        f"{summary['images']:,}), the most confident first. "
        f"{_describe_truth(each['truth'] != UNKNOWN for each in examples)}"
    )
    return [Gallery("Changed labels", caption, tiles)]


def _show_errors(name: str, summary: Mapping[str, Any], source: Source) -> list[Gallery]:
    """Return the wrong predictions with the highest confidence; none if no true class is known."""
    examples, classes = summary["confident_errors"], summary["classes"]
    if not examples:
        return []
    tiles = [
        _make_tile(
            source,
            each["index"],
            classes[each["label"]],
            each["confidence"],
            classes[each["truth"]],
        )
        for each in examples
    ]
    known, correct = sum(summary["known"]), sum(summary["right"])
    caption = (
        f"Pool images that {name} labels wrongly ({known - correct:,} of {known:,} with a known true class), the most "
        "confident first."
    )
    return [Gallery("Confident errors in the pool", caption, tiles)]


def _describe_truth(is_known: Iterable[bool]) -> str:
    """Return what the colours of tiles mean."""
    return TRUTH_NOTE if any(is_known) else NO_TRUTH_NOTE


def _make_tile(source: Source, index: int, label: str, confidence: float, truth: str | None, *lines: str) -> Tile:
    """Return a pool image with its label; a wrong one has its true class too."""
    is_wrong, image = truth is not None and truth != label, source.images[index]
    shown = [f"{label}, {confidence:.0%}", *lines, *([f"truth: {truth}"] if is_wrong else [])]
    shown += [source.names[index]] if source.has_file_names else []
    keys: dict[str, str | float] = {"confidence": confidence, "label": label}
    if truth is not None:
        keys["is"] = "wrong" if is_wrong else "right"
    return Tile(encode_image(image), shown, is_small(image), is_wrong, keys)
