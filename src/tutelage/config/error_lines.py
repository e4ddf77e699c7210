"""Errors of Hydra, OmegaConf and pydantic as one line for the user: the key, its value and what is allowed."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from tutelage.config import OWN_LOSSES, OWN_MODELS, Config, Section
from tutelage.config.path_values import PATH_KEYS, override_key
from tutelage.options import list_options

HELP_HINT = "'tutelage train --help' lists groups and options"
TAGS = OWN_MODELS | OWN_LOSSES | {"other"}  # the schema's names for alternatives; they are part of no key
MAX_LINE_LENGTH = 300  # characters of an error that has no line of its own here


def describe_validation_error(error: ValidationError, prefix: str = "") -> str:
    """Return the first problem that a validation found, as one line: key, value, what is allowed.

    Args:
        error: what pydantic raised.
        prefix: the key of the validated section with a dot behind it; empty for a whole config.
    """
    problems = error.errors(include_url=False)
    problem = problems[0]
    key = prefix + ".".join(str(part) for part in problem["loc"] if part not in TAGS)
    message = problem["msg"].removeprefix("Value error, ")
    count = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        hint = _suggest_group(key) or suggest_nearest(str(problem["loc"][-1]), _list_schema_keys())
        return f"unknown key {key!r}{count}{hint} {HELP_HINT}"
    if isinstance(problem["input"], dict | list) or not key:
        names_its_key = not key or message.startswith(f"{key.split('.')[0]}.")
        return (message if names_its_key else f"{key}: {message}") + count
    return f"{key}={problem['input']}: {message[0].lower()}{message[1:]}{count}"


def describe_hydra_error(
    error: Exception,
    overrides: Sequence[str] = (),
    list_keys: Callable[[Sequence[str]], Iterable[str]] = lambda overrides: (),
) -> str:
    """Return one line for an error of Hydra or OmegaConf.

    Args:
        error: what Hydra or OmegaConf raised.
        overrides: as the user typed them.
        list_keys: returns the keys of the config that some of the overrides compose, for a hint at the right one.
    """
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _describe_unknown_key(match[1], overrides, list_keys)
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, option = match[1], match[2]
        allowed = sorted(re.findall(r"^\t(\S+)$", text, re.MULTILINE)) or sorted(list_options().get(group, {}))
        return (
            f"{group}={option}: no such option{suggest_nearest(option, allowed)} Allowed: {', '.join(allowed)}; "
            "--config-dir DIR adds your own"
        )
    if "${experiment}" in text:
        text = "experiment takes one name; several are a sweep: -m experiment=ONE,OTHER"
    if match := re.search(r"Error merging override (.*\$\{.*)", text):
        text = (
            f"{match[1]}: ${{ begins a reference such as ${{oc.env:HOME}}; \\${{ is no reference but these characters"
        )
    if match := re.search(r"Ambiguous value for argument '([^\n]+)'", text):
        text = _describe_several_values(match[1], overrides)
    if match := re.search(r"Missing mandatory value: \S+\s+full_key: (\S+)|Missing mandatory value: (\S+)", text):
        key = match[1] or match[2]
        return f"{key} needs a value: give {key}=..."
    if match := re.search(r"[Ii]nterpolation key '([^']+)' not found", text):
        return f"${{{match[1]}}} in the config refers to a key that does not exist"
    if match := re.search(r"Error parsing override '([^']+)'", text):
        return f"{match[1]!r} is not KEY=VALUE; {HELP_HINT}"
    return " ".join(text.split())[:MAX_LINE_LENGTH]


def suggest_nearest(name: str, names: Sequence[str]) -> str:
    """Return the middle of an error line on an unknown name: the most similar of the known names, if there is one."""
    if name in names:
        return ": it goes with other options of its group;"
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f": did you mean {matches[0]!r}?" if matches else ";"


def _describe_several_values(quoted: str, overrides: Sequence[str]) -> str:
    """Return the line for an override with a comma, which is a sweep, without ``-m``; Hydra got it ``quoted``."""
    key = quoted.partition("=")[0]
    typed = next((override for override in overrides if override.partition("=")[0] == key), quoted)
    if key.lstrip("+~") in PATH_KEYS:
        return f"{typed}: a comma separates the values of a sweep, which needs -m; \\, is a comma in a path"
    return f"{typed}: several values are a sweep, which needs -m; a list is written [value1,value2]"


def _describe_unknown_key(
    key: str, overrides: Sequence[str], list_keys: Callable[[Sequence[str]], Iterable[str]]
) -> str:
    """Return the line for a key that no config has, with the most similar key that the other overrides compose."""
    groups = list(list_options())
    typed = next((override for override in overrides if override_key(override) == key), None)
    if typed is None:  # a config file names it
        name = key.partition("@")[0]  # without the package that it would go to
        return f"unknown key {name!r} in a config file{suggest_nearest(name, groups)} {HELP_HINT}"
    keys = list(list_keys([override for override in overrides if override != typed]))
    if key in keys and key.startswith(("strategy.", "model.")):  # its class has it, its file does not
        return f"{typed!r}: {key} is in no file of the config; type +{typed}, or add it to the option's YAML"
    names = [*groups, *keys]
    return f"unknown key {key!r} in {typed!r}{_suggest_group(key) or suggest_nearest(key, names)} {HELP_HINT}"


def _suggest_group(key: str) -> str:
    """Return the middle of an error line on a key that one other group of the config has; empty where none has it."""
    group, _, name = key.partition(".")
    found = [
        other
        for other, field in Config.model_fields.items()
        if any(name in section.model_fields for section in _list_sections(field.annotation))
    ]
    return f": did you mean '{found[0]}.{name}'?" if len(found) == 1 and found != [group] else ""


def _list_sections(annotation: Any) -> Iterator[type[Section]]:
    """Yield the sections that a field's type names, each alternative of a union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _list_sections(part)


def _list_schema_keys() -> list[str]:
    """Return the names of all keys of the schema."""
    sections, keys = [Section], set[str]()
    while sections:
        section = sections.pop()
        sections += section.__subclasses__()
        keys |= set(section.model_fields)
    return sorted(keys)
