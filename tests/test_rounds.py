"""The report's pictures of a noisy student's rounds, from rounds made by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tutelage.data import ROUND, TABLE, UNKNOWN
from tutelage.report import pictures, round_pictures
from tutelage.report.page import render_table
from tutelage.report.rounds import collect_traces, draw_rounds
from tutelage.runs import RunFolder
from tutelage.terminal.table import build_header, build_rows, print_table

CLASSES = ["cat", "dog", "a name that is too long for a tile"]
EDGES = [number / 20 for number in range(21)]
POOL = 50


def summarize(has_truth=True, changed=None):
    """Return the content of a stage's ``round.json``."""
    histogram = [0] * 10 + [5] * 10
    return {
        "classes": CLASSES,
        "images": POOL,
        "answered_per_class": [30, 15, 5],
        "kept_per_class": [12, 12, 5],
        "shown_per_class": [12, 12, 12],
        "edges": EDGES,
        "histogram": histogram,
        "known": histogram if has_truth else [0] * 20,
        "right": [0] * 10 + [1, 2, 2, 3, 3, 3, 4, 4, 5, 5] if has_truth else [0] * 20,
        "changed": changed,
        "changed_examples": []
        if changed is None
        else [
            {"index": 3, "before": 0, "after": 1, "confidence": 0.9, "truth": 1 if has_truth else UNKNOWN},
            {"index": 4, "before": 1, "after": 2, "confidence": 0.8, "truth": 0 if has_truth else UNKNOWN},
        ],
        "confident_errors": [{"index": 7, "label": 2, "confidence": 0.99, "truth": 0}] if has_truth else [],
    }


def fit(name, accuracy, control=False, **fields):
    result = {"test/accuracy": accuracy, **({"train/agreement": 0.8} if name.startswith("student") else {})}
    entry = {"name": name, "kind": "train", "control": control, "parameters": 7, "steps": 2, "labels": 4}
    entry |= {"validation": "none", "validation_images": 0, "model": {"_target_": "tutelage.models.LeNet5", "width": 1}}
    return {**entry, "result": result, **fields}


def label(name, right=0.7, changed=None):
    result = {"pool/images": POOL, "pool/kept": 29, "pool/shown": 36}
    result |= {} if right is None else {"pool/right": right}
    return {
        "name": name,
        "kind": "pseudo_label",
        "result": result if changed is None else {**result, "pool/changed": changed},
    }


RECORD = {
    "version": "0",
    "git": None,
    "data": {"test": 20},
    "stages": [
        fit("teacher", 0.6),
        label("labels-1"),
        fit("student-1", 0.7),
        label("labels-2", 0.8, 0.1),
        fit("student-2", 0.75),
        fit("control", 0.65, control=True),
    ],
}
NUMBERS = ["Over the rounds", "Pseudo-labels per class", "Confidence", "Reliability"]


def write_run(folder, *rounds):
    """Return a run's folder, the folders of its stages and its data: grey images that hold their index."""
    rng = np.random.default_rng(0)
    folders = {entry["name"]: RunFolder(folder / "stages" / entry["name"]) for entry in RECORD["stages"]}
    for name, content in zip(("labels-1", "labels-2"), rounds or (None, None), strict=True):
        folders[name].path.mkdir(parents=True)
        rows = {
            "index": np.arange(POOL),
            "label": rng.choice(CLASSES, POOL).tolist(),
            "confidence": rng.permutation(POOL).astype(np.float32) / POOL,
            "truth": [None] * POOL,
        }
        pq.write_table(pa.table(rows), folders[name].path / TABLE, row_group_size=8)
        if content is not None:
            (folders[name].path / ROUND).write_text(json.dumps(content))
    images = [np.full((8, 8, 1), index, dtype=np.uint8) for index in range(POOL)]
    names = [f"pool/{index}.png" for index in range(POOL)]
    source = SimpleNamespace(images=images, names=names, has_file_names=True)
    return RunFolder(folder), folders, SimpleNamespace(source=source)


