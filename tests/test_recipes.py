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
from tutelage.data.look import MAX_HEADERS, _spread, look_at_data
from tutelage.errors import UserError
from tutelage.options import conf_dir, list_options
from tutelage.runs.identity import run_identity
from tutelage.sweeps.overrides import compose_sweep_values
from tutelage.terminal.recipe import describe_recipe

RECIPES = [name for name in list_options()["recipe"] if name not in {"auto", "none"}]
DATA = {"image_size": 64, "channels": 3, "mean": [0.5], "std": [0.5], "batch_size": 64}


def write_pictures(
    folder: Path, size: tuple[int, int], mode: str = "RGB", suffix: str = ".png", count: int = 3
) -> Path:
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
    write_images(tmp_path / "unlabelled", 5, size=(10, 40))
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


def test_the_recipe_follows_from_the_pictures(small, photos):
    config = compose_for(small)
    assert (config.recipe.name, config.recipe.options["model"]) == ("small_images", "tiny_vgg")
    assert (config.data.image_size, config.data.channels, config.data.mean) == (28, 1, [0.5])
    assert (config.data.mirror, config.init_from) == (0, None)
    config = compose_for(photos)
    assert (config.recipe.name, config.recipe.options["model"]) == ("photos_small", "efficientnet_lite0")
    assert (config.data.channels, config.data.mirror) == (3, 0.5)
    assert config.init_from.startswith("package:")


def test_weight_decay_follows_the_labels_and_long_pictures_stay_whole(photos, tmp_path):
    assert compose_for(photos).optimizer.weight_decay == 0.02  # 1 / (10 * 5): of 6 pictures, one is tested on
    assert compose_for(photos, "data.labels_per_class=1").optimizer.weight_decay == 0.05
    assert compose_for(photos).data.fit == "crop"
    assert compose_for(write_pictures(tmp_path, (50, 100)), "data.mirror=0").data.fit == "pad"


@pytest.mark.parametrize("data", ["digits", "imagenet"])
def test_other_data_has_no_recipe(data, small):
    words = [f"data={data}", *([f"data.root={small}"] if data == "imagenet" else [])]
    assert compose([*QUIET, *words]).recipe is None
    assert compose([*QUIET, *words]) == compose([*QUIET, *words, "recipe=none"])


@pytest.mark.slow
def test_a_strategy_gets_the_views_keys_and_rates_that_it_needs(small, photos):
    assert options(small)["augmentation"] == "randaugment"
    assert options(small, "data.labels=4", "strategy=mean_teacher")["augmentation"] == "weak_strong"
    assert options(small, "data.labels=4", "strategy=fixmatch", "augmentation=affine")["augmentation"] == "affine"
    assert compose_for(photos).strategy.control is False
    frozen = compose_for(photos, "strategy=transfer_frozen", "strategy.control=true")
    assert (frozen.recipe.name, frozen.strategy.control) == ("photos_small", True)
    for root, strategy in ((photos, "supervised"), (photos, "fixmatch"), (small, "transfer_finetune")):
        config = compose_for(root, f"strategy={strategy}", "data.labels=4")
        assert (config.recipe.name, config.optimizer.backbone_lr_scale) == ("fine_tuning", 0.1)
    neighbours = compose_for(small, "model=nearest_neighbours")
    assert describe_recipe(neighbours)[4].endswith("strategy=supervised; one pass")


def test_what_is_typed_wins_and_its_keys_may_be_those_of_the_recipes_network(small, photos):
    config = compose_for(small, "model.dropout=0.3", "data.image_size=20", "optimizer.lr=0.5", "schedule.steps=7")
    assert (config.model.dropout, config.data.image_size, config.optimizer.lr) == (0.3, 20, 0.5)
    assert (config.schedule.steps, config.schedule.epochs, config.schedule.min_steps) == (7, None, 0)
    assert config.recipe.reasons["schedule.epochs"] == config.recipe.reasons["optimizer.lr"] == "as you have chosen"
    assert config.recipe.reasons["data.mean"] != "as you have chosen"
    for channels in (1, 3):
        assert compose_for(small, f"data.channels={channels}").data.mean == [0.5] * channels
    for words in (["model=resnet"], ["init_from=null"]):
        config = compose_for(photos, *words)
        assert (config.recipe.name, config.init_from, config.data.image_size) == ("small_images", None, 64)
    config = compose_for(photos, "model=timm", "init_from=timm:resnet18.a1_in1k")
    assert (config.recipe.name, config.model.name) == ("fine_tuning", "resnet18")


