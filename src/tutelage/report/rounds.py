"""What went on in the rounds of a noisy student, for its report: read from each label stage's folder."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.data import ROUND, TABLE, UNKNOWN, ImageDataModule
from tutelage.report import page, pictures, round_pictures
from tutelage.report.gains import TEST
from tutelage.report.round_pictures import Trace
from tutelage.runs import RunFolder

SAMPLES, COLUMNS = 24, 8
VALIDATION, AGREEMENT = "val/accuracy", "train/agreement"
KEPT = (
    "For each class: the pool images that the teacher answered so (light), those of them that were kept (dark), and, "
    "as a stroke, how many the student sees, duplicates counted."
)
CONFIDENCE = "Shares of the pool by the teacher's confidence"
BY_TRUTH = "; green: right, red on top: wrong, by the truth that was set aside for measuring; grey: nobody knows."
RELIABILITY = (
    "The share of answers that are right at each confidence. On the dashed line a teacher is as often right as it is "
    "sure; below it, it is too sure. A dot grows with the images that it stands for; a faint one stands for few."
)
COLOURS = "Green agrees with the truth that was set aside, red does not; training never sees it."
NO_TRUTH = "What is right is not known here."


def round_shown(
    folder: RunFolder, record: Mapping[str, Any], places: Mapping[str, RunFolder], data: ImageDataModule
) -> list[page.Picture]:
    """Return the pictures of a run's rounds; of a run that labelled nothing, none.

    A run that was made before rounds were written down has the examples of its pseudo-labels alone.

    Args:
        folder: the run's.
        record: the run's.
        places: the folder of each stage.
        data: where the images are.
    """
    labelled = [entry["name"] for entry in record["stages"] if entry["kind"] == "label"]
    if not labelled:
        return []
    rounds = {f"round {n}": told for n, name in enumerate(labelled, 1) if (told := _read(places[name].path))}
    shown = _drawn(folder, record, rounds) if rounds else []
    shown.append(_examples(folder, labelled[-1], places[labelled[-1]].path, data))
    if rounds:
        name, last = list(rounds.items())[-1]
        shown += _changes(folder, name, last, data)
        shown += _errors(folder, name, last, data)
    return shown


def _read(stage: Path) -> dict[str, Any] | None:
    """Return what was written down of a round; None where there is nothing, or it cannot be read."""
    try:
        told = json.loads((stage / ROUND).read_text())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None


def _drawn(folder: RunFolder, record: Mapping[str, Any], rounds: Mapping[str, Mapping[str, Any]]) -> list[page.Picture]:
    """Return the pictures of numbers: over the rounds, by class, by confidence."""
    known = any(sum(told["known"]) for told in rounds.values())
    drawn = [
        ("rounds", "Over the rounds", _over_rounds_told(record), round_pictures.over_rounds(*traces(record))),
        ("kept", "CachedLogits of each class", KEPT, round_pictures.kept_per_class(rounds)),
        ("confidence", "Confidence", CONFIDENCE + (BY_TRUTH if known else "."), round_pictures.confidences(rounds)),
    ]
    judged = {name: told for name, told in rounds.items() if sum(told["known"])}
    if judged:
        drawn.append(("reliability", "Right at each confidence", RELIABILITY, round_pictures.reliability(judged)))
    return [page.picture(folder.report / f"{name}.png", figure, heading, told) for name, heading, told, figure in drawn]


def traces(record: Mapping[str, Any]) -> tuple[list[str], list[Trace]]:
    """Return the networks of a run, without its controls, and the measures over them that at least one has.

    What is known of labels stands at the student that learned from them.
    """
    headings = ("test accuracy", "validation accuracy", "pseudo-labels right", "labels changed", "agreement")
    values: dict[str, dict[int, float]] = {heading: {} for heading in headings}
    networks: list[str] = []
    labels: Mapping[str, float] = {}
    for entry in record["stages"]:
        result = entry["result"]
        if entry["kind"] == "label":
            labels = result
        elif not entry["control"]:
            found = (result.get(TEST), result.get(VALIDATION), labels.get("pool/right"), labels.get("pool/changed"))
            for heading, value in zip(headings, (*found, result.get(AGREEMENT)), strict=True):
                if value is not None:
                    values[heading][len(networks)] = value
            networks.append(entry["name"] + ("\nrejected" if entry.get("rejected") else ""))
            labels = {}
    return networks, [Trace(heading, found) for heading, found in values.items() if found]


def _over_rounds_told(record: Mapping[str, Any]) -> str:
    there = {trace.heading for trace in traces(record)[1]}
    told = {
        "pseudo-labels right": "right: the share of the labels kept that agree with the truth set aside",
        "labels changed": "changed: the share of the pool that is answered otherwise than in the round before",
        "agreement": "agreement: of the student, as it is noised, with the labels it learns from, at the end",
    }
    said = [line for heading, line in told.items() if heading in there]
    return f"The networks in the order in which they learned. {'; '.join(said)}." if said else "The networks."


def _examples(folder: RunFolder, name: str, stage: Path, data: ImageDataModule) -> page.Picture:
    """Return pool images over the range of confidence; of a long table only what is shown is read."""
    rows = _spread_rows(stage / TABLE)
    titles, colors = [], []
    for row in rows:
        label, truth = pictures.shortened(row["label"]), row["truth"]
        wrong = truth is not None and truth != row["label"]
        titles.append(f"{label} {row['confidence']:.0%}" + (f"\ntruth: {pictures.shortened(truth)}" if wrong else ""))
        colors.append(pictures.INK if truth is None else pictures.BAD if wrong else pictures.GOOD)
    colours = _colours(row["truth"] is not None for row in rows)
    told = f"Pool images over the range of the teacher's confidence ({name}), most confident first. {colours}"
    return _tiles(
        folder, "pseudo_labels", "Pseudo-labels", told, ([row["index"] for row in rows], titles, colors), data
    )


def _colours(known: Iterable[bool]) -> str:
    """Return what the colours of some examples mean, given of which the truth is known."""
    return COLOURS if any(known) else NO_TRUTH


def _spread_rows(table: Path) -> list[dict[str, Any]]:
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
            inside = wanted[groups == group]
            read = file.read_row_group(int(group), ["index", "label", "confidence", "truth"])
            found = read.take(inside - (ends[group] - sizes[group])).to_pylist()
            rows |= dict(zip(inside.tolist(), found, strict=True))
    return [rows[place] for place in wanted.tolist()]


def _changes(folder: RunFolder, name: str, told: Mapping[str, Any], data: ImageDataModule) -> list[page.Picture]:
    """Return examples of labels that changed since the round before; none where none did."""
    examples, classes = told["changed_examples"], [pictures.shortened(c) for c in told["classes"]]
    if not examples:
        return []
    titles = [f"{classes[e['after']]} {e['confidence']:.0%}\nwas: {classes[e['before']]}" for e in examples]
    colors = [_color(e["after"], e["truth"]) for e in examples]
    words = (
        f"Labels of {name} that differ from those of the round before ({told['changed']:,} of {told['images']:,}), the "
        f"most confident first. {_colours(e['truth'] != UNKNOWN for e in examples)}"
    )
    shown = ([e["index"] for e in examples], titles, colors)
    return [_tiles(folder, "changed", "Changed labels", words, shown, data)]


def _errors(folder: RunFolder, name: str, told: Mapping[str, Any], data: ImageDataModule) -> list[page.Picture]:
    """Return the wrong labels of which the teacher was most sure; none where no truth was set aside."""
    examples, classes = told["confident_errors"], [pictures.shortened(c) for c in told["classes"]]
    if not examples:
        return []
    titles = [f"{classes[e['label']]} {e['confidence']:.0%}\ntruth: {classes[e['truth']]}" for e in examples]
    wrong = sum(told["known"]) - sum(told["right"])
    words = (
        f"Labels of {name} that are wrong by the truth set aside ({wrong:,} of {sum(told['known']):,}), the most "
        "confident first."
    )
    shown = ([e["index"] for e in examples], titles, [pictures.BAD] * len(examples))
    return [_tiles(folder, "pool_errors", "Confident errors in the pool", words, shown, data)]


def _color(label: int, truth: int) -> str:
    if truth == UNKNOWN:
        return pictures.INK
    return pictures.GOOD if label == truth else pictures.BAD


def _tiles(
    folder: RunFolder,
    name: str,
    heading: str,
    told: str,
    shown: tuple[Sequence[int], Sequence[str], Sequence[str]],
    data: ImageDataModule,
) -> page.Picture:
    """Return a picture of images by their indices, their titles and the titles' colours."""
    indices, titles, colors = shown
    figure = pictures.tiles([data.source.images[index] for index in indices], titles, COLUMNS, colors)
    return page.picture(folder.report / f"{name}.png", figure, heading, told)
