"""A recipe's choice as a table of keys with their reasons, and as an experiment file that can be edited."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tutelage.config.compose import compose, flatten
from tutelage.config.path_values import override_key
from tutelage.config.recipe import GROUP, NONE, Recipe
from tutelage.config.section import FOLDER_NAME
from tutelage.errors import UserError
from tutelage.options import conf_dir, list_options
from tutelage.storage import write_text
from tutelage.terminal.recipe import align, describe_recipe

SHOWN_GROUPS = ("data", "model", "augmentation", "strategy")
NOT_SAVED = ("experiment", "sweep", "debug")  # groups that a saved experiment does not take in
MAX_LENGTH = 40  # characters of a path in the table
HEADER_END = "# Edit it: what is here is what the run has."


def show_recipe(overrides: Sequence[str], config_dirs: Sequence[str], save: str | None) -> list[str]:
    """Return what a command's recipe is, as lines: each key with its reason; or write it as an experiment file.

    Args:
        overrides: those of ``tutelage train``.
        config_dirs: users' own config folders.
        save: the name of the experiment to write into the first of these folders, or into ``conf``; None writes none.

    Raises:
        UserError: the overrides do not compose, there is no recipe, or the file is there already.
    """
    if save is not None and not FOLDER_NAME.fullmatch(save):
        raise UserError(f"--save {save}: give the experiment's name, of letters, digits, '-' and '_'")
    if save in list_options(config_dirs)["experiment"]:
        raise UserError(f"--save {save}: there is an experiment of this name; choose another name, or remove its file")
    config = compose(overrides, config_dirs)
    if config.recipe is None or config.recipe.name == NONE:
        raise UserError(
            "no recipe here: recipes are for data=image_folder, table and huggingface with data.root=..., "
            "or chosen by name, such as recipe=small_images"
        )
    options, values = config.recipe.options, dict(flatten(config.model_dump(mode="json", exclude={GROUP})))
    keys = [key for key in config.recipe.reasons if key != GROUP and (key in options or key in values)]
    if save is None:
        shown = {key: _shorten(_as_yaml(options.get(key, values.get(key)))) for key in keys}
        rows = [(key, value, config.recipe.reasons[key]) for key, value in shown.items()]
        return [*describe_recipe(config)[:-1], "", *align(rows)]
    typed = _typed_keys(overrides)
    groups = [key for key in dict.fromkeys([*SHOWN_GROUPS, *keys, *typed]) if key in options and key != GROUP]
    inside = [key for key in values if any(f"{key}.".startswith(f"{name}.") for name in typed if name not in groups)]
    saved = [key for key in dict.fromkeys([*keys, *inside]) if key in values and key not in {*groups, "name"}]
    folders = [f"--config-dir={folder}" for folder in config_dirs]
    command = shlex.join(["tutelage", "recipe", *overrides, *folders, "--save", save])
    lines = [
        "# @package _global_",
        f"# {save}: {config.recipe.name} for {values['data.root'] or values['data._target_']}",
        "#",
        f"# Written by: {command}",
        HEADER_END,
        f"name: {save}",
        "defaults:",
        *(f"  - override /{group}: {options[group]}{_comment(config.recipe, group)}" for group in groups),
        f"  - override /{GROUP}: {NONE}",
        *_nest({key: values[key] for key in saved}, config.recipe),
    ]
    return _write_experiment(save, "\n".join(lines) + "\n", config_dirs)


def _typed_keys(overrides: Sequence[str]) -> list[str]:
    """Return the typed keys and groups but those of Hydra.

    Raises:
        UserError: there are some that a file cannot have.
    """
    for override in overrides:
        key = override_key(override)
        if override.startswith(("+", "~")) or key in NOT_SAVED or "={" in override:
            raise UserError(f"{override}: --save writes a file with GROUP=OPTION and KEY=VALUE only; leave it out")
    return [key for key in map(override_key, overrides) if not key.startswith("hydra")]


def _nest(values: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Return the lines of YAML for values by dotted key, with the reason behind each."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        section = tree
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = _as_yaml(value) + _comment(recipe, key)
    return list(_indent(tree))


def _indent(tree: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    """Yield the lines of nested sections, whose values are lines already; values before sections."""
    for name, value in sorted(tree.items(), key=lambda item: isinstance(item[1], dict)):
        if isinstance(value, dict):
            yield f"{'  ' * depth}{name}:"
            yield from _indent(value, depth + 1)
        else:
            yield f"{'  ' * depth}{name}: {value}"


def _as_yaml(value: Any) -> str:
    """Return a value in one line of YAML, without references."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...").replace("${", "\\${")


def _shorten(text: str) -> str:
    """Return a long path without the folders that it begins with."""
    return f".../{text.rpartition('/')[2]}" if len(text) > MAX_LENGTH and "/" in text else text


def _comment(recipe: Recipe, key: str) -> str:
    return f" # {recipe.reasons[key]}" if recipe.reasons.get(key) else ""


def _write_experiment(name: str, text: str, config_dirs: Sequence[str]) -> list[str]:
    """Write an experiment file, and return the line that says how to run it.

    Raises:
        UserError: it cannot be written.
    """
    folder = Path(config_dirs[0] if config_dirs else "conf")
    file = folder / "experiment" / f"{name}.yaml"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    except OSError as error:
        raise UserError(
            f"{file}: cannot be written ({error.strerror}); choose another folder by --config-dir"
        ) from None
    flag = "" if folder.resolve() == conf_dir().resolve() else f"--config-dir {shlex.quote(str(folder))} "
    return [f"written: {file}", f"to run it: tutelage train {flag}experiment={name}"]