def test_an_experiment_wins_over_the_recipe(small, tmp_path):
    (tmp_path / "experiment").mkdir()
    lines = ["# @package _global_", "defaults:", "  - override /data: image_folder", "  - override /model: resnet"]
    lines += ["  - override /strategy: supervised", f"data: {{root: {small}}}", "optimizer: {lr: 0.125}"]
    (tmp_path / "experiment" / "mine.yaml").write_text("\n".join(lines))
    config = compose(["experiment=mine", "data.labels=4"], [str(tmp_path)])
    assert (config.recipe.options["model"], config.recipe.options["strategy"]) == ("resnet", "supervised")
    assert (config.optimizer.lr, config.data.image_size) == (0.125, 28)


def test_a_recipe_of_ones_own_is_chosen_by_name(small, tmp_path):
    (tmp_path / "recipe").mkdir()
    text = "# @package _global_\noptimizer:\n  lr: 0.25 # as I like\ndata:\n  image_size: ${found.image_size}\n"
    (tmp_path / "recipe" / "mine.yaml").write_text(text)
    words = ["data=image_folder", f"data.root={small}", "recipe=mine"]
    config = compose(words, [str(tmp_path)])
    assert (config.optimizer.lr, config.data.image_size) == (0.25, 28)
    assert ["optimizer.lr", "0.25", "as I like"] in [
        line.split(maxsplit=2) for line in show_recipe(words, [str(tmp_path)], None)
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_every_key_of_a_recipe_has_a_reason_and_goes_with_any_data(name):
    file = read_recipe(name, [conf_dir()])
    assert not [key for key in (*file.groups, *file.values) if not file.reasons.get(key)]
    assert compose(["data=digits", f"recipe={name}"]).recipe.name == name


def test_the_same_keys_typed_are_the_same_run(small):
    config = compose_for(small, "data.labels=4")
    typed = {key: value for key, value in config.recipe.options.items() if key in {"model", "augmentation", "strategy"}}
    keys = ("data.image_size", "data.channels", "data.mean", "data.std", "data.mirror", "data.batch_size")
    words = [f"{group}={option}" for group, option in typed.items()]
    words += [f"{key}={str(getattr(config.data, key[5:])).replace(' ', '')}" for key in keys]
    file = read_recipe("small_images", [conf_dir()])
    words += [f"{key}={value}" for key, value in file.values.items() if not key.startswith("data.")]
    by_hand = compose_for(small, "recipe=none", "data.labels=4", *words)
    assert by_hand.recipe is None
    assert run_identity(by_hand, "f") == run_identity(config, "f")


def test_each_job_of_a_sweep_has_its_own_recipe(small, photos):
    words = ["data=image_folder", f"data.root={small},{photos}", "data.labels=4,null", "model.dropout=0.1"]
    configs, _ = compose_sweep_values(words)
    assert [config.recipe.name for config in configs] == ["small_images", "photos_small", "small_images"]


SAVED = (
    [],
    ["data.labels=4", "seed=3", "optimizer=sgd", "model.dropout=0.25"],
    ["name=mine", "strategy=noisy_student", "strategy.confidence=0.25"],
    *([f"recipe={name}"] for name in RECIPES),
)


@pytest.mark.parametrize(
    ("folder", "words"), [*(("small", words) for words in SAVED[:3]), *(("photos", w) for w in SAVED)]
)
def test_a_saved_recipe_is_the_same_config(folder, words, request, tmp_path):
    words = ["data=image_folder", f"data.root={request.getfixturevalue(folder)}", *words]
    show_recipe(words, [str(tmp_path)], "saved")
    saved, direct = compose(["experiment=saved"], [str(tmp_path)]), compose(words)
    assert saved.recipe is None
    assert saved.model_copy(update={"name": direct.name}) == direct.model_copy(update={"recipe": None})


def test_a_saved_recipe_takes_the_name_of_no_experiment(small, tmp_path):
    words = ["data=image_folder", f"data.root={small}"]
    show_recipe(words, [str(tmp_path)], "mine")
    for name in ("mine", "cubuk2020"):
        with pytest.raises(UserError, match=f"--save {name}: there is an experiment of this name"):
            show_recipe(words, [str(tmp_path)], name)


def test_an_option_of_data_of_ones_own_wins_over_the_recipe(photos, tmp_path):
    (tmp_path / "data").mkdir()
    text = f"defaults:\n  - image_folder\nroot: {photos}\nimage_size: 96\nmirror: 0.0\n"
    (tmp_path / "data" / "mine.yaml").write_text(text)
    config = compose(["data=mine"], [str(tmp_path)])
    assert (config.recipe.name, config.data.image_size, config.data.mirror) == ("photos_small", 96, 0)
    assert (config.data.batch_size, config.recipe.reasons["data.image_size"]) == (64, "as you have chosen")


def test_options_that_the_recipe_would_choose_change_nothing(photos):
    plain = compose_for(photos)
    words = ("model=efficientnet_lite0", "strategy=transfer_frozen", "optimizer=sgd", "augmentation=none")
    for word in words:
        assert compose_for(photos, word).model_copy(update={"recipe": plain.recipe}) == plain, word


def test_an_augmentation_that_draws_trains_the_whole_network(photos):
    assert compose_for(photos, "augmentation=rotate90").recipe.name == "fine_tuning"
    drawings = compose_for(photos, "augmentation=rotate90", "data.mirror=0")
    assert "mirrored" not in describe_recipe(drawings)[2]
    assert "mirrored" in describe_recipe(compose_for(photos, "augmentation=rotate90"))[2]
    assert "mirrored" not in describe_recipe(compose_for(photos))[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe=photos_small", "strategy=fixmatch"], "recipe=photos_small trains a head alone .* strategy=fixmatch"),
        (
            ["recipe=photos", "model=resnet"],
            "recipe=photos trains a head alone .* with model=resnet: choose recipe=fine",
        ),
        (["recipe=[photos,small_images]"], "recipe takes the name of one option"),
    ],
)
def test_what_does_not_go_with_a_recipe_is_one_line(words, message, photos):
    with pytest.raises(UserError, match=message):
        compose_for(photos, *words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer:\n  lr: 0.25\n", "recipe=mine: its file must begin with '# @package _global_'"),
        ("# @package _global_\ndata:\n  image_size: ${found.size}\n", "found.size}: what is found are image_size, fit"),
    ],
)
def test_a_mistake_in_a_recipe_of_ones_own_is_one_line(text, message, small, tmp_path):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        compose(["data=image_folder", f"data.root={small}", "recipe=mine"], [str(tmp_path)])


