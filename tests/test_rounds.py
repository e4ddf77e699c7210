"""The report's pictures of a noisy student's rounds, from rounds made by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tutelage.data import ROUND, TABLE, UNKNOWN
from tutelage.report import pictures, round_pictures
from tutelage.report.page import table as html_table
from tutelage.report.rounds import round_shown, traces
from tutelage.runs import RunFolder
from tutelage.terminal.table import header, print_table, rows

CLASSES = ["cat", "dog", "a name that is too long for a tile"]
EDGES = [number / 20 for number in range(21)]
POOL = 50


def told(known=True, changed=None):
    histogram = [0] * 10 + [5] * 10
    return {
        "classes": CLASSES,
        "images": POOL,
        "answered_per_class": [30, 15, 5],
        "kept_per_class": [12, 12, 5],
        "shown_per_class": [12, 12, 12],
        "edges": EDGES,
        "histogram": histogram,
        "known": histogram if known else [0] * 20,
        "right": [0] * 10 + [1, 2, 2, 3, 3, 3, 4, 4, 5, 5] if known else [0] * 20,
        "changed": changed,
        "changed_examples": []
        if changed is None
        else [
            {"index": 3, "before": 0, "after": 1, "confidence": 0.9, "truth": 1 if known else UNKNOWN},
            {"index": 4, "before": 1, "after": 2, "confidence": 0.8, "truth": 0 if known else UNKNOWN},
        ],
        "confident_errors": [{"index": 7, "label": 2, "confidence": 0.99, "truth": 0}] if known else [],
    }


def fit(name, accuracy, control=False, **more):
    result = {"test/accuracy": accuracy, **({"train/agreement": 0.8} if name.startswith("student") else {})}
    entry = {"name": name, "kind": "fit", "control": control, "parameters": 7, "steps": 2, "labels": 4}
    entry |= {"validation": "none", "validation_images": 0, "model": {"_target_": "tutelage.models.LeNet5", "width": 1}}
    return {**entry, "result": result, **more}


def label(name, right=0.7, changed=None):
    result = {"pool/images": POOL, "pool/kept": 29, "pool/shown": 36}
    result |= {} if right is None else {"pool/right": right}
    return {
        "name": name,
        "kind": "label",
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
NUMBERS = ["Over the rounds", "CachedLogits of each class", "Confidence", "Right at each confidence"]


def run_of(folder, *rounds):
    """Return a run's folder, the folders of its stages and its data: grey images that hold their index."""
    rng = np.random.default_rng(0)
    places = {entry["name"]: RunFolder(folder / "stages" / entry["name"]) for entry in RECORD["stages"]}
    for name, content in zip(("labels-1", "labels-2"), rounds or (None, None), strict=True):
        places[name].path.mkdir(parents=True)
        rows = {
            "index": np.arange(POOL),
            "label": rng.choice(CLASSES, POOL).tolist(),
            "confidence": rng.permutation(POOL).astype(np.float32) / POOL,
            "truth": [None] * POOL,
        }
        pq.write_table(pa.table(rows), places[name].path / TABLE, row_group_size=8)
        if content is not None:
            (places[name].path / ROUND).write_text(json.dumps(content))
    images = [np.full((8, 8, 1), index, dtype=np.uint8) for index in range(POOL)]
    return RunFolder(folder), places, SimpleNamespace(source=SimpleNamespace(images=images))


@pytest.fixture
def tiled(monkeypatch):
    """What is drawn as tiles: (indices, titles, colours) of each picture."""
    drawn = []

    def tiles(images, titles, columns, colors):
        drawn.append(([int(image[0, 0, 0]) for image in images], list(titles), list(colors)))
        return pictures.plt.figure()

    monkeypatch.setattr(pictures, "tiles", tiles)
    return drawn


def test_a_run_of_two_rounds_shows_numbers_then_examples(tmp_path, tiled):
    folder, places, data = run_of(tmp_path, told(), told(changed=5))
    shown = round_shown(folder, RECORD, places, data)
    assert [one.heading for one in shown] == [
        *NUMBERS,
        "Pseudo-labels",
        "Changed labels",
        "Confident errors in the pool",
    ]
    assert all(one.file.is_file() and one.file.parent == folder.report for one in shown)
    assert "(5 of 50)" in shown[-2].told
    _, changed, errors = tiled
    long = "a name that…"
    assert changed == ([3, 4], ["dog 90%\nwas: cat", f"{long} 80%\nwas: dog"], [pictures.GOOD, pictures.BAD])
    assert errors == ([7], [f"{long} 99%\ntruth: cat"], [pictures.BAD])


def test_an_older_run_shows_the_examples_of_its_labels_alone(tmp_path):
    folder, places, data = run_of(tmp_path)
    assert [one.heading for one in round_shown(folder, RECORD, places, data)] == ["Pseudo-labels"]


def test_a_run_that_labelled_nothing_shows_nothing(tmp_path):
    folder, places, data = run_of(tmp_path, told(), told())
    record = {"stages": [fit("supervised", 0.5)]}
    assert round_shown(folder, record, places, data) == []


