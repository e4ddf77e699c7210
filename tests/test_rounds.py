"""The report's pictures of a noisy student's rounds, from rounds made by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tutelage.data import ROUND, TABLE, UNKNOWN
from tutelage.report.answers import Bins
from tutelage.report.panels import draw_histogram, draw_reliability
from tutelage.report.rounds import make_class_counts, make_measures, make_rounds
from tutelage.report.templating import Bar
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


def write_run(folder, *rounds):
    """Return the folders of a run's stages, and its data: grey images that hold their index."""
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
    return folders, source


def describe(gallery):
    """Return the lines of a gallery's tiles, and which are marked as wrong."""
    return [list(tile.lines) for tile in gallery.tiles], [tile.is_wrong for tile in gallery.tiles]


def make_bins(content):
    return Bins(*(np.array(content[key]) for key in ("edges", "known", "right")))


def test_a_run_of_two_rounds_shows_numbers_then_examples(tmp_path):
    rounds = make_rounds(RECORD, *write_run(tmp_path, summarize(), summarize(changed=5)))
    assert [chart.heading for chart in rounds.measures] == ["Over the rounds"]
    assert [(group.heading, len(group.panels)) for group in rounds.panels] == [("Confidence", 2), ("Reliability", 2)]
    headings = ["Pseudo-labels", "Changed labels", "Confident errors in the pool"]
    assert [gallery.heading for gallery in rounds.galleries] == headings
    _, changed, errors = rounds.galleries
    assert "(5 of 50)" in changed.caption
    long = CLASSES[2]
    lines = [["dog, 90%", "was: cat", "pool/3.png"], [f"{long}, 80%", "was: dog", "truth: cat", "pool/4.png"]]
    assert describe(changed) == (lines, [False, True])
    assert describe(errors) == ([[f"{long}, 99%", "truth: cat", "pool/7.png"]], [True])
    assert [tile.keys["is"] for tile in changed.tiles] == ["right", "wrong"]


def test_an_older_run_shows_the_examples_of_its_labels_alone(tmp_path):
    rounds = make_rounds(RECORD, *write_run(tmp_path))
    assert [gallery.heading for gallery in rounds.galleries] == ["Pseudo-labels"]
    assert (rounds.measures, rounds.classes, rounds.panels) == ([], None, [])


def test_a_run_that_labelled_nothing_shows_nothing(tmp_path):
    record = {"stages": [fit("supervised", 0.5)]}
    assert make_rounds(record, *write_run(tmp_path, summarize(), summarize())) is None


def test_without_any_truth_there_is_no_precision_and_no_error_to_show(tmp_path):
    content = summarize(has_truth=False), summarize(has_truth=False, changed=5)
    rounds = make_rounds(RECORD, *write_run(tmp_path, *content))
    assert [group.heading for group in rounds.panels] == ["Confidence"]
    assert [gallery.heading for gallery in rounds.galleries] == ["Pseudo-labels", "Changed labels"]
    assert not any(tile.is_wrong or "is" in tile.keys for gallery in rounds.galleries for tile in gallery.tiles)
    assert rounds.galleries[0].caption.endswith("The true classes are unknown.")


def test_examples_span_the_confidence_from_the_highest_down(tmp_path):
    folders, source = write_run(tmp_path)
    (examples,) = make_rounds(RECORD, folders, source).galleries
    table = pq.read_table(folders["labels-2"].path / TABLE).to_pydict()
    expected = sorted(range(POOL), key=lambda index: -table["confidence"][index])
    indices = [source.names.index(tile.lines[-1]) for tile in examples.tiles]
    assert indices[0] == expected[0]
    assert indices[-1] == expected[-1]
    assert [index for index in expected if index in indices] == indices
    assert len(set(indices)) == 24
    index = indices[5]
    assert examples.tiles[5].lines[0] == f"{table['label'][index]}, {table['confidence'][index]:.0%}"


