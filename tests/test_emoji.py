"""The image folder of oquab2014_transfer: what a class is, which concepts are held out, what the second test set is."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from helpers.paths import EMOJI, ROOT
from helpers.runs import only_run, run
from tutelage.config.compose import compose
from tutelage.data import data_module

SCRIPT = ROOT / "conf" / "experiment" / "oquab2014_emoji.py"
CONCEPTS = 22  # of each large class


def load_script():
    spec = importlib.util.spec_from_file_location("oquab2014_emoji", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["oquab2014_emoji"] = module
    spec.loader.exec_module(module)
    return module


emoji = load_script()


def make_entry(code: str, name: str, **fields) -> dict:
    return {"unified": code, "image": f"{code.lower()}.png", "category": "Things", "subcategory": name} | fields


def list_entries() -> Sequence[dict]:
    """Two large classes, a small one, and emoji that are left out: signs, an obsolete one, one that Twitter lacks."""
    entries = [make_entry(f"1F{600 + n}", "faces") for n in range(CONCEPTS)]
    for n in range(CONCEPTS):
        entries += [make_entry(f"1F468-200D-1F{n:03}", "roles"), make_entry(f"1F469-200D-1F{n:03}", "roles")]
    entries += [make_entry(f"2{n:03}", "few") for n in range(19)]
    entries += [make_entry(f"3{n:03}", "arrows", category="Symbols") for n in range(CONCEPTS)]
    obsolete = make_entry("1F3C3", "faces", obsoleted_by="1F3C3-200D-2642-FE0F")
    return [*entries, obsolete, make_entry("1F999", "faces")]


def write_packages(packages: Path) -> Path:
    for shade, vendor in enumerate((emoji.TRAINED, emoji.OTHER)):
        package = packages / "node_modules" / f"emoji-datasource-{vendor}"
        drawings = package / "img" / vendor / "64"
        drawings.mkdir(parents=True)
        (package / "emoji.json").write_text(json.dumps(list_entries()))
        for number, entry in enumerate(list_entries()):
            if vendor == emoji.OTHER and entry["unified"] == "1F999":
                continue
            pixels = np.zeros((64, 64, 4), dtype=np.uint8)
            pixels[16:48, 16:48] = (number % 200, number // 200, 90 * shade, 255)
            cv2.imwrite(str(drawings / entry["image"]), pixels)
    return packages


def write_pictures(folder: Path) -> Path:
    emoji.write_folder(write_packages(folder / "npm"), folder / "pictures")
    return folder / "pictures"


def list_files(pictures: Path, part: str) -> set[str]:
    return {str(path.relative_to(pictures / part)) for path in (pictures / part).rglob("*.png")}


def list_concepts(files: set[str]) -> dict[str, set[str]]:
    concepts: dict[str, set[str]] = {}
    for file in files:
        category, name = file.split("/")
        concepts.setdefault(category, set()).add(emoji.find_concept(name.removesuffix(".png").upper()))
    return concepts


def check_pictures(pictures: Path) -> None:
    """Check the properties that hold for every version of the packages."""
    train, test, other = (list_files(pictures, part) for part in ("train", "test", f"test-{emoji.OTHER}"))
    assert test == other
    assert not train & test
    learned, held_out = list_concepts(train), list_concepts(test)
    assert set(learned) == set(held_out)
    for category, concepts in held_out.items():
        assert len(concepts) == 10 <= len(learned[category])
        assert not learned[category] & concepts


def test_large_sub_categories_are_classes_and_no_concept_is_in_both_parts(tmp_path):
    pictures = write_pictures(tmp_path)
    check_pictures(pictures)
    counts = {
        part: {folder.name: len(list(folder.iterdir())) for folder in (pictures / part).iterdir()}
        for part in ("train", "test")
    }
    assert counts == {"train": {"faces": 12, "roles": 24}, "test": {"faces": 10, "roles": 20}}  # a man and a woman each


def test_the_folder_is_whole_or_absent_and_written_once(tmp_path, monkeypatch):
    packages, copied, copyfile = write_packages(tmp_path / "npm"), [], shutil.copyfile

    def fail_at_the_third(*paths) -> None:
        copied.append(paths)
        if len(copied) == 3:
            raise OSError("no space left")
        copyfile(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(emoji.shutil, "copyfile", fail_at_the_third)
        with pytest.raises(OSError, match="no space left"):
            emoji.write_folder(packages, tmp_path / "pictures")
    assert {path.name for path in tmp_path.iterdir()} == {"npm"}
    emoji.write_folder(packages, tmp_path / "pictures")
    monkeypatch.setattr(emoji.shutil, "copyfile", None)
    emoji.write_folder(packages, tmp_path / "pictures")
    check_pictures(tmp_path / "pictures")


def test_packages_that_are_missing_end_in_one_line(tmp_path):
    arguments = [sys.executable, str(SCRIPT), str(tmp_path), str(tmp_path / "pictures")]
    completed = subprocess.run(arguments, capture_output=True, text=True)
    assert completed.returncode == 1
    (line,) = completed.stderr.splitlines()
    assert "npm install --prefix" in line


@pytest.mark.parametrize(
    ("code", "concept"),
    [
        ("1F3C3", "1F3C3"),  # runner
        ("1F3C3-200D-2640-FE0F", "1F3C3"),  # woman running
        ("1F3C3-200D-2642-FE0F-200D-27A1-FE0F", "1F3C3"),  # man running to the right
        ("1F9D1-200D-1F680", "1F680"),  # astronaut
        ("1F469-200D-1F680", "1F680"),  # woman astronaut
        ("1F469", "1F469"),  # woman
        ("2640-FE0F", "2640-FE0F"),  # the female sign itself
    ],
)
def test_variants_share_a_concept(code, concept):
    assert emoji.find_concept(code) == concept


def test_a_run_is_tested_on_the_other_vendors_drawings_too(outputs, tmp_path):
    words = (
        "data=image_folder",
        "recipe=none",
        f"data.root={write_pictures(tmp_path)}",
        "model=perceptron",
        "schedule.steps=3",
    )
    assert run(outputs, *words, "schedule.epochs=null") == 0
    record = json.loads((only_run(outputs) / "run.json").read_text())
    assert {"test/accuracy", f"test-{emoji.OTHER}/accuracy"} <= set(record["result"])


def test_the_real_packages_make_twenty_classes(tmp_path):
    if not os.environ.get("CI") and not EMOJI.is_dir():
        pytest.skip(f"needs npm install --prefix {EMOJI} emoji-datasource-google emoji-datasource-twitter")
    emoji.write_folder(EMOJI, tmp_path / "pictures")
    check_pictures(tmp_path / "pictures")
    words = ["data=image_folder", "recipe=none", f"data.root={tmp_path / 'pictures'}", "data.labels_per_class=10"]
    source = data_module(compose(words).data).source
    assert (len(source.classes), len(source.train), len(source.test)) == (20, 460, 216)
    assert {"animal-mammal", "food-fruit", "transport-ground"} <= set(source.classes)
    tested = [
        np.stack([source.images[int(index)] for index in indices])
        for indices in (source.test, source.further_tests[emoji.OTHER])
    ]
    assert (tested[0] != tested[1]).any(axis=(1, 2, 3)).mean() > 0.99  # two vendors' drawings
