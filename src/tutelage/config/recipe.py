"""Recipes: settings that fit the pictures.

A recipe is an option of ``conf/recipe``, a delta on the other groups. Where it says ``${found.KEY}``, the value comes
from the pictures. ``loader.py`` composes a config with what the class ``CHOOSER`` has chosen.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from tutelage.config.path_values import override_key
from tutelage.config.section import Section
from tutelage.errors import UserError

GROUP = "recipe"
NONE, AUTO = "none", "auto"  # the options that change nothing, and what fits the data
OWN_PICTURES = frozenset({"tutelage.data.ImageFolder", "tutelage.data.Table", "tutelage.data.HuggingFace"})
CHOOSER = "tutelage.app.recipes.PictureRecipes"  # by name: it looks at data, and is of a higher floor
YOURS = "as you have chosen"  # the reason of what is typed or in an experiment
PROBLEM = "problem"  # key of the section ``recipe`` where the data could not be looked at
OPTION = re.compile(r"[A-Za-z0-9_-]+")
FOUND = re.compile(r"\$\{found\.(\w+)\}")
# Sections that a look at the data needs, or Hydra itself. Other typed keys may be those of a network that only the
# recipe chooses.
NEEDED_SECTIONS = ("data.", "paths.", "hydra.")


class Recipe(Section):
    """What a config got from a recipe, for the screen; it is no part of a run's identity.

    Attributes:
        name: of the option.
        found: what the data look like, in one line.
        reasons: why, by key, for ``recipe`` itself and the groups and keys that it sets, in their order.
        options: the names of the options that the config has in the end, by group.
    """

    name: str
    found: str
    reasons: dict[str, str]
    options: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class RecipeRequest:
    """What a recipe is chosen by.

    Attributes:
        name: the option of ``recipe`` that is asked for.
        config: the config without any recipe and without the typed keys of models and the like, as plain containers.
        chosen: the options of other groups that are typed, or that an experiment chooses.
        typed: the keys and groups of the command line.
        folders: with options of ``recipe``, the first one before the others.
    """

    name: str
    config: Mapping[str, Any]
    chosen: Mapping[str, Any]
    typed: frozenset[str]
    folders: Sequence[Path]


@dataclass(frozen=True)
class RecipeChoice:
    """What was chosen.

    Attributes:
        record: for the config.
        overrides: what goes with the option of ``recipe``, such as ``augmentation=weak_strong``.
        found: what ``${found.KEY}`` stands for.
        options: the options of groups that the recipe has chosen.
        values: what it sets, by dotted key.
    """

    record: Recipe
    overrides: Sequence[str] = ()
    found: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    def describe(self, config: Any) -> dict[str, Any]:
        """Return the record for a composed config, in which ``${found.KEY}`` is filled in.

        Keys and groups that are not as the recipe has them are the user's.
        """
        from omegaconf import OmegaConf

        chosen = config.hydra.runtime.choices
        options = {group: str(option) for group, option in chosen.items() if not group.startswith("hydra")}
        yours = [group for group, option in self.options.items() if options.get(group) != option]
        for key, value in self.values.items():
            match = FOUND.fullmatch(str(value))
            if OmegaConf.select(config, key) != (self.found.get(match[1]) if match else value):
                yours.append(key)
        keys = dict.fromkeys([GROUP, *self.options, *self.values], "")
        reasons = {**keys, **self.record.reasons, **dict.fromkeys(yours, YOURS)}
        return self.record.model_dump() | {"options": options, "reasons": reasons}


class RecipeChooser(ABC):
    """Chooses a recipe's settings by looking at the data."""

    @abstractmethod
    def choose(self, request: RecipeRequest) -> RecipeChoice:
        """Return what fits the data.

        Raises:
            UserError: the data cannot be looked at, or there is no such option.
        """


def check_one_recipe(overrides: Sequence[str]) -> None:
    """Raise a UserError unless typed options of ``recipe`` are a name each."""
    for override in overrides:
        name = override.partition("=")[2]
        if override_key(override) == GROUP and not override.startswith("~") and not OPTION.fullmatch(name):
            raise UserError(f"recipe={name}: recipe takes the name of one option")


def find_recipe(config: Any) -> str | None:
    """Return the option of ``recipe`` that a composed config asks for; None if it changes nothing."""
    name = config.hydra.runtime.choices.get(GROUP)
    data: Any = config.get("data")
    is_own = isinstance(data, Mapping) and data.get("_target_") in OWN_PICTURES
    return None if name in {None, NONE} or (name == AUTO and not is_own) else str(name)


def keep_needed(overrides: Sequence[str]) -> list[str]:
    """Return the overrides by which the data can be looked at: of groups, top-level keys and ``NEEDED_SECTIONS``."""
    keys = map(override_key, overrides)
    return [
        override
        for key, override in zip(keys, overrides, strict=True)
        if "." not in key or key.startswith(NEEDED_SECTIONS)
    ]


def fill_found(node: Any, found: Mapping[str, Any]) -> None:
    """Put what was found in place of ``${found.KEY}`` in a composed config, and in all below it.

    Raises:
        UserError: there is no such thing to be found.
    """
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(node, resolve=False)
    names = range(len(node)) if OmegaConf.is_list(node) else list(node)
    for name in names:
        if OmegaConf.is_missing(node, name):
            continue
        if OmegaConf.is_interpolation(node, name):
            match = FOUND.fullmatch(str(plain[name]))
            if match and match[1] not in found:
                raise UserError(f"${{found.{match[1]}}}: what is found are {', '.join(found)}")
            if match:
                node[name] = found[match[1]]
        elif OmegaConf.is_config(value := node[name]):
            fill_found(value, found)