@pytest.fixture
def tiled(monkeypatch):
    """Record the pictures that are drawn as tiles: (indices, titles, colours) of each."""
    tiles = []

    def draw_tiles(images, titles, columns, colors):
        tiles.append(([int(image[0, 0, 0]) for image in images], list(titles), list(colors)))
        return pictures.plt.figure()

    monkeypatch.setattr(pictures, "draw_tiles", draw_tiles)
    return tiles


def test_a_run_of_two_rounds_shows_numbers_then_examples(tmp_path, tiled):
    folder, folders, data = write_run(tmp_path, summarize(), summarize(changed=5))
    figures = draw_rounds(folder, RECORD, folders, data)
    assert [picture.heading for picture in figures] == [
        *NUMBERS,
        "Pseudo-labels",
        "Changed labels",
        "Confident errors in the pool",
    ]
    assert all(picture.file.is_file() and picture.file.parent == folder.report for picture in figures)
    assert "(5 of 50)" in figures[-2].caption
    _, changed, errors = tiled
    long = "a name that…"
    assert changed == (
        [3, 4],
        ["dog 90%\nwas: cat", f"{long} 80%\nwas: dog"],
        [pictures.CORRECT_COLOR, pictures.WRONG_COLOR],
    )
    assert errors == ([7], [f"{long} 99%\ntruth: cat\npool/7.png"], [pictures.WRONG_COLOR])


def test_an_older_run_shows_the_examples_of_its_labels_alone(tmp_path):
    folder, folders, data = write_run(tmp_path)
    assert [picture.heading for picture in draw_rounds(folder, RECORD, folders, data)] == ["Pseudo-labels"]


def test_a_run_that_labelled_nothing_shows_nothing(tmp_path):
    folder, folders, data = write_run(tmp_path, summarize(), summarize())
    record = {"stages": [fit("supervised", 0.5)]}
    assert draw_rounds(folder, record, folders, data) == []


def test_without_any_truth_there_is_no_precision_and_no_error_to_show(tmp_path, tiled):
    folder, folders, data = write_run(tmp_path, summarize(has_truth=False), summarize(has_truth=False, changed=5))
    figures = draw_rounds(folder, RECORD, folders, data)
    assert [picture.heading for picture in figures] == [*NUMBERS[:-1], "Pseudo-labels", "Changed labels"]
    assert set(tiled[-1][2]) == {pictures.TEXT_COLOR}


def test_examples_span_the_confidence_from_the_highest_down(tmp_path, tiled):
    folder, folders, data = write_run(tmp_path)
    draw_rounds(folder, RECORD, folders, data)
    (indices, titles, _) = tiled[0]
    table = pq.read_table(folders["labels-2"].path / TABLE).to_pydict()
    expected = sorted(range(POOL), key=lambda index: -table["confidence"][index])
    assert indices[0] == expected[0]
    assert indices[-1] == expected[-1]
    assert [index for index in expected if index in indices] == indices
    assert len(set(indices)) == 24
    index = indices[5]
    name = pictures.shorten_name(table["label"][index])
    assert titles[5] == f"{name} {table['confidence'][index]:.0%}"


def test_measures_of_labels_stand_at_the_student_that_learned_from_them():
    networks, series = collect_traces(RECORD)
    assert networks == ["teacher", "student-1", "student-2"]
    assert {trace.heading: dict(trace.values) for trace in series} == {
        "test accuracy": {0: 0.6, 1: 0.7, 2: 0.75},
        "pseudo-labels correct": {1: 0.7, 2: 0.8},
        "pseudo-labels changed": {2: 0.1},
        "agreement": {1: 0.8, 2: 0.8},
    }


def test_a_student_that_was_not_chosen_is_marked():
    record = {"stages": [fit("teacher", 0.6), label("labels-1"), fit("student-1", 0.5, rejected=True)]}
    assert collect_traces(record)[0] == ["teacher", "student-1\nrejected"]


