"""Experiments whose data no clean clone has: each runs tiny on data of the same form, made here."""

import json

import numpy as np
import pytest

from conftest import ROOT, only_run, run
from test_data import write_images
from test_datasets import columns, pictures, write_stl10

NEEDING_DATA = ("image_folder_noisy_student", "stl10_noisy_student")
EACH = 3  # images a class


def write_labelled_stl10(folder):
    """Write STL-10's files with images of every class, so that each has a label."""
    write_stl10(folder)
    inner = folder / "stl10_binary"
    for part in ("train", "test"):
        (inner / f"{part}_X.bin").write_bytes(b"".join(map(columns, pictures(10 * EACH, 96, 3))))
        (inner / f"{part}_y.bin").write_bytes(bytes((np.arange(10 * EACH) % 10 + 1).tolist()))


def write_photos(folder):
    for label in ("cat", "dog"):
        write_images(folder / label, 5)
    write_images(folder / "unlabelled", 5)


WRITERS = {"stl10_noisy_student": write_labelled_stl10, "image_folder_noisy_student": write_photos}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDING_DATA)
def test_an_experiment_whose_data_ci_lacks_runs_tiny(name, tmp_path, outputs):
    WRITERS[name](tmp_path / "data")
    words = [f"data.root={tmp_path / 'data'}", "debug=tiny", "data.num_workers=0"]
    assert run(outputs, f"experiment={name}", *words, "callbacks.report=true") == 0
    folder = only_run(outputs)
    record = json.loads((folder / "run.json").read_text())
    assert [stage["name"] for stage in record["stages"]] == [
        *("teacher", "labels-1", "student-1", "labels-2", "student-2", "control")
    ]
    assert "Over the rounds" in (folder / "report" / "index.html").read_text()


def test_ci_leaves_out_these_two_and_no_other():
    ci = (ROOT / ".ci" / "run").read_text()
    assert f" {' | '.join(sorted(NEEDING_DATA, reverse=True))}) continue" in ci
    assert ci.count("continue") == 1
