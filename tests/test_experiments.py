"""Every experiment runs tiny; those whose data no clean clone has on data of the same form, made here."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from helpers.commands import command
from helpers.dataset_files import colour_columns, write_stl10
from helpers.images import random_images, write_images
from helpers.paths import EMOJI
from helpers.runs import only_run, run
from tutelage.options import conf_dir

NEEDING_DATA = ("image_folder_noisy_student", "stl10_noisy_student")
OTHERS = sorted({file.stem for file in (conf_dir() / "experiment").glob("*.yaml")} - set(NEEDING_DATA))
EACH = 3  # images a class


def write_labelled_stl10(folder):
    """Write STL-10's files with images of every class, so that each has a label."""
    write_stl10(folder)
    inner = folder / "stl10_binary"
    for part in ("train", "test"):
        (inner / f"{part}_X.bin").write_bytes(b"".join(map(colour_columns, random_images(10 * EACH, 96, 3))))
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
    overrides = [f"data.root={tmp_path / 'data'}", "debug=tiny", "data.num_workers=0"]
    assert run(outputs, f"experiment={name}", *overrides, "callbacks.report=true") == 0
    folder = only_run(outputs)
    record = json.loads((folder / "run.json").read_text())
    assert [stage["name"] for stage in record["stages"]] == [
        *("teacher", "labels-1", "student-1", "labels-2", "student-2", "control")
    ]
    assert "Over the rounds" in (folder / "report" / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_an_experiment_runs_tiny(name, tmp_path):
    overrides = [f"experiment={name}", "debug=tiny", "seed=0"]
    if name == "oquab2014_transfer":
        if not os.environ.get("CI") and not EMOJI.is_dir():
            pytest.skip(f"needs the npm packages of emoji in {EMOJI}")
        script = conf_dir() / "experiment" / "oquab2014_emoji.py"
        subprocess.run([sys.executable, script, EMOJI, tmp_path / "pictures"], check=True)
        overrides.append(f"data.root={tmp_path / 'pictures'}")
    process = command("tutelage.train", *overrides, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert list(tmp_path.glob(f"outputs/{name}/*/run.json"))
