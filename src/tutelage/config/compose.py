"""From the overrides of a command line to a checked ``Config``, without torch."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tutelage.config import AugmentationConfig, Config
from tutelage.config.error_lines import HELP_HINT, describe_hydra_error, describe_validation_error, suggest_nearest
from tutelage.config.path_values import quote
from tutelage.config.recipe import PROBLEM
from tutelage.errors import UserError
from tutelage.options import conf_dir

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

CONFIG_DIR_FLAGS = {"--config-dir", "-cd"}
SECTIONS = ["paths", "loss", *(name for name, field in Config.model_fields.items() if field.is_required())]
MAX_QUOTE_LENGTH = 160  # characters of what was typed, and of Hydra's reason, in an error line


def split_config_dirs(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides, and the folders that ``--config-dir`` names.

    Raises:
        UserError: one of the folders does not exist.
    """
    overrides, folders = [], []
    remaining = iter(arguments)
    for argument in remaining:
        name, _, value = argument.partition("=")
        if name in CONFIG_DIR_FLAGS:
            folder = value or next(remaining, "")
            if not Path(folder).is_dir():
                raise UserError(f"--config-dir {folder}: no such folder")
            folders.append(folder)
        else:
            overrides.append(argument)
    return overrides, folders


def compose(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Config:
    """Return the config of a run.

    Args:
        overrides: Hydra's, such as ``data=digits model.width=2``.
        config_dirs: users' own config folders, searched beside ours.

    Raises:
        UserError: Hydra or the schema refuses the overrides.
    """
    return validate_config(compose_with_hydra(overrides, config_dirs))


def search_path_override(config_dirs: Sequence[str]) -> list[str]:
    """Return the override that makes Hydra search users' own config folders; an empty list where there are none."""
    folders = ",".join(quote(f"file://{Path(folder).resolve()}") for folder in config_dirs)
    return [f"hydra.searchpath=[{folders}]"] if folders else []


def compose_with_hydra(overrides: Sequence[str], config_dirs: Sequence[str], include_hydra: bool = False) -> Any:
    """Return the config that Hydra composes, not yet checked against the schema.

    Args:
        overrides: Hydra's.
        config_dirs: users' own config folders, searched beside ours.
        include_hydra: keep Hydra's own section, ``hydra``.

    Raises:
        UserError: Hydra refuses the overrides, or would run what is not allowed.
    """
    from hydra import compose as hydra_compose

    with hydra_initialized(), hydra_errors_as_user_errors(overrides, config_dirs):
        overrides = [*overrides, *search_path_override(config_dirs)]
        return hydra_compose("config", overrides, return_hydra_config=include_hydra)


def show_config(arguments: Sequence[str]) -> None:
    """Print what Hydra's flags ask for: a config (``--cfg job``), or how it is composed (``--info defaults``).

    Raises:
        UserError: Hydra refuses the overrides, or a folder does not exist.
    """
    from hydra._internal.utils import get_args_parser

    others, config_dirs = split_config_dirs(arguments)
    flags = get_args_parser().parse_intermixed_args(others)
    overrides = [*flags.overrides, *search_path_override(config_dirs)]
    with hydra_initialized() as hydra, hydra_errors_as_user_errors(flags.overrides, config_dirs):
        if flags.cfg:
            hydra.show_cfg("config", overrides, flags.cfg, flags.package, flags.resolve)
        else:
            hydra.show_info(flags.info, "config", overrides)


@contextmanager
def hydra_initialized() -> "Iterator[Hydra]":
    """Initialize Hydra with our config folder while the block runs; what it composes there is checked.

    Yields:
        Hydra, whose loader raises a UserError for a config by which Hydra would run what is not allowed.
    """
    from hydra import initialize_config_dir
    from hydra._internal.hydra import Hydra
    from hydra.core.global_hydra import GlobalHydra

    from tutelage.config.loader import ConfigLoader

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = ConfigLoader(GlobalHydra.instance().config_loader().get_search_path())
        GlobalHydra.instance().hydra = hydra = Hydra("train", loader)
        yield hydra


@contextmanager
def hydra_errors_as_user_errors(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Iterator[None]:
    """Turn the errors that Hydra and OmegaConf raise in the block into UserErrors of one line.

    Args:
        overrides: what is composed in the block, for the message.
        config_dirs: users' own config folders, for a hint at the right key.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        yield
    except YAMLError as error:
        raise UserError(f"a config file is not valid YAML: {' '.join(str(error).split())}") from None
    except (HydraException, OmegaConfBaseException) as error:
        list_keys = partial(_list_keys, config_dirs=config_dirs)
        raise UserError(describe_hydra_error(error, overrides, list_keys)) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # Hydra's own, where a value is no option
        typed, reason = " ".join(overrides)[:MAX_QUOTE_LENGTH], " ".join(str(error).split())[:MAX_QUOTE_LENGTH]
        raise UserError(f"{typed}: cannot be composed ({reason}); {HELP_HINT}") from None


def validate_config(composed: Any) -> Config:
    """Return what Hydra composed as a ``Config``.

    Raises:
        UserError: a value is missing, of the wrong type, out of range, or conflicts with another.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(describe_hydra_error(error)) from None
    if not isinstance(plain, dict):
        raise UserError(f"the config is a {type(plain).__name__}, not a mapping of keys; {HELP_HINT}")
    plain.pop("hydra", None)
    recipe = plain.pop("recipe", None) or {}  # empty where no recipe changes anything
    if PROBLEM in recipe:
        raise UserError(recipe[PROBLEM])
    if recipe:
        plain["recipe"] = recipe
    for section in SECTIONS:
        if not isinstance(plain.get(section), dict):
            raise UserError(f"{section}={plain.get(section)}: choose an option; {HELP_HINT}")
    plain["augmentation"] = _drop_parameters(composed.augmentation, plain["augmentation"])
    try:
        return Config.model_validate(plain)
    except ValidationError as error:
        raise UserError(describe_validation_error(error)) from None


def _drop_parameters(composed: Any, plain: dict[str, Any]) -> dict[str, Any]:
    """Return an augmentation without its parameters: keys of no meaning but to be referred to by the others.

    Args:
        composed: the section as Hydra composed it, with its references.
        plain: the same with the references resolved.

    Raises:
        UserError: a key is neither in the schema nor referred to, or ``transforms`` is missing.
    """
    from omegaconf import OmegaConf

    fields = AugmentationConfig.model_fields
    unresolved: Any = OmegaConf.to_container(composed, resolve=False)
    text = str({key: value for key, value in unresolved.items() if key in fields})
    for key in plain:
        if key not in fields and f"${{augmentation.{key}}}" not in text:
            names = [*fields, *re.findall(r"\$\{augmentation\.(\w+)\}", text)]
            raise UserError(f"unknown key 'augmentation.{key}'{suggest_nearest(key, names)} {HELP_HINT}")
    if "transforms" not in plain:
        raise UserError("augmentation.transforms: missing; an empty list means images as they are")
    return {key: value for key, value in plain.items() if key in fields}


def _list_keys(overrides: Sequence[str], config_dirs: Sequence[str]) -> list[str]:
    """Return the keys of the config that the overrides compose; an empty list where they do not."""
    from omegaconf import OmegaConf

    try:
        plain: Any = OmegaConf.to_container(compose_with_hydra(overrides, config_dirs))
        checked = validate_config(OmegaConf.create(plain)).model_dump()
    except UserError:
        return []
    return sorted({key for tree in (plain, checked) for key, _ in flatten(tree)})


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each leaf of nested mappings."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
