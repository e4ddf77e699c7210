"""The part of a report on the rounds of a noisy student, drawn from the folder of each pseudo-labelling stage."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.data import ROUND, TABLE, UNKNOWN, ImageDataModule
from tutelage.report import page, pictures, round_pictures
from tutelage.report.gains import TEST_ACCURACY
from tutelage.report.round_pictures import Trace
from tutelage.runs import PSEUDO_LABEL, RunFolder

SAMPLES, COLUMNS = 24, 8
VALIDATION, AGREEMENT = "val/accuracy", "train/agreement"
CLASSES_CAPTION = (
    "Number of pool images (x) per class (y). Light bar: predicted as this class by the teacher; dark bar: kept as "
    "pseudo-labels; stroke: used to train the student, duplicates included."
)
CONFIDENCE_CAPTION = "Share of pool images (y) at each confidence of the teacher (x)"
TRUTH_CAPTION = "; green: correct, red: wrong, grey: true class unknown."
RELIABILITY_CAPTION = (
    "Share of correct predictions (y) at each confidence of the teacher (x). On the dashed line the two are equal; "
    "below it the teacher is too confident. Larger dots stand for more images, faint ones for few."
)
COLORS_NOTE = "Green: equal to the true class; red: not. True classes only measure; training never sees them."
NO_TRUTH_NOTE = "The true classes are unknown."


def draw_rounds(
    folder: RunFolder, record: Mapping[str, Any], folders: Mapping[str, RunFolder], data: ImageDataModule
) -> list[page.Picture]:
    """Return the pictures of a run's rounds; none if no stage labelled the pool.

    A run of a version that wrote no summary of its rounds has only examples of its pseudo-labels.

    Args:
        folder: the run's folder.
        record: the content of its ``run.json``.
        folders: the folder of each stage.
        data: the dataset with the pool's images.
    """
    label_stages = [entry["name"] for entry in record["stages"] if entry["kind"] == PSEUDO_LABEL]
    if not label_stages:
        return []
    summaries = {
        f"round {number}": summary
        for number, name in enumerate(label_stages, 1)
        if (summary := _read_summary(folders[name].path))
    }
    shown = _draw_numbers(folder, record, summaries) if summaries else []
    shown.append(_draw_examples(folder, label_stages[-1], folders[label_stages[-1]].path, data))
    if summaries:
        name, summary = list(summaries.items())[-1]
        shown += _draw_changes(folder, name, summary, data)
        shown += _draw_errors(folder, name, summary, data)
    return shown


def _read_summary(stage: Path) -> dict[str, Any] | None:
    """Return the summary of a round (``round.json``); None if there is none or it cannot be read."""
    try:
        summary = json.loads((stage / ROUND).read_text())
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def _draw_numbers(
    folder: RunFolder, record: Mapping[str, Any], rounds: Mapping[str, Mapping[str, Any]]
) -> list[page.Picture]:
    """Return the pictures of measures over the rounds, counts per class, confidence and reliability."""
    with_truth = {name: summary for name, summary in rounds.items() if sum(summary["known"])}
    networks, traces = collect_traces(record)
    confidence_caption = CONFIDENCE_CAPTION + (TRUTH_CAPTION if with_truth else ".")
    parts = [
        ("rounds", "Over the rounds", _describe_traces(traces), round_pictures.draw_traces(networks, traces)),
        ("kept", "Pseudo-labels per class", CLASSES_CAPTION, round_pictures.draw_class_counts(rounds)),
        ("confidence", "Confidence", confidence_caption, round_pictures.draw_confidence_histograms(rounds)),
    ]
    if with_truth:
        figure = round_pictures.draw_reliability(with_truth)
        parts.append(("reliability", "Reliability", RELIABILITY_CAPTION, figure))
    return [
        page.save_picture(folder.report / f"{name}.png", figure, heading, caption)
        for name, heading, caption, figure in parts
    ]


def collect_traces(record: Mapping[str, Any]) -> tuple[list[str], list[Trace]]:
    """Return the networks of a run, without its controls, and the measures that at least one of them has.

    A measure of pseudo-labels belongs to the student that was trained on them.
    """
    headings = ("test accuracy", "validation accuracy", "pseudo-labels correct", "pseudo-labels changed", "agreement")
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
            networks.append(entry["name"] + ("\nrejected" if entry.get("rejected") else ""))
            pool_result = {}
    return networks, [Trace(heading, by_network) for heading, by_network in values.items() if by_network]


def _describe_traces(traces: Sequence[Trace]) -> str:
    """Return the caption of the measures over the rounds; it explains those that are drawn."""
    explanations = {
        "pseudo-labels correct": "correct: share of the kept pseudo-labels that equal the true class",
        "pseudo-labels changed": "changed: share of the pool with another prediction than in the round before",
        "agreement": "agreement: of the student under noise with its pseudo-labels, at the end of training",
    }
    drawn = {trace.heading for trace in traces}
    lines = [line for heading, line in explanations.items() if heading in drawn]
    return "; ".join(["One panel per measure (y) over the networks in order of training (x)", *lines]) + "."


def _draw_examples(folder: RunFolder, stage_name: str, stage: Path, data: ImageDataModule) -> page.Picture:
    """Return pool images over the range of confidence; from a long table only the rows that are drawn are read."""
    rows = _read_spread_rows(stage / TABLE)
    titles, colors = [], []
    for row in rows:
        label, truth = pictures.shorten_name(row["label"]), row["truth"]
        is_wrong = truth is not None and truth != row["label"]
        truth_line = f"\ntruth: {pictures.shorten_name(truth)}" if is_wrong else ""
        titles.append(f"{label} {row['confidence']:.0%}{truth_line}")
        colors.append(_choose_color(row["label"], truth))
    caption = (
        f"Pool images of stage {stage_name} with the teacher's prediction and confidence, from the most to the least "
        f"confident. {_describe_colors(colors)}"
    )
    tiles = ([row["index"] for row in rows], titles, colors)
    return _save_tiles(folder, "pseudo_labels", "Pseudo-labels", caption, tiles, data)


def _describe_colors(colors: Sequence[str]) -> str:
    """Return what the colours of titles mean."""
    return COLORS_NOTE if any(color != pictures.TEXT_COLOR for color in colors) else NO_TRUTH_NOTE


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


def _draw_changes(
    folder: RunFolder, name: str, summary: Mapping[str, Any], data: ImageDataModule
) -> list[page.Picture]:
    """Return examples of pool images whose prediction changed since the round before; none if no prediction did."""
    examples, classes = summary["changed_examples"], [pictures.shorten_name(c) for c in summary["classes"]]
    if not examples:
        return []
    titles = [f"{classes[e['after']]} {e['confidence']:.0%}\nwas: {classes[e['before']]}" for e in examples]
    colors = [_choose_color(e["after"], None if e["truth"] == UNKNOWN else e["truth"]) for e in examples]
    caption = (
        f"Pool images that {name} labels differently than the round before ({summary['changed']:,} of "
        f"{summary['images']:,}), the most confident first. {_describe_colors(colors)}"
    )
    tiles = ([e["index"] for e in examples], titles, colors)
    return [_save_tiles(folder, "changed", "Changed labels", caption, tiles, data)]


def _draw_errors(folder: RunFolder, name: str, summary: Mapping[str, Any], data: ImageDataModule) -> list[page.Picture]:
    """Return the wrong predictions with the highest confidence; none if no true class is known."""
    examples, classes = summary["confident_errors"], [pictures.shorten_name(c) for c in summary["classes"]]
    if not examples:
        return []
    titles = [
        f"{classes[e['label']]} {e['confidence']:.0%}\ntruth: {classes[e['truth']]}"
        f"{pictures.file_line(data.source, e['index'])}"
        for e in examples
    ]
    known, correct = sum(summary["known"]), sum(summary["right"])
    caption = (
        f"Pool images that {name} labels wrongly ({known - correct:,} of {known:,} with a known true class), the most "
        "confident first."
    )
    tiles = ([e["index"] for e in examples], titles, [pictures.WRONG_COLOR] * len(examples))
    return [_save_tiles(folder, "pool_errors", "Confident errors in the pool", caption, tiles, data)]


def _choose_color(label: str | int, truth: str | int | None) -> str:
    """Return the colour of an image's title: neutral if its true class is unknown (None)."""
    if truth is None:
        return pictures.TEXT_COLOR
    return pictures.CORRECT_COLOR if label == truth else pictures.WRONG_COLOR


def _save_tiles(
    folder: RunFolder,
    name: str,
    heading: str,
    caption: str,
    tiles: tuple[Sequence[int], Sequence[str], Sequence[str]],
    data: ImageDataModule,
) -> page.Picture:
    """Return a picture of images; ``tiles`` holds their indices, their titles and the titles' colours."""
    indices, titles, colors = tiles
    figure = pictures.draw_tiles([data.source.images[index] for index in indices], titles, COLUMNS, colors)
    return page.save_picture(folder.report / f"{name}.png", figure, heading, caption)
