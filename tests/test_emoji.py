"""Emoji by two vendors: what is a class, who is held out, what the further test set is."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from helpers.paths import EMOJI
from helpers.runs import only_run, run
from tutelage.config.compose import compose
from tutelage.data import data_module, fingerprint
from tutelage.data.datasets.emoji import OTHER, OWN, PACKAGES, _concept
from tutelage.errors import UserError

CONCEPTS = 22  # of each large class


def entry(code: str, name: str, **more) -> dict:
    return {"unified": code, "image": f"{code.lower()}.png", "category": "Things", "subcategory": name} | more


def listed() -> Sequence[dict]:
    """Two large classes, one too small, and what is left out: signs, the obsolete, and what Twitter lacks."""
    found = [entry(f"1F{600 + n}", "faces") for n in range(CONCEPTS)]
    for n in range(CONCEPTS):
        found += [entry(f"1F468-200D-1F{n:03}", "roles"), entry(f"1F469-200D-1F{n:03}", "roles")]
    found += [entry(f"2{n:03}", "few") for n in range(19)]
    found += [entry(f"3{n:03}", "arrows", category="Symbols") for n in range(CONCEPTS)]
    return [*found, entry("1F3C3", "faces", obsoleted_by="1F3C3-200D-2642-FE0F"), entry("1F999", "faces")]


def write_packages(top: Path) -> Path:
    for shade, (vendor, name) in enumerate(PACKAGES.items()):
        folder = top / "node_modules" / name
        drawings = folder / "img" / vendor / "64"
        drawings.mkdir(parents=True)
        (folder / "emoji.json").write_text(json.dumps(listed()))
        (folder / "package.json").write_text(json.dumps({"version": f"16.0.{shade}"}))
        for number, one in enumerate(listed()):
            if vendor == OTHER and one["unified"] == "1F999":
                continue
            pixels = np.zeros((64, 64, 4), dtype=np.uint8)
            pixels[16:48, 16:48] = (number % 200, number // 200, 90 * shade, 255)
            cv2.imwrite(str(drawings / one["image"]), pixels)
    return top


def config_of(root: Path, *words: str):
    return compose(["data=emoji", f"data.root={root}", *words])


def concepts(source, indices: np.ndarray) -> set[str]:
    return {_concept(Path(source.names[i]).stem.upper()) for i in indices}


def check(source) -> None:
    """What is true of any packages."""
    test, train, others = source.test, source.train, source.further_tests[OTHER]
    assert [source.names[i].removeprefix(f"{OWN}/") for i in test] == [
        source.names[i].removeprefix(f"{OTHER}/") for i in others
    ]
    assert (source.labels[test] == source.labels[others]).all()
    assert len({source.names[i] for i in np.concatenate([train, test, others])}) == len(source.labels)
    for c in range(len(source.classes)):
        learned, held_out = (concepts(source, part[source.labels[part] == c]) for part in (train, test))
        assert len(held_out) == 10 <= len(learned)
        assert not learned & held_out


def test_large_sub_categories_are_classes_and_no_concept_is_in_both_parts(tmp_path):
    source = data_module(config_of(write_packages(tmp_path)).data).source
    assert source.classes == ("faces", "roles")
    check(source)
    assert np.bincount(source.labels[source.train]).tolist() == [12, 24]  # a man and a woman to each role
    assert np.bincount(source.labels[source.test]).tolist() == [10, 20]


def test_drawings_lie_on_the_background_at_the_configs_size(tmp_path):
    config = config_of(write_packages(tmp_path), "data.image_size=32")
    source = data_module(config.data).source
    assert source.images.shape[1:] == (32, 32, 3)
    assert (source.images[:, 0, 0] == 255).all()
    first = source.test[0]
    number = [one["image"] for one in listed()].index(source.names[first].removeprefix(f"{OWN}/"))
    assert source.images[first, 16, 16].tolist() == [0, number // 200, number % 200]  # red, green and blue
    assert (source.images[source.further_tests[OTHER], 16, 16, 0] == 90).all()  # the other vendor's colour


def test_the_split_is_the_same_for_every_seed_and_another_class_changes_no_other(tmp_path):
    root = write_packages(tmp_path)
    one, two = (data_module(config_of(root, f"seed={seed}").data).source for seed in (0, 1))
    assert one.test.tolist() == two.test.tolist()


def test_the_versions_of_the_packages_are_what_the_data_is(tmp_path):
    assert fingerprint(config_of(write_packages(tmp_path)).data) == "16.0.0 16.0.1"


def test_packages_that_are_missing_or_damaged_end_in_one_line(tmp_path):
    with pytest.raises(UserError, match="npm install --prefix .* emoji-datasource-google emoji-datasource-twitter"):
        fingerprint(config_of(tmp_path).data)
    write_packages(tmp_path)
    drawing = next((tmp_path / "node_modules" / PACKAGES[OWN] / "img" / OWN / "64").glob("1f6*.png"))
    drawing.write_bytes(drawing.read_bytes()[:60])
    with pytest.raises(UserError, match=rf"{drawing.name}: .*npm install its package again"):
        data_module(config_of(tmp_path).data).source  # noqa: B018 - read when asked for
    (tmp_path / "node_modules" / PACKAGES[OWN] / "emoji.json").write_text("[")
    with pytest.raises(UserError, match="emoji.json: cannot be read"):
        data_module(config_of(tmp_path).data).source  # noqa: B018 - as above


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
def test_by_hand_variants_share_a_concept(code, concept):
    assert _concept(code) == concept


def test_a_run_measures_the_other_vendors_drawings_too(outputs, tmp_path):
    words = ("data=emoji", f"data.root={write_packages(tmp_path / 'npm')}", "model=perceptron", "schedule.steps=3")
    assert run(outputs, *words, "schedule.epochs=null") == 0
    record = json.loads((only_run(outputs) / "run.json").read_text())
    assert {"test/accuracy", f"test-{OTHER}/accuracy"} <= set(record["result"])


def test_the_real_packages_are_read_whole():
    if not os.environ.get("CI") and not EMOJI.is_dir():
        pytest.skip(f"needs npm install --prefix {EMOJI} {' '.join(PACKAGES.values())}")
    source = data_module(config_of(EMOJI, "data.labels_per_class=10").data).source
    check(source)
    assert len(source.classes) >= 20
    assert {"animal-mammal", "food-fruit", "transport-ground"} <= set(source.classes)
    own, other = source.images[source.test], source.images[source.further_tests[OTHER]]
    assert (own != other).any(axis=(1, 2, 3)).mean() > 0.99  # two hands
