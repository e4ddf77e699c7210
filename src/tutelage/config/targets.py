"""The class that a ``_target_`` names, checked before it is used, and an instance of it.

Hydra's ``instantiate`` builds whatever a ``_target_`` names; a stored config must not be able to run any function.
"""

import importlib
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from tutelage.config.allowed_folder import (
    ALLOW_VARIABLE,
    FOLDER_VARIABLE,
    NO_PACKAGES,
    lies_in_command_folder,
    list_flag_packages,
)
from tutelage.config.foreign_code import OWN_PACKAGES
from tutelage.errors import UserError

PACKAGE = Path(__file__).parents[1]  # Tutelage's own code
PLUGIN_GROUP = "tutelage.plugins"
ALLOW_FLAG = "--allow"
CODE_ERRORS = (  # what mistakes in code and wrong arguments raise
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(NameError, OSError, RuntimeError, TypeError, ValueError),
)


def apply_allow_flags(arguments: Sequence[str]) -> list[str]:
    """Allow the packages of ``--allow PACKAGE`` in this process and those it starts; return the other arguments.

    Such a package is imported from the current folder too, where none of its name is installed.

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
        os.environ[FOLDER_VARIABLE] = str(Path.cwd())
    return others


def list_allowed_packages() -> frozenset[str]:
    """Return the top-level packages whose classes a config may name: our own, plug-ins and those of ``--allow``."""
    flagged = {*list_flag_packages()} - NO_PACKAGES
    return frozenset({*OWN_PACKAGES, *_list_plugin_packages(), *flagged})


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
    cls = getattr(_import(module, target, key), name, None)
    if cls is None:
        raise _missing_error(target, key)
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        raise UserError(f"{key}: {target!r} is no {base.__name__}")
    if not _lies_in(cls.__module__, allowed):
        raise _not_allowed_error(target, key, allowed)
    if missing := [name for name in dir(cls) if getattr(getattr(cls, name, None), "__isabstractmethod__", False)]:
        raise UserError(f"{key}: {target!r} lacks {', '.join(missing)}: every {base.__name__} has that")
    return cls


def _lies_in(module: str, packages: Iterable[str]) -> bool:
    """Return whether a module is one of the packages, or lies in one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _import(module: str, target: str, key: str) -> ModuleType:
    """Return a module of an allowed package.

    Raises:
        UserError: there is none, or its code fails; the message says where.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise _missing_error(target, key) from None
        raise UserError(f"{key}: {target!r} cannot be imported: {describe_failure(error, '')}") from None


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
    is_secret = key.startswith("logger")  # an argument may be a password
    given = ", ".join(f"{name}={'...' if is_secret else value}" for name, value in arguments.items())
    try:
        with warnings.catch_warnings(), failures_as_user_errors(cls, f"{key}: {cls.__name__}({given})"):
            warnings.filterwarnings("error", r"Argument\(s\).*not valid")  # Albumentations only warns of misspelt ones
            return cls(**arguments, **extra)
    except (TypeError, ValueError, UserWarning) as error:
        from pydantic import ValidationError

        invalid = error if isinstance(error, ValidationError) else error.__cause__  # our schema's, Albumentations'
        if isinstance(invalid, ValidationError):
            raise UserError(f"{key}: {cls.__name__} refuses {_first_invalid(invalid)}") from None
        reason = " ".join(str(error).split())
        raise UserError(f"{key}: {cls.__name__} refuses its arguments: {reason}") from None


@contextmanager
def failures_as_user_errors(cls: type, action: str, expected: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what fails in the block into a UserError of one line, where ``cls`` is not ours.

    Of our own code a traceback says more.

    Args:
        cls: the class whose code runs in the block.
        action: the beginning of the line: what the code does, for which values.
        expected: exceptions that go on as they are.
    """
    try:
        yield
    except CODE_ERRORS as error:
        if isinstance(error, expected) or not is_foreign(cls):
            raise
        raise UserError(f"{action}: {describe_failure(error, find_file(cls))}") from error


def find_file(cls: type) -> str:
    """Return the file that defines a class; an empty string where there is none."""
    return getattr(sys.modules.get(cls.__module__), "__file__", None) or ""


def is_foreign(cls: type) -> bool:
    """Return whether a class is not ours."""
    return cls.__module__.partition(".")[0] not in OWN_PACKAGES


def describe_failure(error: Exception, file: str) -> str:
    """Return an error of a user's code as a part of a line: its kind, its message, and where it was raised.

    Args:
        error: the error.
        file: the file whose line is named, if the error passed through it; else the line that raised it is.
    """
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, SyntaxError):
        return f"{reason} ({error.filename}, line {error.lineno})"
    if isinstance(error, ModuleNotFoundError) and lies_in_command_folder(package := (error.name or "").split(".")[0]):
        return f"{reason}: {ALLOW_FLAG} {package} allows the one in the current folder"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    frame = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
    is_ours = Path(frame.filename).is_relative_to(PACKAGE)
    return reason if is_ours else f"{reason} ({frame.filename}, line {frame.lineno})"


def _first_invalid(error: Any) -> str:
    """Return the first complaint of a pydantic ``ValidationError``: argument, value and what is allowed."""
    first = error.errors(include_url=False)[0]
    argument = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"to be built without {argument}: give it a value"
    return f"{argument}={first['input']}: {first['msg']}"


def _missing_error(target: str, key: str) -> UserError:
    return UserError(f"{key}: {target!r} does not exist; check the spelling of the path")


def _not_allowed_error(target: str, key: str, allowed: Iterable[str]) -> UserError:
    package = target.partition(".")[0]
    return UserError(
        f"{key}: {target!r} is outside the allowed packages ({', '.join(sorted(allowed))}); "
        f"{ALLOW_FLAG} {package} allows a package that you trust, an entry point in {PLUGIN_GROUP!r} does so for good"
    )
