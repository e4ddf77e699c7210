"""The overrides of a sweep: their values, those that an experiment or sweep config adds, and whether all compose."""

import math
import time
from collections.abc import Sequence
from typing import Any

from tutelage.config import Config
from tutelage.config.compose import compose, compose_with_hydra, hydra_errors_as_user_errors, hydra_initialized
from tutelage.config.path_values import override_key
from tutelage.errors import UserError
from tutelage.sweeps.space import Dimension, check_job_count, parse_dimensions
from tutelage.waiting import WaitLines

WITHOUT_RECIPE = "recipe=none"  # where only the section hydra is asked for, no data is looked at
SWEEP_GROUPS = ("experiment=", "sweep=")  # groups whose options may be sweeps


def find_config_sweep(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[str] | None:
    """Return the overrides that the chosen ``experiment=`` and ``sweep=`` configs sweep over, less keys that are typed.

    Returns:
        None where these configs are a single run, or none is chosen.

    Raises:
        UserError: an override cannot be read.
    """
    chosen = [override for override in overrides if may_be_sweep(override)]
    if several := next((override for override in chosen if override.startswith("sweep=") and "," in override), None):
        raise UserError(f"{several}: sweep takes one name")
    chosen = [override for override in chosen if "," not in override]
    modes = {override.partition("=")[2] for override in overrides if override.startswith("hydra.mode=")}
    if not chosen or "RUN" in modes:
        return None
    hydra = compose_with_hydra([*chosen, WITHOUT_RECIPE], config_dirs, include_hydra=True).hydra
    if str(hydra.mode).rpartition(".")[2] != "MULTIRUN":
        return None
    typed_keys = set(map(override_key, overrides))
    return [f"{key}={values}" for key, values in (hydra.sweeper.params or {}).items() if key not in typed_keys]


def compose_sweep_values(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> tuple[list[Config], Any]:
    """Compose every value of a sweep once, with the first value of each other override: errors come before any job.

    Returns:
        the configs, first the one with all first values, and the composed ``hydra`` section.

    Raises:
        UserError: an override cannot be read, a value is refused, or a grid has too many jobs.
    """
    space = parse_space(overrides, config_dirs)
    values = [dimension.example_overrides for dimension in space]
    first_values = [choices[0] for choices in values]
    hydra_overrides = [override for override in overrides if override.lstrip("+~").startswith("hydra")]
    hydra = compose_with_hydra([*first_values, *hydra_overrides], config_dirs, include_hydra=True).hydra
    if hydra.runtime.choices["hydra/sweeper"] == "grid":
        check_job_count(space)
    variants = [
        [*first_values[:position], value, *first_values[position + 1 :]]
        for position, choices in enumerate(values)
        for value in choices[1:]
    ]
    lines, since, configs = WaitLines(), time.monotonic(), []
    for job in (first_values, *variants):
        configs.append(compose(job, config_dirs))
        lines(f"a check of each of the sweep's {1 + len(variants):,} values", time.monotonic() - since)
    return configs, hydra


def may_be_sweep(override: str) -> bool:
    """Return whether an override chooses a config that may itself be a sweep."""
    return override.lstrip("+").startswith(SWEEP_GROUPS)


def add_default_sweeper(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[str]:
    """Return a sweep's overrides, with ``hydra/sweeper=grid`` unless they, or a config they choose, set a sweeper."""
    if any(override.startswith("hydra/sweeper=") for override in overrides):
        return list(overrides)
    chosen = [override for override in overrides if may_be_sweep(override) and "," not in override]
    words = [*chosen, WITHOUT_RECIPE]
    sweeper = compose_with_hydra(words, config_dirs, include_hydra=True).hydra.runtime.choices["hydra/sweeper"]
    return [*overrides, "hydra/sweeper=grid"] if sweeper == "basic" else list(overrides)


def find_first_job(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> tuple[list[str], str]:
    """Return the overrides of a sweep's first job, and a line that says which job it is; for a single run, no line.

    Raises:
        UserError: an override cannot be read.
    """
    space = parse_space([*overrides, *(find_config_sweep(overrides, config_dirs) or [])], config_dirs)
    first_values = [dimension.example_overrides[0] for dimension in space]
    swept_values = " ".join(dimension.example_overrides[0] for dimension in space if not dimension.is_fixed)
    if any(dimension.needs_draws for dimension in space):
        return first_values, f"one of the jobs that a search may draw: {swept_values}"
    count = math.prod(len(dimension.example_overrides) for dimension in space)
    return first_values, f"run 1 of {count}: {swept_values}" if swept_values else ""


def parse_space(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[Dimension]:
    """Return a dimension for each override of a sweep, but for those of Hydra itself.

    Raises:
        UserError: an override cannot be read.
    """
    from hydra.core.global_hydra import GlobalHydra

    with hydra_initialized(), hydra_errors_as_user_errors(overrides, config_dirs):
        return parse_dimensions(overrides, GlobalHydra.instance().config_loader())