def test_measures_of_labels_stand_at_the_student_that_learned_from_them():
    (chart,) = make_measures(RECORD)
    assert chart.x_labels == ["teacher", "student-1", "student-2"]
    assert {line.name: dict(zip(line.x, line.y, strict=True)) for line in chart.lines} == {
        "test accuracy": {0: 0.6, 1: 0.7, 2: 0.75},
        "pseudo-labels correct": {1: 0.7, 2: 0.8},
        "agreement": {1: 0.8, 2: 0.8},
    }


def test_changes_have_a_chart_of_their_own_once_there_are_two():
    stages = [*RECORD["stages"], label("labels-3", 0.8, 0.05), fit("student-3", 0.76)]
    chart, changes = make_measures({"stages": stages})
    assert len(chart.x_labels) == len(changes.x_labels) == 4
    assert [(line.x, line.y) for line in changes.lines] == [([2, 3], [0.1, 0.05])]


def test_a_student_that_was_not_chosen_is_marked():
    record = {"stages": [fit("teacher", 0.6), label("labels-1"), fit("student-1", 0.5, rejected=True)]}
    assert make_measures(record)[0].x_labels == ["teacher", "student-1 (rejected)"]


def test_the_precision_is_the_fraction_of_correct_labels_drawn_beside_the_diagonal():
    panel = draw_reliability("round 1", make_bins(summarize()), low=0.5)
    assert [dot.x for dot in panel.dots] == pytest.approx(np.arange(0.525, 1, 0.05))
    assert [dot.y for dot in panel.dots] == pytest.approx(np.array([1, 2, 2, 3, 3, 3, 4, 4, 5, 5]) / 5)
    left, top, right, bottom = panel.field
    assert (panel.x(0.5), panel.x(1.0), panel.y(0.0), panel.y(1.0)) == (left, right, bottom, top)
    assert panel.x_ticks == pytest.approx([0.6, 0.8, 1.0])


def test_bins_of_few_images_are_faint_and_off_the_line():
    content = summarize() | {"known": [0] * 10 + [5, 40] + [0] * 8, "right": [0] * 10 + [5, 30] + [0] * 8}
    panel = draw_reliability("round 1", make_bins(content), low=0.5)
    few, many = panel.dots
    assert (few.is_faint, many.is_faint) == (True, False)
    assert few.radius < many.radius
    assert panel.path == f"{panel.x(many.x)},{panel.y(0.75)}"


def test_the_histogram_stacks_right_wrong_and_unknown_to_the_whole_pool():
    content = summarize()
    content["known"] = [0] * 10 + [4] * 10
    content["right"] = [0] * 10 + [3] * 10
    panel = draw_histogram("round 1", make_bins(content), np.array(content["histogram"]), 0.5, 0.1)
    shares = {
        kind: sum(bar.y_end - bar.y for bar in panel.bars if bar.kind == kind) for kind in ("right", "wrong", "unknown")
    }
    assert shares == pytest.approx({"right": 30 / POOL, "wrong": 10 / POOL, "unknown": 10 / POOL})
    for below, above in zip(panel.bars, panel.bars[1:], strict=False):
        assert above.y == (below.y_end if above.x == below.x else 0)


@pytest.mark.parametrize("classes", [3, 40])
def test_each_class_has_a_bar_of_predictions_and_a_bar_of_selected_ones(classes):
    content = summarize()
    content["classes"] = [f"class {n}" for n in range(classes)]
    for key, value in (("answered", 9), ("kept", 5), ("shown", 7)):
        content[f"{key}_per_class"] = [value] * classes
    table = make_class_counts({"round 1": content, "round 2": content})
    row = [Bar("5 of 9", 5 / 9, 1.0), "7"]
    assert [list(cells) for cells in table.rows] == [[name, *row, *row] for name in content["classes"]]
    assert table.is_searchable is (classes == 40)


def test_the_table_says_how_many_labels_changed():
    assert build_header(RECORD)[5:9] == ("pseudo", "right", "changed", "val")
    assert [row[7] for row in build_rows(RECORD)] == ["-", "-", "10.0 %", "-"]


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
