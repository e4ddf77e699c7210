"""Every experiment runs tiny; those whose data no clean clone has on data of the same form, made here."""

import json
import os

import numpy as np
import pytest

from conftest import command, only_run, run
from test_data import write_images
from test_datasets import columns, pictures, write_stl10
from test_emoji import REAL
from tutelage.config.options import conf_dir

NEEDING_DATA = ("image_folder_noisy_student", "stl10_noisy_student")
OTHERS = sorted({file.stem for file in (conf_dir() / "experiment").glob("*.yaml")} - set(NEEDING_DATA))
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


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_an_experiment_runs_tiny(name, tmp_path):
    words = [f"experiment={name}", "debug=tiny", "seed=0"]
    if name == "oquab2014_transfer":
        if not os.environ.get("CI") and not REAL.is_dir():
            pytest.skip(f"needs the npm packages of emoji in {REAL}")
        words.append(f"data.root={REAL}")
    done = command("tutelage.train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob(f"outputs/{name}/*/run.json"))
