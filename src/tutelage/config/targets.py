"""A ``_target_`` of a config becomes an object, if it is one that may stand there."""

import importlib
import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from tutelage.errors import UserError

PLUGIN_GROUP = "tutelage.plugins"
ALLOW_FLAG = "--allow"
ALLOW_VARIABLE = "TUTELAGE_ALLOW"


def take_allowed(arguments: Sequence[str]) -> list[str]:
    """Note the packages of ``--allow PACKAGE`` for this process and those it starts; return the other arguments.

    Raises:
        UserError: no package follows.
    """
    left: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, _, package = argument.partition("=")
        if name != ALLOW_FLAG:
            left.append(argument)
            continue
        package = package or next(rest, "")
        if not package.isidentifier():
            raise UserError(
                f"{ALLOW_FLAG} {package}: give the name of a top-level package, such as {ALLOW_FLAG} mymodels"
            )
        os.environ[ALLOW_VARIABLE] = " ".join(dict.fromkeys([*by_flag(), package]))
    return left


def by_flag() -> list[str]:
    """Return the packages that ``--allow`` named."""
    return os.environ.get(ALLOW_VARIABLE, "").split()


def allowed_packages() -> frozenset[str]:
    """Return the top-level packages whose classes a config may name: ours, plug-ins' and those of ``--allow``."""
    return frozenset({"tutelage", "albumentations", *_plugins(), *by_flag()})


@cache
def _plugins() -> frozenset[str]:
    """Return the top-level packages of installed plug-ins; looking for them reads a file of every distribution."""
    return frozenset(point.module.split(".")[0] for point in entry_points(group=PLUGIN_GROUP))


def resolve(target: str, base: type, key: str) -> type:
    """Return the class that ``target`` names.

    What counts is where the class was defined and what it is, not how its dotted path begins: a path such as
    ``timm.models._hub.os.system`` starts in an allowed package and ends elsewhere.

    Args:
        target: dotted path of a class.
        base: the class that it must inherit from.
        key: the config key, for the message.

    Raises:
        UserError: the path leads nowhere, outside the allowed packages, or to something that is no ``base``.
    """
    module, _, name = target.rpartition(".")
    if module.split(".")[0] not in allowed_packages():
        raise _refused(target, key)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise UserError(f"{key}: nothing is found at {target!r}; check the spelling of the path") from None
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise UserError(f"{key}: {target!r} is no {base.__name__}")
    if found.__module__.split(".")[0] not in allowed_packages():
        raise _refused(target, key)
    return found


def build(config: Mapping[str, Any], base: type, key: str, **extra: Any) -> Any:
    """Return an instance of ``config['_target_']`` made with the config's other entries.

    Raises:
        UserError: the target may not stand here (see ``resolve``) or refuses the arguments; the message is its own.
    """
    arguments = {name: value for name, value in config.items() if name != "_target_"}
    found = resolve(str(config["_target_"]), base, key)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", r"Argument\(s\).*not valid")  # Albumentations only warns of misspelt ones
            return found(**arguments, **extra)
    except (TypeError, ValueError, UserWarning) as error:
        from pydantic import ValidationError

        invalid = error if isinstance(error, ValidationError) else error.__cause__  # our schema's, Albumentations'
        if isinstance(invalid, ValidationError):
            raise UserError(f"{key}: {found.__name__} refuses {_first_invalid(invalid)}") from None
        reason = " ".join(str(error).split())
        raise UserError(f"{key}: {found.__name__} refuses its arguments: {reason}") from None


def _first_invalid(error: Any) -> str:
    """Return the first complaint of a pydantic ``ValidationError``: argument, value and what is allowed."""
    first = error.errors(include_url=False)[0]
    argument = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"to be built without {argument}: give it a value"
    return f"{argument}={first['input']}: {first['msg']}"


def _refused(target: str, key: str) -> UserError:
    allowed, package = ", ".join(sorted(allowed_packages())), target.partition(".")[0]
    return UserError(
        f"{key}: {target!r} lies outside the allowed packages ({allowed}); "
        f"{ALLOW_FLAG} {package} adds one you trust, an entry point in {PLUGIN_GROUP!r} does so for good"
    )
