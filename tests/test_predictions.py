"""``test.parquet``, the predictions on the test set, and the file names in reports."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from tutelage.data import Predictions, Source
from tutelage.data.source import IndexNames, empty_indices
from tutelage.report.pictures import shorten_path
from tutelage.runs.predictions import read_predictions, write_predictions

NAMES = ("train/cat/a.jpg", "test/cat/b.jpg", "test/dög/c d.jpg", "test/" + 40 * "x" + "/0001.jpg")
CLASSES = ("cat", "dög", "$x$", "cat")  # the last one of an earlier task
PREDICTIONS = Predictions(
    np.array([[0.7, 0.2, 0.1, 0.0], [0.1, 0.3, 0.6, 0.0], [0.0, 0.1, 0.2, 0.7]], dtype=np.float32),
    np.array([1, -1, 0]),
    np.array([3, 1, 2]),
)


def make_source(names) -> Source:
    parts = {part: empty_indices() for part in ("train", "test", "val", "unlabelled")}
    return Source(np.zeros((4, 1, 1, 1), np.uint8), np.zeros(4, np.int64), CLASSES[:3], names=names, **parts)


@pytest.mark.parametrize("names", [NAMES, IndexNames(4)])
def test_the_table_names_files_and_classes_and_keeps_the_predictions(tmp_path, names):
    file = tmp_path / "test.parquet"
    write_predictions(file, PREDICTIONS, CLASSES, make_source(names))
    table = pq.read_table(file)
    expected = {"index": [3, 1, 2], "path": [NAMES[3], NAMES[1], NAMES[2]]}
    expected |= {"truth": ["dög", None, "cat"], "predicted": ["cat", "$x$", "cat"]}
    if names is not NAMES:
        del expected["path"]
    assert table.drop_columns("probabilities").to_pydict() == expected
    assert str(table.schema.field("probabilities").type) == "fixed_size_list<element: float>[4]"
    assert json.loads(table.schema.metadata[b"classes"]) == list(CLASSES)
    read = read_predictions(file)
    assert (read.labels == PREDICTIONS.labels).all() and (read.indices == PREDICTIONS.indices).all()
    assert (read.probabilities == PREDICTIONS.probabilities).all()


def test_a_picture_shows_the_end_of_a_long_file_name():
    assert shorten_path(NAMES[0]) == "train/cat/a.jpg"
    shortened = shorten_path(NAMES[3])
    assert shortened == "test…xxxx/0001.jpg"
