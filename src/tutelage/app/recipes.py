"""Recipes: the settings that fit the pictures are chosen, explained, and written as an experiment file."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from tutelage.config import DataConfig, Strategy
from tutelage.config.compose import flatten
from tutelage.config.data import RGB
from tutelage.config.recipe import AUTO, GROUP, NONE, YOURS, Recipe, RecipeChoice, RecipeChooser, RecipeRequest
from tutelage.config.strategy import AnyStrategy
from tutelage.config.targets import resolve
from tutelage.data.look import DataLook, look_at_data
from tutelage.errors import UserError
from tutelage.options import conf_dir

SMALL_IMAGES, PHOTOS_SMALL, FINE_TUNING = "small_images", "photos_small", "fine_tuning"
# of photos_small, and what the names of the strategies of trained weights begin with
INSTALLED_MODEL, HEAD_ALONE, WITHOUT_VIEWS, TRANSFER = "efficientnet_lite0", "transfer_frozen", "none", "transfer_"
SMALL_SIDE = 48  # pixels: the longer side of small images
SMALLEST, LARGEST, SIZE_STEP = 28, 64, 4  # pixels: image sizes of networks of random weights
PHOTOGRAPHS_SHARE = 0.5  # from this share of JPEGs on, pictures are photographs
MIRRORED = 0.5  # probability
LONG = 2.0  # longer over shorter side of pictures of which a crop would lose half
UNSEEN_WEIGHT_DECAY = 0.001  # of a head alone, for 100 labels
PENALTY = 10.0  # the C of the logistic regression whose weight decay a head alone gets: 1 / (C labels)
DATA = "data"  # the group whose keys a recipe sets, whatever its option
MISSING = object()
NEUTRAL_PIXELS = {"channels": 3, "mean": [0.5], "std": [0.5]}  # a recipe sets them; the look does not need them
NOTHING = RecipeChoice(Recipe(name=NONE, found="", reasons={}))
OVERRIDE_ITEM = re.compile(r"override /(\w+)")
COMMENT = re.compile(r"\s#\s*(.*)")
HEADER = re.compile(r"^# @package _global_\s*$", re.MULTILINE)


@dataclass(frozen=True)
class RecipeFile:
    """An option of ``conf/recipe``.

    Attributes:
        groups: the options of groups that it chooses.
        values: what it sets, by dotted key.
        reasons: the comment behind a key or a group, by key.
        parameters: its own section ``recipe``.
    """

    groups: Mapping[str, str]
    values: Mapping[str, Any]
    reasons: Mapping[str, str]
    parameters: Mapping[str, str]


class PictureRecipes(RecipeChooser):
    """Chooses by size, colours and format of the pictures, and by what else is chosen."""

    def choose(self, request: RecipeRequest) -> RecipeChoice:
        """Return what fits the data.

        Raises:
            UserError: the data cannot be listed, none of its pictures can be read, or a recipe that is chosen by name
                does not go with what else is chosen.
        """
        try:
            data = DataConfig.model_validate(request.config[DATA] | NEUTRAL_PIXELS)
        except ValidationError:
            return NOTHING  # the schema says what is wrong
        if _takes_one_class(request):
            data.take_one_class()
        look = None if data.root is None else look_at_data(data)
        if request.name == AUTO and look is None:
            return NOTHING
        name, why = _pick(request, look) if request.name == AUTO and look else (request.name, YOURS)
        file = read_recipe(name, request.folders)
        if file is None:
            return RecipeChoice(Recipe(name=name, found="", reasons={GROUP: YOURS}))  # Hydra says which there are
        chosen = {group: option for group, option in request.chosen.items() if file.groups.get(group) != option}
        if request.name != AUTO:
            _check_head_alone(name, file, chosen)
        two_views = _choose_views(request, file, chosen)
        options = two_views | {key: value for key, value in file.groups.items() if key not in two_views}
        reasons = {**file.reasons, GROUP: why}
        if two_views:
            reasons["augmentation"] = file.reasons[f"{GROUP}.two_views"]
        line = describe_look(look, data) if look else "a dataset whose form is known"
        overrides = [f"{group}={option}" for group, option in two_views.items()]
        overrides += _keep_out(request, file, chosen)
        record = Recipe(name=name, found=line, reasons=reasons)
        return RecipeChoice(record, overrides, _find(look, data), options, file.values)


def _takes_one_class(request: RecipeRequest) -> bool:
    """Return whether the strategy, as it is chosen, takes data of a single class."""
    try:
        strategy: Strategy = TypeAdapter(AnyStrategy).validate_python(request.config["strategy"])
    except ValidationError:
        return False  # the schema says what is wrong
    return strategy.takes_one_class


def _pick(request: RecipeRequest, look: DataLook) -> tuple[str, str]:
    """Return the recipe that fits, and why: the first of the rules that holds."""
    has_weights = request.config.get("init_from") is not None
    model = request.chosen.get("model", INSTALLED_MODEL)
    strategy = request.chosen.get("strategy", HEAD_ALONE)
    is_whole = strategy != HEAD_ALONE
    is_small = look.side <= SMALL_SIDE and not _trained(request)
    augments = request.chosen.get("augmentation", WITHOUT_VIEWS) != WITHOUT_VIEWS
    size = f"{look.side} pixels"
    rules = (
        (model != INSTALLED_MODEL and not has_weights, SMALL_IMAGES, "your network learns from random weights"),
        ("init_from" in request.typed and not has_weights, SMALL_IMAGES, "you have chosen random weights"),
        (model != INSTALLED_MODEL, FINE_TUNING, "your network has trained weights"),
        (is_whole and strategy.startswith(TRANSFER), FINE_TUNING, "your strategy trains the whole network"),
        (is_small, SMALL_IMAGES, f"the pictures are small: {size}, and small are those up to {SMALL_SIDE}"),
        (is_whole, FINE_TUNING, "your strategy trains the whole network"),
        (augments, FINE_TUNING, "your augmentation makes new pictures in every step"),
        (True, PHOTOS_SMALL, f"the pictures are large enough for trained weights: {size}, above {SMALL_SIDE}"),
    )
    return next((name, why) for holds, name, why in rules if holds)


def _trained(request: RecipeRequest) -> set[str]:
    """Return the groups of which an option is chosen that stands for trained weights."""
    trained = {"model": INSTALLED_MODEL, "strategy": HEAD_ALONE}
    return {group for group, option in trained.items() if request.chosen.get(group) == option}


def _check_head_alone(name: str, file: RecipeFile, chosen: Mapping[str, Any]) -> None:
    """Raise a UserError where a recipe that trains a head alone is asked for by name, with what trains more."""
    if file.groups.get("strategy") != HEAD_ALONE:
        return
    for group in ("strategy", "model"):
        if group in chosen:
            raise UserError(
                f"recipe={name} trains a head alone on its own network, which does not go with "
                f"{group}={chosen[group]}: choose recipe=fine_tuning, or leave out recipe or {group}"
            )


def _choose_views(request: RecipeRequest, file: RecipeFile, chosen: Mapping[str, Any]) -> dict[str, str]:
    """Return the option of ``augmentation`` that a strategy of two views needs; nothing for another strategy."""
    target = str(request.config["strategy"].get("_target_"))
    if "strategy" in file.groups and "strategy" not in chosen:
        target = _read_strategy_target(file.groups["strategy"], request.folders)
    strategy: Any = resolve(target, Strategy, "strategy._target_")
    two_views = file.parameters.get("two_views")
    return (
        {"augmentation": two_views} if two_views and strategy.takes_two_views and "augmentation" not in chosen else {}
    )


def _keep_out(request: RecipeRequest, file: RecipeFile, chosen: Mapping[str, Any]) -> list[str]:
    """Return overrides that undo what a recipe sets in groups of which another option is chosen.

    In ``data`` they undo what an option of the user's own sets.
    """
    own_data = _list_own_data_keys(request)
    undone = []
    for key in file.values:
        group, *path = key.split(".")
        is_chosen = key in own_data if group == DATA else group in chosen
        if is_chosen and key not in request.typed:
            plain = request.config[group]
            for name in path:
                plain = plain.get(name, MISSING) if isinstance(plain, Mapping) else MISSING
            undone.append(f"~{key}" if plain is MISSING else f"{key}={json.dumps(plain)}")
    return undone


def _list_own_data_keys(request: RecipeRequest) -> set[str]:
    """Return the keys that the chosen option of ``data`` sets, if it is one of the user's own folders."""
    folders = [folder for folder in request.folders if folder.resolve() != conf_dir().resolve()]
    content, _ = read_option(DATA, str(request.chosen.get(DATA)), folders) or ({}, {})
    return {key for key, _ in flatten({DATA: {name: value for name, value in content.items() if name != "defaults"}})}


