"""Recipes: the settings that fit the pictures are chosen, explained, and written as an experiment file."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tutelage.config import DataConfig, Strategy
from tutelage.config.data import RGB
from tutelage.config.recipe import AUTO, GROUP, NONE, Recipe, RecipeChoice, RecipeChooser, RecipeRequest
from tutelage.config.targets import resolve
from tutelage.data.look import DataLook, look_at_data

SMALL_IMAGES, PHOTOS_SMALL, FINE_TUNING = "small_images", "photos_small", "fine_tuning"
HEAD_ALONE = "transfer_frozen"  # the strategy of photos_small
SMALL_SIDE = 48  # pixels: the longer side of small images
SMALLEST, LARGEST, SIZE_STEP = 16, 64, 4  # pixels: image sizes of networks of random weights
PHOTOGRAPHS_SHARE = 0.5  # from this share of JPEGs on, pictures are photographs
MIRRORED = 0.5  # probability
YOURS = "as you have chosen"  # the reason of what is typed or in an experiment
DATA = "data"  # the group whose keys a recipe sets, whatever its option
MISSING = object()
OVERRIDE_ITEM = re.compile(r"override /(\w+)")
COMMENT = re.compile(r"\s#\s*(.*)")


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
    """Chooses by size, colours and format of the pictures, the number of labels, and the pictures without labels."""

    def choose(self, request: RecipeRequest) -> RecipeChoice:
        """Return what fits the data.

        Raises:
            UserError: the data cannot be listed, or none of its pictures can be read.
        """
        nothing = RecipeChoice(Recipe(name=NONE, found="", reasons={}))
        try:
            data = DataConfig.model_validate(request.config["data"])
        except ValidationError:
            return nothing  # the schema says what is wrong
        look = None if data.root is None else look_at_data(data)
        if request.name != AUTO:
            name, why = request.name, YOURS
        elif look is None:
            return nothing
        else:
            name, why = _pick(request, look)
        file = read_recipe(name, request.folders)
        if file is None:
            return RecipeChoice(Recipe(name=name, found="", reasons={}))  # Hydra says which options there are
        overrides, group_reasons = _choose_groups(request, file)
        overrides += _keep_out(request, file)
        given = {*request.chosen, *request.typed}
        yours = [key for key in (*file.groups, *file.values) if key in given or key.partition(".")[0] in given - {DATA}]
        reasons = {GROUP: why, **file.reasons, **group_reasons, **dict.fromkeys(yours, YOURS)}
        line = describe_look(look) if look else "a dataset whose form is known"
        return RecipeChoice(Recipe(name=name, found=line, reasons=reasons), overrides, _find(look, data))


def _pick(request: RecipeRequest, look: DataLook) -> tuple[str, str]:
    """Return the recipe that fits, and why."""
    has_weights = request.config.get("init_from") is not None
    if "model" in request.chosen and not has_weights:
        return SMALL_IMAGES, "the network that you have chosen learns from random weights"
    if "init_from" in request.typed and not has_weights:
        return SMALL_IMAGES, "you have chosen random weights"
    if "model" in request.chosen:
        return FINE_TUNING, "the network that you have chosen has trained weights"
    if look.side <= SMALL_SIDE:
        return SMALL_IMAGES, f"the pictures are small: {look.side} pixels, and small are those up to {SMALL_SIDE}"
    if request.chosen.get("strategy", HEAD_ALONE) != HEAD_ALONE:
        return FINE_TUNING, "the strategy that you have chosen trains the whole network"
    return PHOTOS_SMALL, f"the pictures are large enough for trained weights: {look.side} pixels, above {SMALL_SIDE}"


def _choose_groups(request: RecipeRequest, file: RecipeFile) -> tuple[list[str], dict[str, str]]:
    """Return options of groups that depend on what else is chosen, and why each."""
    overrides, reasons = [], {}
    target = str(request.config["strategy"].get("_target_"))
    if "strategy" in file.groups and "strategy" not in request.chosen:
        target = _read_strategy_target(file.groups["strategy"], request.folders)
    strategy: Any = resolve(target, Strategy, "strategy._target_")
    two_views = file.parameters.get("two_views")
    if two_views and strategy.takes_two_views and "augmentation" not in request.chosen:
        overrides.append(f"augmentation={two_views}")
        reasons["augmentation"] = file.reasons[f"{GROUP}.two_views"]
    return overrides, reasons


def _keep_out(request: RecipeRequest, file: RecipeFile) -> list[str]:
    """Return overrides that undo what a recipe sets in groups whose option somebody has chosen."""
    undone = []
    for key in file.values:
        group, _, name = key.partition(".")
        if group in request.chosen and group != DATA and key not in request.typed:
            plain = request.config[group].get(name, MISSING)
            undone.append(f"~{key}" if plain is MISSING else f"{key}={json.dumps(plain)}")
    return undone


def _read_strategy_target(option: str, folders: Sequence[Path]) -> str:
    """Return the class of an option of ``strategy``."""
    content, _ = read_option("strategy", option, folders) or ({}, {})
    return str(content.get("strategy", content).get("_target_"))


def _find(look: DataLook | None, data: DataConfig) -> dict[str, Any]:
    """Return what ``${found.KEY}`` stands for in a recipe."""
    if look is None:
        return {"image_size": data.image_size, "channels": data.channels, "mirror": data.mirror}
    rounded = -(-look.side // SIZE_STEP) * SIZE_STEP
    return {
        "image_size": min(max(rounded, SMALLEST), LARGEST),
        "channels": 1 if look.is_grey else RGB,
        "mirror": MIRRORED if look.photographs >= PHOTOGRAPHS_SHARE and not look.is_grey else 0.0,
    }


def describe_look(look: DataLook) -> str:
    """Return one line on what a dataset looks like."""
    smallest, largest = look.sides
    size = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
    colours = "grey" if look.is_grey else "in colour"
    pool = "shards of pictures" if look.pool is None else f"{look.pool:,} pictures"
    parts = [
        f"{look.classes:,} classes, {look.labels:,} labelled pictures to learn from",
        f"{pool} without labels" if look.has_pool else "none without labels",
        f"{look.test:,} to test on" if look.test else "a fifth of all to test on",
        f"{' and '.join(look.formats)}, {colours}, {size} pixels",
    ]
    return "; ".join(parts)


def read_recipe(name: str, folders: Sequence[Path]) -> RecipeFile | None:
    """Return an option of ``recipe``, with what the options that it begins with set; None if no folder has it."""
    option = read_option(GROUP, name, folders)
    if option is None:
        return None
    content, reasons = option
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
    lines, comments = text.splitlines(), {}
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


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each leaf of nested mappings."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
