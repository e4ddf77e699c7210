"""Recipes: the settings that fit the pictures are chosen, explained, and written as an experiment file."""

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

SMALL_IMAGES, PHOTOS_SMALL = "small_images", "photos_small"
NEAREST_NEIGHBOURS = "nearest_neighbours"  # the model that takes no strategy but supervised
SMALL_SIDE = 48  # pixels: the longer side of small images
SMALLEST, LARGEST, SIZE_STEP = 16, 64, 4  # pixels: image sizes of networks of random weights
PHOTOGRAPHS_SHARE = 0.5  # from this share of JPEGs on, pictures are photographs
MIRRORED = 0.5  # probability
YOURS = "as you have chosen"  # the reason of what is typed or in an experiment
OVERRIDE_ITEM = re.compile(r"override /(\w+)")
COMMENT = re.compile(r"\s#\s*(.*)")


@dataclass(frozen=True)
class RecipeFile:
    """An option of ``conf/recipe``.

    Attributes:
        groups: in which it chooses an option.
        values: what it sets, by dotted key.
        reasons: the comment behind a key or a group, by key.
        parameters: its own section ``recipe``.
    """

    groups: Sequence[str]
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
        has_pool = look.has_pool if look else bool(data.labels_per_class or data.labels or data.unlabelled)
        overrides, group_reasons = _choose_groups(request, file, has_pool)
        yours = [key for key in (*file.groups, *file.values) if key in {*request.chosen, *request.typed}]
        reasons = {GROUP: why, **file.reasons, **group_reasons, **dict.fromkeys(yours, YOURS)}
        line = describe_look(look) if look else "a dataset whose form is known"
        return RecipeChoice(Recipe(name=name, found=line, reasons=reasons), overrides, _find(look, data))


def _pick(request: RecipeRequest, look: DataLook) -> tuple[str, str]:
    """Return the recipe that fits, and why."""
    has_weights = request.config.get("init_from") is not None
    if "model" in request.chosen:
        if has_weights:
            return PHOTOS_SMALL, "the network that you have chosen starts from trained weights"
        return SMALL_IMAGES, "the network that you have chosen starts from random weights"
    if "init_from" in request.typed and not has_weights:
        return SMALL_IMAGES, "you have chosen random weights"
    if look.side <= SMALL_SIDE:
        return SMALL_IMAGES, f"the pictures are {look.side} pixels large, and up to {SMALL_SIDE} are small"
    return PHOTOS_SMALL, f"the pictures are {look.side} pixels large, and above {SMALL_SIDE} trained weights help"


def _choose_groups(request: RecipeRequest, file: RecipeFile, has_pool: bool) -> tuple[list[str], dict[str, str]]:
    """Return the options of groups that depend on the data or on what else is chosen, and why each."""
    overrides, reasons = [], {}
    strategy = str(request.config["strategy"].get("_target_"))
    learns_in_steps = request.chosen.get("model") != NEAREST_NEIGHBOURS
    option = file.parameters.get("pool_strategy")
    if option and "strategy" not in request.chosen and has_pool and learns_in_steps:
        overrides.append(f"strategy={option}")
        reasons["strategy"] = file.reasons[f"{GROUP}.pool_strategy"]
        strategy = _read_strategy_target(option, request.folders)
    option = file.parameters.get("two_views")
    strategy_class: Any = resolve(strategy, Strategy, "strategy._target_")
    if option and "augmentation" not in request.chosen and strategy_class.takes_two_views:
        overrides.append(f"augmentation={option}")
        reasons["augmentation"] = file.reasons[f"{GROUP}.two_views"]
    return overrides, reasons


def _read_strategy_target(option: str, folders: Sequence[Path]) -> str:
    """Return the class of an option of ``strategy``."""
    content, _ = read_option("strategy", option, folders) or ({}, {})
    return str(content.get("strategy", content).get("_target_"))


def _find(look: DataLook | None, data: DataConfig) -> dict[str, Any]:
    """Return what ``${found.KEY}`` stands for in a recipe."""
    if look is None:
        return {"small_size": data.image_size, "channels": data.channels, "mirror": data.mirror}
    rounded = -(-look.side // SIZE_STEP) * SIZE_STEP
    return {
        "small_size": min(max(rounded, SMALLEST), LARGEST),
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
    """Return an option of ``recipe``; None if no folder has it."""
    option = read_option(GROUP, name, folders)
    if option is None:
        return None
    content, reasons = option
    items = [str(key) for item in content.pop("defaults", []) if isinstance(item, dict) for key in item]
    groups = [match[1] for item in items if (match := OVERRIDE_ITEM.fullmatch(item))]
    parameters = content.pop(GROUP, {})
    return RecipeFile(groups, dict(flatten(content)), reasons, parameters)


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