def _read_strategy_target(option: str, folders: Sequence[Path]) -> str:
    """Return the class of an option of ``strategy``."""
    content, _ = read_option("strategy", option, folders) or ({}, {})
    return str(content.get("strategy", content).get("_target_"))


def _find(look: DataLook | None, data: DataConfig) -> dict[str, Any]:
    """Return what ``${found.KEY}`` stands for in a recipe."""
    if look is None:
        return {
            "image_size": data.image_size,
            "fit": data.fit,
            "channels": data.channels,
            "mirror": data.mirror,
            "weight_decay": UNSEEN_WEIGHT_DECAY,
        }
    rounded = -(-look.side // SIZE_STEP) * SIZE_STEP
    return {
        "image_size": min(max(rounded, SMALLEST), LARGEST),
        "fit": "pad" if look.elongation >= LONG else "crop",
        "channels": 1 if look.is_grey else RGB,
        "mirror": MIRRORED if look.photographs >= PHOTOGRAPHS_SHARE and not look.is_grey else 0.0,
        "weight_decay": float(f"{1 / (PENALTY * max(look.labels, 1)):.2g}"),
    }


def describe_look(look: DataLook, data: DataConfig) -> str:
    """Return one line on what a dataset looks like."""
    smallest, largest = look.sides
    size = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
    colours = "grey" if look.is_grey else "in colour"
    pool = "shards of pictures" if look.pool is None else f"{look.pool:,} pictures"
    if look.test:
        test = f"{look.test:,} to test on"
    elif data.folds:
        test = f"fold {data.fold} of {data.folds} to test on"
    else:
        test = "a fifth of all to test on"
    noun = "class" if look.classes == 1 else "classes"
    parts = [
        f"{look.classes:,} {noun}, about {look.labels:,} labelled pictures to learn from",
        f"{pool} without labels" if look.has_pool else "none without labels",
        test,
        f"{' and '.join(look.formats)}, {colours}, {size} pixels",
    ]
    return "; ".join(parts)


def read_recipe(name: str, folders: Sequence[Path]) -> RecipeFile | None:
    """Return an option of ``recipe``, with what the options that it begins with set; None if no folder has it."""
    option = read_option(GROUP, name, folders)
    if option is None:
        return None
    content, reasons = option
    if not HEADER.search(reasons.pop("")):
        raise UserError(
            f"recipe={name}: its file must begin with '# @package _global_', as it sets keys of other groups"
        )
    groups: dict[str, str] = {}
    values: dict[str, Any] = {}
    parameters: dict[str, str] = {}
    for item in content.pop("defaults", []):
        base = read_recipe(item, folders) if isinstance(item, str) else None
        if base is not None:
            groups |= base.groups
            values |= base.values
            parameters |= base.parameters
            reasons = {**base.reasons, **reasons}
        elif isinstance(item, dict):
            groups |= {match[1]: str(item[key]) for key in item if (match := OVERRIDE_ITEM.fullmatch(str(key)))}
    parameters |= content.pop(GROUP, {})
    return RecipeFile(groups, values | dict(flatten(content)), reasons, parameters)


def read_option(group: str, name: str, folders: Sequence[Path]) -> tuple[dict[str, Any], dict[str, str]] | None:
    """Return the content of a group's option, and the comments behind its keys; None if no folder has it."""
    file = next((path for folder in folders if (path := folder / group / f"{name}.yaml").is_file()), None)
    if file is None:
        return None
    text = file.read_text()
    lines, comments = text.splitlines(), {"": text}
    for key, line in _find_lines(yaml.compose(text, yaml.SafeLoader)):
        if match := COMMENT.search(lines[line]):
            comments[key] = match[1]
    return yaml.safe_load(text) or {}, comments


def _find_lines(node: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield each key of a mapping with the number of its line; for an item ``override /GROUP``, the group."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            match = OVERRIDE_ITEM.fullmatch(key.value)
            name = match[1] if match else f"{prefix}{key.value}"
            yield name, key.start_mark.line
            yield from _find_lines(value, f"{name}.")
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _find_lines(item)
