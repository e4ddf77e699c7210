"""What Hydra itself runs or applies, checked in every config that it composes, before it does so.

Hydra instantiates ``hydra.callbacks``, ``hydra.launcher`` and ``hydra.sweeper``, applies ``hydra.job_logging`` and
``hydra.hydra_logging``, sets the variables of ``hydra.job.env_set`` and imports the packages of ``hydra.searchpath``.
A config that somebody sent may set any of them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tutelage.config.allowed_folder import list_flag_packages
from tutelage.config.path_values import override_key
from tutelage.config.targets import ALLOW_FLAG, list_allowed_packages, resolve
from tutelage.errors import UserError

INSTANTIATED = ("callbacks", "launcher", "sweeper")  # sections in which Hydra instantiates every _target_
PLUGIN_KEYS = ("hydra.launcher._target_", "hydra.sweeper._target_")
OWN_PLUGINS = (
    *("hydra._internal.core_plugins.", "hydra_plugins.hydra_joblib_launcher."),
    *("hydra_plugins.tutelage_launchers.", "hydra_plugins.tutelage_sweepers."),
)
NO_LOGGING = {"version": 1, "root": None, "disable_existing_loggers": False}  # Hydra's option none
# Settings of launchers that run code: lines of shell, options of sbatch, another Ray and its processes' environment.
CODE_SETTINGS = ("setup", "sbatch", "address", "runtime_env")
LAUNCHER_FLAG = "launcher"  # --allow launcher: these settings may come from a file
LOCAL_RAY = "local"
NESTED_INTERPOLATION = re.compile(r"\$\{[^}]*\$\{")
MAX_VALUE_LENGTH = 100  # characters of a value in an error line


def check_hydra_section(config: DictConfig, overrides: Sequence[str]) -> None:
    """Check the section ``hydra`` of a composed config.

    Args:
        config: as Hydra composed it, with its references.
        overrides: those of the command line.

    Raises:
        UserError: a value names code that is not allowed, or is one that only Hydra or the command line may set.
    """
    plain: Any = OmegaConf.to_container(config.hydra, resolve=False)
    if len(plain["overrides"]["hydra"]) + len(plain["overrides"]["task"]) != len(overrides):
        raise _refusal("hydra.overrides", plain["overrides"], "is Hydra's own record of the command line; leave it out")
    for section in ("hydra_logging", "job_logging"):
        if plain[section] != NO_LOGGING:
            reason = f"Hydra would build what it names, and sets up no logging here; leave hydra/{section}=none"
            raise _refusal(f"hydra.{section}", _drop_equal(plain[section], NO_LOGGING), reason)
    if plain["job"]["env_copy"]:
        raise _refusal("hydra.job.env_copy", plain["job"]["env_copy"], "jobs have the command's; leave it out")
    if plain["job"]["env_set"]:
        reason = "a config sets no environment variables; type them before the command: NAME=VALUE tutelage train"
        raise _refusal("hydra.job.env_set", plain["job"]["env_set"], reason)
    for key, value in _find_values(config.hydra, "hydra", INSTANTIATED):
        if key.endswith("._target_"):
            _check_target(key, str(value))
        elif "._target_." in key:
            raise _refusal(key, value, "one string names a class")
        elif key.startswith("hydra.launcher."):
            _check_launcher_setting(key, value, overrides)


def _find_values(node: Any, key: str, names: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the key and the value of everything below a node; a reference counts as the value that it refers to.

    Args:
        node: a mapping or a list of OmegaConf.
        key: its own key.
        names: the keys in it that are looked at.

    Raises:
        UserError: a reference is to more than a value, so that it could bring in a ``_target_`` unseen.
    """
    for name in names:
        path = f"{key}.{name}"
        if OmegaConf.is_missing(node, name):
            continue
        if not OmegaConf.is_interpolation(node, name):
            value = node[name]
        elif (value := _resolve_reference(node, name, path)) is None:
            continue
        if OmegaConf.is_list(value):
            yield from _find_values(value, path, range(len(value)))
        elif OmegaConf.is_dict(value):
            yield from _find_values(value, path, list(value))
        else:
            yield path, value


def _resolve_reference(node: Any, name: Any, path: str) -> Any:
    """Return the value that a reference stands for; None where only a job will know it.

    Raises:
        UserError: it stands for a whole section, for a class, or for what another reference decides.
    """
    plain: Any = OmegaConf.to_container(node, resolve=False)
    text = str(plain[name])
    try:
        value = node[name]
    except OmegaConfBaseException:
        value = None
    if name == "_target_" or OmegaConf.is_config(value) or NESTED_INTERPOLATION.search(text):
        raise _refusal(path, text, "Hydra would build what this refers to; write it out")
    return value


def _check_target(key: str, target: str) -> None:
    """Check the class that Hydra would instantiate for a ``_target_``."""
    if key in PLUGIN_KEYS and target.startswith(OWN_PLUGINS):
        return
    is_callback = re.fullmatch(r"hydra\.callbacks\.[^.]+\._target_", key)
    resolve(target, Callback if is_callback else object, key)


def _check_launcher_setting(key: str, value: Any, overrides: Sequence[str]) -> None:
    """Check that a setting of a launcher which can run code is typed, or allowed."""
    runs_code = bool(set(key.split(".")) & set(CODE_SETTINGS)) and value not in {None, LOCAL_RAY}
    runs_code = runs_code or "\n" in f"{key}{value}"  # a line of its own in the script for sbatch
    typed = map(override_key, overrides)
    is_typed = any(f"{key}.".startswith(f"{name}.") for name in typed)
    if runs_code and not is_typed and LAUNCHER_FLAG not in list_flag_packages():
        reason = f"can run any code, and a file sets it: type it, or allow it by {ALLOW_FLAG} {LAUNCHER_FLAG}"
        raise _refusal(key, value, reason)


def check_search_path(overrides: Sequence[str]) -> None:
    """Check that Hydra imports only allowed packages to look for configs in them."""
    for override in overrides:
        if override.lstrip("+~").startswith("hydra.searchpath"):
            for package in re.findall(r"pkg:\W*(\w+)", override):
                if package not in list_allowed_packages():
                    reason = f"Hydra would import it; {ALLOW_FLAG} {package} allows a package that you trust"
                    raise _refusal("hydra.searchpath", f"pkg://{package}", reason)


def _drop_equal(section: Any, usual: Mapping[str, Any]) -> Any:
    """Return what of a section is not as usual; all of one that is no mapping."""
    if not isinstance(section, dict):
        return section
    return {key: value for key, value in section.items() if key not in usual or usual[key] != value}


def _refusal(key: str, value: Any, reason: str) -> UserError:
    text = " ".join(str(value).split())
    return UserError(f"{key}={text[:MAX_VALUE_LENGTH]}: {reason}")
