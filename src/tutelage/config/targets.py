"""The class that a ``_target_`` names, checked before it is used, and an instance of it.

Hydra's ``instantiate`` builds whatever a ``_target_`` names; a stored config must not be able to run any function.
"""

import importlib
import inspect
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from tutelage.errors import UserError

PLUGIN_GROUP = "tutelage.plugins"
ALLOW_FLAG = "--allow"
ALLOW_VARIABLE = "TUTELAGE_ALLOW"


def apply_allow_flags(arguments: Sequence[str]) -> list[str]:
    """Allow the packages of ``--allow PACKAGE`` in this process and those it starts; return the other arguments.

    Raises:
        UserError: no name of a top-level package follows the flag.
    """
    others: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        name, _, package = argument.partition("=")
        if name != ALLOW_FLAG:
            others.append(argument)
            continue
        package = package or next(remaining, "")
        if not package.isidentifier():
            raise UserError(
                f"{ALLOW_FLAG} {package}: give the name of a top-level package, such as {ALLOW_FLAG} mymodels"
            )
        os.environ[ALLOW_VARIABLE] = " ".join(dict.fromkeys([*list_flag_packages(), package]))
    return others


def list_flag_packages() -> list[str]:
    """Return the packages that ``--allow`` named."""
    return os.environ.get(ALLOW_VARIABLE, "").split()


def list_allowed_packages() -> frozenset[str]:
    """Return the top-level packages whose classes a config may name: our own, plug-ins and those of ``--allow``."""
    return frozenset({"tutelage", "albumentations", *_list_plugin_packages(), *list_flag_packages()})


@cache
def _list_plugin_packages() -> frozenset[str]:
    """Return the top-level packages of installed plug-ins, cached: the search reads a file of every distribution."""
    return frozenset(point.module.split(".")[0] for point in entry_points(group=PLUGIN_GROUP))


def resolve(target: str, base: type, key: str, also: Sequence[str] = ()) -> type:
    """Return the class that ``target`` names.

    The module that defines the class must be in an allowed package. The start of the dotted path is not enough:
    ``timm.models._hub.os.system`` starts in an allowed package and ends in ``os``.

    Args:
        target: the dotted path of a class.
        base: the class that it must inherit from.
        key: the config key, for the error message.
        also: dotted paths of further packages that are allowed for this key.

    Raises:
        UserError: the path names nothing, something outside the allowed packages, or something that is no ``base``.
    """
    module, _, name = target.rpartition(".")
    allowed = {*list_allowed_packages(), *also}
    if not _lies_in(module, allowed):
        raise _not_allowed_error(target, key, allowed)
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise UserError(f"{key}: {target!r} does not exist; check the spelling of the path") from None
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        raise UserError(f"{key}: {target!r} is no {base.__name__}")
    if not _lies_in(cls.__module__, allowed):
        raise _not_allowed_error(target, key, allowed)
    return cls


def _lies_in(module: str, packages: Iterable[str]) -> bool:
    """Return whether a module is one of the packages, or lies in one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def build(config: Mapping[str, Any], base: type, key: str, also: Sequence[str] = (), **extra: Any) -> Any:
    """Return an instance of the class ``config['_target_']``, made with the config's other entries.

    Args:
        config: ``_target_`` and the arguments of its class.
        base: the class that it must inherit from.
        key: the config key, for the error message.
        also: dotted paths of further packages that are allowed for this key.
        extra: further arguments.

    Raises:
        UserError: the class is not allowed here (see ``resolve``), or it refuses the arguments with this message.
    """
    arguments = {name: value for name, value in config.items() if name != "_target_"}
    cls = resolve(str(config["_target_"]), base, key, also)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", r"Argument\(s\).*not valid")  # Albumentations only warns of misspelt ones
            return cls(**arguments, **extra)
    except (TypeError, ValueError, UserWarning) as error:
        from pydantic import ValidationError

        invalid = error if isinstance(error, ValidationError) else error.__cause__  # our schema's, Albumentations'
        if isinstance(invalid, ValidationError):
            raise UserError(f"{key}: {cls.__name__} refuses {_first_invalid(invalid)}") from None
        reason = " ".join(str(error).split())
        raise UserError(f"{key}: {cls.__name__} refuses its arguments: {reason}") from None


def _first_invalid(error: Any) -> str:
    """Return the first complaint of a pydantic ``ValidationError``: argument, value and what is allowed."""
    first = error.errors(include_url=False)[0]
    argument = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"to be built without {argument}: give it a value"
    return f"{argument}={first['input']}: {first['msg']}"


def _not_allowed_error(target: str, key: str, allowed: Iterable[str]) -> UserError:
    package = target.partition(".")[0]
    return UserError(
        f"{key}: {target!r} is outside the allowed packages ({', '.join(sorted(allowed))}); "
        f"{ALLOW_FLAG} {package} allows a package that you trust, an entry point in {PLUGIN_GROUP!r} does so for good"
    )
