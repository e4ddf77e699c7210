"""From command line to a checked config, without torch; what a user got wrong becomes one line."""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tutelage.config import OWN_MODELS, STRATEGIES, AugmentationConfig, Config, Section
from tutelage.errors import UserError

CONFIG_DIR_FLAGS = {"--config-dir", "-cd"}
HELP_HINT = "'tutelage train --help' lists groups and options"
SECTIONS = ["paths", *(name for name, field in Config.model_fields.items() if field.is_required())]
TAGS = OWN_MODELS | STRATEGIES | {"other"}  # the schema's names for alternatives, in no key


def conf_dir() -> Path:
    """Return the folder of the configs: inside the installed package, or at the top of the checkout."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "conf"


def options() -> dict[str, dict[str, str]]:
    """Return each group's options with their first comment line."""
    groups: dict[str, dict[str, str]] = {}
    for file in [*sorted(conf_dir().glob("*/*.yaml")), *sorted(conf_dir().glob("hydra/*/*.yaml"))]:
        comments = [line[1:].strip() for line in file.read_text().splitlines() if line.startswith("#")]
        told = next((line for line in comments if not line.startswith("@")), "")
        groups.setdefault(file.parent.relative_to(conf_dir()).as_posix(), {})[file.stem] = told
    return groups


def split_words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides and the folders given by ``--config-dir``."""
    overrides, folders = [], []
    rest = iter(arguments)
    for argument in rest:
        name, _, value = argument.partition("=")
        if name in CONFIG_DIR_FLAGS:
            folder = value or next(rest, "")
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
        UserError: anything that the schema or Hydra refuses.
    """
    return checked(composed_by_hydra(overrides, config_dirs))


def search_path(config_dirs: Sequence[str]) -> list[str]:
    """Return the override by which Hydra finds users' own config folders beside ours, if there are any."""
    folders = ",".join(f"file://{Path(folder).resolve()}" for folder in config_dirs)
    return [f"hydra.searchpath=[{folders}]"] if folders else []


def composed_by_hydra(overrides: Sequence[str], config_dirs: Sequence[str], with_hydra: bool = False) -> Any:
    """Return what Hydra composes; what it refuses becomes one line."""
    from hydra import compose as hydra_compose

    with configs_known(), in_one_line(overrides, config_dirs):
        return hydra_compose("config", [*overrides, *search_path(config_dirs)], return_hydra_config=with_hydra)


@contextmanager
def configs_known() -> Iterator[None]:
    """Let Hydra know our configs while the block runs."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


@contextmanager
def in_one_line(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Iterator[None]:
    """Turn what Hydra refuses while the block runs into a UserError."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error, overrides, config_dirs)) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # Hydra's, on values that are no option
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{' '.join(overrides)[:160]}: cannot be composed ({reason}); {HELP_HINT}") from None


