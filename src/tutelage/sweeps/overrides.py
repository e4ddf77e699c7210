"""The overrides of a sweep: what each stands for, what an experiment or sweep config adds, and whether all compose."""

import math
from collections.abc import Sequence
from typing import Any

from tutelage.config import Config
from tutelage.config.compose import compose, composed_by_hydra, configs_known, in_one_line
from tutelage.errors import UserError
from tutelage.sweeps.space import Dimension, dimensions

SWEEPING = ("experiment=", "sweep=")  # what may itself be a sweep


def own_sweep(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[str] | None:
    """Return what ``experiment=`` and ``sweep=`` themselves sweep over, as overrides, less the keys that are given.

    Returns:
        None where they are a single run, or there are none.

    Raises:
        UserError: an override cannot be read.
    """
    named = [override for override in overrides if sweeps_itself(override)]
    if several := next((override for override in named if override.startswith("sweep=") and "," in override), None):
        raise UserError(f"{several}: sweep takes one name")
    named = [override for override in named if "," not in override]
    chosen = {override.partition("=")[2] for override in overrides if override.startswith("hydra.mode=")}
    if not named or "RUN" in chosen:
        return None
    hydra = composed_by_hydra(named, config_dirs, with_hydra=True).hydra
    if str(hydra.mode).rpartition(".")[2] != "MULTIRUN":
        return None
    given = {override.lstrip("+~").split("=")[0] for override in overrides}
    return [f"{key}={values}" for key, values in (hydra.sweeper.params or {}).items() if key not in given]


def check_sweep(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> tuple[list[Config], Any]:
    """Compose every value of a sweep once, beside the first of the others: what is wrong is said before any job runs.

    Returns:
        the configs, the first one with the first of all values, and what is said of Hydra itself.

    Raises:
        UserError: an override cannot be read, or a value is refused.
    """
    values = [dimension.typical for dimension in space_of(overrides, config_dirs)]
    firsts = [choices[0] for choices in values]
    others = [
        [*firsts[:place], other, *firsts[place + 1 :]] for place, choices in enumerate(values) for other in choices[1:]
    ]
    of_hydra = [override for override in overrides if override.lstrip("+~").startswith("hydra")]
    configs = [compose(words, config_dirs) for words in (firsts, *others)]
    return configs, composed_by_hydra([*firsts, *of_hydra], config_dirs, with_hydra=True).hydra


def sweeps_itself(override: str) -> bool:
    """Return whether an override names what may itself be a sweep."""
    return override.lstrip("+").startswith(SWEEPING)


def with_sweeper(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[str]:
    """Return the overrides of a sweep with ``hydra/sweeper=grid``, unless they name another, or what they name does."""
    if any(override.startswith("hydra/sweeper=") for override in overrides):
        return list(overrides)
    named = [override for override in overrides if sweeps_itself(override) and "," not in override]
    own = composed_by_hydra(named, config_dirs, with_hydra=True).hydra.runtime.choices["hydra/sweeper"]
    return [*overrides, "hydra/sweeper=grid"] if own == "basic" else list(overrides)


def first_job(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> tuple[list[str], str]:
    """Return the overrides of a sweep's first job and what sets it apart; those of a single run, and nothing.

    Raises:
        UserError: an override cannot be read.
    """
    space = space_of([*overrides, *(own_sweep(overrides, config_dirs) or [])], config_dirs)
    firsts = [one.typical[0] for one in space]
    swept = " ".join(one.typical[0] for one in space if not one.is_fixed)
    if any(one.is_drawn for one in space):
        return firsts, f"one of what a search draws from: {swept}"
    return firsts, f"run 1 of {math.prod(len(one.typical) for one in space)}: {swept}" if swept else ""


def space_of(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[Dimension]:
    """Return what each override of a sweep stands for; those of Hydra itself are left out.

    Raises:
        UserError: an override cannot be read.
    """
    from hydra.core.global_hydra import GlobalHydra

    with configs_known(), in_one_line(overrides, config_dirs):
        return dimensions(overrides, GlobalHydra.instance().config_loader())