def test_without_any_truth_there_is_no_precision_and_no_error_to_show(tmp_path, tiled):
    folder, places, data = run_of(tmp_path, told(known=False), told(known=False, changed=5))
    shown = round_shown(folder, RECORD, places, data)
    assert [one.heading for one in shown] == [*NUMBERS[:-1], "Pseudo-labels", "Changed labels"]
    assert set(tiled[-1][2]) == {pictures.INK}


def test_examples_span_the_confidence_from_the_surest_down(tmp_path, tiled):
    folder, places, data = run_of(tmp_path)
    round_shown(folder, RECORD, places, data)
    (indices, titles, _) = tiled[0]
    table = pq.read_table(places["labels-2"].path / TABLE).to_pydict()
    expected = sorted(range(POOL), key=lambda index: -table["confidence"][index])
    assert indices[0] == expected[0]
    assert indices[-1] == expected[-1]
    assert [index for index in expected if index in indices] == indices
    assert len(set(indices)) == 24
    place = indices[5]
    name = pictures.shortened(table["label"][place])
    assert titles[5] == f"{name} {table['confidence'][place]:.0%}"


def test_measures_of_labels_stand_at_the_student_that_learned_from_them():
    networks, found = traces(RECORD)
    assert networks == ["teacher", "student-1", "student-2"]
    assert {trace.heading: dict(trace.values) for trace in found} == {
        "test accuracy": {0: 0.6, 1: 0.7, 2: 0.75},
        "pseudo-labels right": {1: 0.7, 2: 0.8},
        "labels changed": {2: 0.1},
        "agreement": {1: 0.8, 2: 0.8},
    }


def test_a_student_that_was_not_chosen_is_marked():
    record = {"stages": [fit("teacher", 0.6), label("labels-1"), fit("student-1", 0.5, rejected=True)]}
    assert traces(record)[0] == ["teacher", "student-1\nrejected"]


def test_the_precision_drawn_is_the_share_that_is_right_beside_the_diagonal():
    first = round_pictures.reliability({"round 1": told()}).axes[0]
    diagonal = first.lines[0]
    assert (diagonal.get_xdata() == diagonal.get_ydata()).all()
    places = np.array(first.collections[0].get_offsets())
    assert places[:, 0] == pytest.approx(np.arange(0.525, 1, 0.05))
    assert places[:, 1] == pytest.approx(np.array([1, 2, 2, 3, 3, 3, 4, 4, 5, 5]) / 5)
    assert first.get_title(loc="left") == "round 1: 64.0 % right"


def test_bins_of_few_images_are_faint_and_off_the_line():
    content = told()
    content |= {"known": [0] * 10 + [5, 40] + [0] * 8, "right": [0] * 10 + [5, 30] + [0] * 8}
    axes = round_pictures.reliability({"round 1": content}).axes[0]
    assert axes.lines[1].get_ydata().tolist() == [0.75]
    few, many = axes.collections[0].get_facecolor()[:, 3]
    assert few < many


def test_the_histogram_stacks_right_wrong_and_unknown_to_the_whole_pool():
    content = told()
    content["known"] = [0] * 10 + [4] * 10
    content["right"] = [0] * 10 + [3] * 10
    axes = round_pictures.confidences({"round 1": content}).axes[0]
    heights = np.array([bar.get_height() for bar in axes.patches]).reshape(3, 20)
    assert heights.sum() == pytest.approx(1.0)
    assert heights.sum(axis=1) == pytest.approx([30 / POOL, 10 / POOL, 10 / POOL])


@pytest.mark.parametrize("classes", [3, 40])
def test_each_class_has_its_bar_of_answers_and_of_what_was_kept(classes):
    content = told()
    content["classes"] = [f"class {n}" for n in range(classes)]
    for key, value in (("answered", 9), ("kept", 5), ("shown", 7)):
        content[f"{key}_per_class"] = [value] * classes
    axes = round_pictures.kept_per_class({"round 1": content, "round 2": content}).axes
    for panel in axes:
        assert [bar.get_width() for bar in panel.patches] == [9] * classes + [5] * classes
        assert len(panel.collections) == (classes == 3)  # strokes, where classes have names


def test_many_rounds_have_several_rows_of_panels():
    figure = round_pictures.confidences({f"round {n}": told() for n in range(1, 7)})
    assert [axes.axison for axes in figure.axes] == [True] * 6 + [False] * 2


def test_the_table_says_how_many_labels_changed():
    assert header(RECORD)[5:9] == ("pseudo", "right", "changed", "val")
    assert [row[7] for row in rows(RECORD)] == ["-", "-", "10.0 %", "-"]
    assert "changed" in html_table(header(RECORD), rows(RECORD))


@pytest.mark.parametrize(("columns", "there"), [("79", False), ("140", True)])
def test_on_the_screen_the_column_stands_where_there_is_room(columns, there, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    print_table(RECORD)
    shown = capsys.readouterr().out
    assert ("changed" in shown.splitlines()[0]) is there
    assert ("changed: the share" in shown) is there
    assert "student-2" in shown


def test_a_run_of_one_round_has_no_such_column():
    once = {**RECORD, "stages": RECORD["stages"][:3]}
    assert "changed" not in header(once)
    assert all(len(row) == len(header(once)) for row in rows(once))