def checked(composed: Any) -> Config:
    """Return the typed form of what Hydra composed.

    Raises:
        UserError: a value is missing, of the wrong type, out of range, or does not go with another.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(_explain(error)) from None
    assert isinstance(plain, dict)  # noqa: S101 - the top of a config is a mapping
    plain.pop("hydra", None)
    for section in SECTIONS:
        if not isinstance(plain.get(section), dict):
            raise UserError(f"{section}={plain.get(section)}: choose an option; {HELP_HINT}")
    plain["augmentation"] = _without_parameters(composed.augmentation, plain["augmentation"])
    try:
        return Config.model_validate(plain)
    except ValidationError as error:
        raise UserError(first_complaint(error)) from None


def _without_parameters(composed: Any, plain: dict[str, Any]) -> dict[str, Any]:
    """Return an augmentation without the parameters that its other keys refer to: once resolved, they have served.

    Raises:
        UserError: a key that nothing refers to.
    """
    from omegaconf import OmegaConf

    own = AugmentationConfig.model_fields
    written: Any = OmegaConf.to_container(composed, resolve=False)
    referred = str({key: value for key, value in written.items() if key in own})
    for key in plain:
        if key not in own and f"${{augmentation.{key}}}" not in referred:
            known = [*own, *re.findall(r"\$\{augmentation\.(\w+)\}", referred)]
            raise UserError(f"unknown key 'augmentation.{key}'{_nearest(key, known)} {HELP_HINT}")
    if "transforms" not in plain:
        raise UserError("augmentation.transforms: missing; an empty list means images as they are")
    return {key: value for key, value in plain.items() if key in own}


def first_complaint(error: ValidationError, within: str = "") -> str:
    """Return the first complaint of a validation as one line: key, value, what is allowed.

    Args:
        error: the validation's.
        within: what was validated, with a dot behind it; empty for a whole config.
    """
    complaints = error.errors(include_url=False)
    complaint = complaints[0]
    key = within + ".".join(str(part) for part in complaint["loc"] if part not in TAGS)
    told = complaint["msg"].removeprefix("Value error, ")
    more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
    if complaint["type"] == "extra_forbidden":
        return f"unknown key {key!r}{more}{_nearest(str(complaint['loc'][-1]), _all_keys())} {HELP_HINT}"
    if isinstance(complaint["input"], dict | list) or not key:
        return (told if not key or told.startswith(f"{key.split('.')[0]}.") else f"{key}: {told}") + more
    return f"{key}={complaint['input']}: {told[0].lower()}{told[1:]}{more}"


def _explain(error: Exception, overrides: Sequence[str] = (), config_dirs: Sequence[str] = ()) -> str:
    """Return one line for an error of Hydra or OmegaConf."""
    text = str(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1], overrides, config_dirs)
    if found := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, option = found[1], found[2]
        allowed = sorted(re.findall(r"^\t(\S+)$", text, re.MULTILINE)) or sorted(options().get(group, {}))
        return f"{group}={option}: no such option{_nearest(option, allowed)} Allowed: {', '.join(allowed)}"
    if "${experiment}" in text:
        text = "experiment takes one name; several are a sweep: -m experiment=ONE,OTHER"
    if found := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{found[1]} needs a value: give {found[1]}=..."
    if found := re.search(r"[Ii]nterpolation key '([^']+)' not found", text):
        return f"${{{found[1]}}} in the config refers to a key that does not exist"
    if found := re.search(r"Error parsing override '([^']+)'", text):
        return f"{found[1]!r} is not KEY=VALUE; {HELP_HINT}"
    return " ".join(text.split())[:300]


def _unknown_key(key: str, overrides: Sequence[str], config_dirs: Sequence[str]) -> str:
    """Return the line for a key that no config has, with the nearest that exists under the other overrides."""
    known = list(options())
    given = next((o for o in overrides if o.split("=")[0].lstrip("+~") == key), None)
    if given is None:  # not typed: a config file names it
        name = key.partition("@")[0]  # without the package it would go to
        return f"unknown key {name!r} in a config file{_nearest(name, known)} {HELP_HINT}"
    with suppress(UserError):
        from omegaconf import OmegaConf

        others: Any = OmegaConf.to_container(composed_by_hydra([o for o in overrides if o != given], config_dirs))
        known += set(_flat(others)) | set(_flat(checked(OmegaConf.create(others)).model_dump()))
    return f"unknown key {key!r} in {given!r}{_nearest(key, known)} {HELP_HINT}"


def _all_keys() -> list[str]:
    """Return the names of all keys of the schema."""
    sections, known = [Section], set[str]()
    while sections:
        section = sections.pop()
        sections += section.__subclasses__()
        known |= set(section.model_fields)
    return sorted(known)


def _nearest(word: str, known: Sequence[str]) -> str:
    if word in known:
        return ": it goes with other options of its group;"
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f": did you mean {close[0]!r}?" if close else ";"


def _flat(tree: Any, prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{path}.")
        else:
            yield path