def test_the_precision_is_the_fraction_of_correct_labels_drawn_beside_the_diagonal():
    first = round_pictures.draw_reliability({"round 1": summarize()}).axes[0]
    diagonal = first.lines[0]
    assert (diagonal.get_xdata() == diagonal.get_ydata()).all()
    dots = np.array(first.collections[0].get_offsets())
    assert dots[:, 0] == pytest.approx(np.arange(0.525, 1, 0.05))
    assert dots[:, 1] == pytest.approx(np.array([1, 2, 2, 3, 3, 3, 4, 4, 5, 5]) / 5)
    assert first.get_title(loc="left") == "round 1: 64.0 % correct"


def test_bins_of_few_images_are_faint_and_off_the_line():
    content = summarize()
    content |= {"known": [0] * 10 + [5, 40] + [0] * 8, "right": [0] * 10 + [5, 30] + [0] * 8}
    axes = round_pictures.draw_reliability({"round 1": content}).axes[0]
    assert axes.lines[1].get_ydata().tolist() == [0.75]
    few, many = axes.collections[0].get_facecolor()[:, 3]
    assert few < many


def test_the_histogram_stacks_right_wrong_and_unknown_to_the_whole_pool():
    content = summarize()
    content["known"] = [0] * 10 + [4] * 10
    content["right"] = [0] * 10 + [3] * 10
    axes = round_pictures.draw_confidence_histograms({"round 1": content}).axes[0]
    heights = np.array([bar.get_height() for bar in axes.patches]).reshape(3, 20)
    assert heights.sum() == pytest.approx(1.0)
    assert heights.sum(axis=1) == pytest.approx([30 / POOL, 10 / POOL, 10 / POOL])


@pytest.mark.parametrize("classes", [3, 40])
def test_each_class_has_a_bar_of_predictions_and_a_bar_of_selected_ones(classes):
    content = summarize()
    content["classes"] = [f"class {n}" for n in range(classes)]
    for key, value in (("answered", 9), ("kept", 5), ("shown", 7)):
        content[f"{key}_per_class"] = [value] * classes
    axes = round_pictures.draw_class_counts({"round 1": content, "round 2": content}).axes
    for panel in axes:
        assert [bar.get_width() for bar in panel.patches] == [9] * classes + [5] * classes
        assert len(panel.collections) == (classes == 3)  # strokes, where classes have names


def test_many_rounds_have_several_rows_of_panels():
    figure = round_pictures.draw_confidence_histograms({f"round {n}": summarize() for n in range(1, 7)})
    assert [axes.axison for axes in figure.axes] == [True] * 6 + [False] * 2


def test_the_table_says_how_many_labels_changed():
    assert build_header(RECORD)[5:9] == ("pseudo", "right", "changed", "val")
    assert [row[7] for row in build_rows(RECORD)] == ["-", "-", "10.0 %", "-"]
    assert "changed" in render_table(build_header(RECORD), build_rows(RECORD))


@pytest.mark.parametrize(("columns", "is_shown"), [("79", False), ("140", True)])
def test_on_the_screen_the_column_stands_where_there_is_room(columns, is_shown, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    print_table(RECORD)
    printed = capsys.readouterr().out
    assert ("changed" in printed.splitlines()[0]) is is_shown
    assert ("changed: the share" in printed) is is_shown
    assert "student-2" in printed


@pytest.mark.parametrize(
    ("columns", "is_in_cells"), [("79", False), ("140", True)]
)  # Wilson 1927: 15 of 20 right is 53.1 % to 88.8 %
def test_the_interval_of_the_accuracy_is_in_the_table_or_where_that_is_narrow_below_it(
    columns, is_in_cells, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", columns)
    print_table({**RECORD, "result": {"test/accuracy": 0.75}})
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("75.0 % (53.1 to 88.8)") == 1
    assert ("student-2 75.0 % (53.1 to 88.8), Wilson's 95% interval over these images." in printed) is not is_in_cells
    assert ("Test: 20 images; in brackets Wilson's 95% interval over these images." in printed) is is_in_cells


def test_a_run_of_one_round_has_no_such_column():
    one_round = {**RECORD, "stages": RECORD["stages"][:3]}
    assert "changed" not in build_header(one_round)
    assert all(len(row) == len(build_header(one_round)) for row in build_rows(one_round))
