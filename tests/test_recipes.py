"""Recipes: settings that fit the pictures, chosen by a look at them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers.images import write_images
from helpers.overrides import QUIET
from tutelage.app.recipe_file import show_recipe
from tutelage.app.recipes import read_recipe
from tutelage.config import DataConfig
from tutelage.config.compose import compose
from tutelage.config.options import conf_dir, list_options
from tutelage.data.look import MAX_HEADERS, _spread, look_at_data
from tutelage.errors import UserError
from tutelage.runs.identity import run_identity
from tutelage.sweeps.overrides import compose_sweep_values
from tutelage.terminal.recipe import describe_recipe

RECIPES = [name for name in list_options()["recipe"] if name not in {"auto", "none"}]
DATA = {"image_size": 64, "channels": 3, "mean": [0.5], "std": [0.5], "batch_size": 64}


def write_pictures(folder: Path, size: tuple[int, int], mode: str = "RGB", suffix: str = ".png", count: int = 3) -> Path:
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new(mode, size, number).save(folder / label / f"{number}{suffix}")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("small"), (28, 20), "L", count=10)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("photos"), (100, 80), "RGB", ".jpg")


def compose_for(root: Path, *overrides: str):
    return compose([*QUIET, "data=image_folder", f"data.root={root}", *overrides])


def options(root: Path, *overrides: str) -> dict[str, str]:
    return compose_for(root, *overrides).recipe.options


def test_a_look_counts_pictures_and_reads_their_headers(tmp_path):
    write_pictures(tmp_path / "train", (30, 20), "L", count=8)
    write_pictures(tmp_path / "test", (900, 900))
    write_images(tmp_path / "unlabelled", 5, (10, 40))
    (tmp_path / "train" / "cat" / "broken.png").write_bytes(b"no picture")
    look = look_at_data(
        DataConfig.model_validate(DATA | {"_target_": "tutelage.data.ImageFolder", "root": str(tmp_path), "labels": 6})
    )
    assert (look.classes, look.labels, look.pool, look.test) == (2, 6, 17 - 6 + 5, 6)
    assert (look.side, look.sides, look.is_grey, look.photographs) == (30, (30, 40), False, 0)


@given(st.integers(1, 5000))
def test_a_look_is_at_most_at_so_many_files_and_at_both_ends(count):
    import numpy as np

    chosen = _spread(np.arange(count))
    assert len(set(chosen)) == len(chosen) == min(count, MAX_HEADERS)
    assert {chosen[0], chosen[-1]} == {0, count - 1} if count > 1 else chosen == [0]