@pytest.mark.parametrize(
    ("words", "save", "message"),
    [
        (["data=digits"], None, "no recipe here: recipes are for data=image_folder"),
        (["data=image_folder", "data.root=nowhere"], None, "data.root=nowhere: no such folder"),
        (["data=image_folder", "data.root={small}", "++seed=3"], "x", "seed=3: --save writes"),
        (
            ["data=image_folder", "data.root={small}", "model={{dropout: 0.3}}"],
            "x",
            "model={dropout: 0.3}: --save writes",
        ),
        (["data=image_folder", "data.root={small}", "debug=tiny"], "x", "debug=tiny: --save writes"),
        (["data=image_folder", "data.root={small}"], "a/b", "--save a/b: give the experiment's name"),
    ],
)
def test_what_has_no_recipe_is_one_line(words, save, message, small, tmp_path):
    with pytest.raises(UserError, match=message):
        show_recipe([word.format(small=small) for word in words], [str(tmp_path)], save)


def test_a_single_class_has_a_recipe_where_the_strategy_takes_one(tmp_path):
    write_images(tmp_path / "cat", 6, size=(28, 28))
    config = compose_for(tmp_path, "strategy=lwf", "strategy.tasks=[]", "init_from=RUN", "model=lenet5")
    assert config.recipe.found.startswith("1 class, about 5 labelled pictures to learn from; ")
    assert config.data.takes_one_class
    for words in ((), ("strategy=lwf", "strategy.tasks=[[0,1],[2,3]]")):
        with pytest.raises(UserError, match=r"found 1 class \(cat\) under CLASS/; at least 2 are needed"):
            compose_for(tmp_path, *words)


def test_six_lines_say_what_was_found_and_chosen(small):
    lines = describe_recipe(compose_for(small, "data.labels=4"))
    assert len(lines) == 6
    assert (
        lines[0]
        .split(maxsplit=1)[1]
        .startswith("2 classes, about 4 labelled pictures to learn from; 12 pictures without")
    )
    assert "model=tiny_vgg, which begins with random weights" in lines[3]
    assert "strategy=supervised; 30 epochs, and 3,000 steps at least, of 32" in lines[4]
