"""From overrides to a composed config: Hydra's loader, with checks, lengths that are typed, and recipes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from tutelage.config.hydra_section import check_hydra_section, check_search_path
from tutelage.config.path_values import override_key, quote_paths
from tutelage.config.recipe import (
    AUTO,
    CHOOSER,
    GROUP,
    NONE,
    PROBLEM,
    RecipeChooser,
    RecipeRequest,
    check_one_recipe,
    fill_found,
    find_recipe,
    keep_needed,
)
from tutelage.config.targets import resolve
from tutelage.errors import UserError


class ConfigLoader(ConfigLoaderImpl):
    """Hydra's loader of configs; it refuses what Hydra would run or apply and nobody has allowed.

    It takes overrides as they are typed, with paths that are not quoted for Hydra's grammar.
    """

    def load_configuration(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, *args: Any, **kwargs: Any
    ) -> DictConfig:
        """Return the composed config, with the settings of its recipe.

        A sweep's own config, of which each job makes another one, gets no settings.

        Raises:
            UserError: its section ``hydra`` would run what is not allowed.
        """

        def load(words: list[str]) -> DictConfig:
            config = super(ConfigLoader, self).load_configuration(config_name, words, run_mode, *args, **kwargs)
            check_hydra_section(config, words)
            _let_typed_length_win(config, words)
            return config

        if run_mode is RunMode.RUN:
            check_one_recipe(overrides)
        try:
            config = load(overrides)
        except HydraException:  # perhaps a key of a network that only a recipe chooses
            config = load(keep_needed(overrides))
            if find_recipe(config) is None:
                raise
        name = find_recipe(config)
        if name is None:
            return config
        if run_mode is RunMode.RUN:
            config = self._load_with_recipe(name, config, config_name, overrides, load)
        task = [override for override in overrides if not override_key(override).startswith(("hydra.", "hydra/"))]
        config.hydra.overrides.task = quote_paths(task)
        return config

    def _load_with_recipe(
        self,
        name: str,
        config: DictConfig,
        config_name: str | None,
        overrides: list[str],
        load: Callable[[list[str]], DictConfig],
    ) -> DictConfig:
        """Return the config with the settings of a recipe; where the data cannot be looked at, with the reason."""
        others = [override for override in overrides if override_key(override) != GROUP]
        needed = [*keep_needed(others), f"{GROUP}={NONE}"]
        config = config if name == AUTO else load(needed)
        chosen = self.compute_defaults_list(config_name, needed, RunMode.RUN).overrides.override_choices
        request = _make_request(name, config, chosen, others)
        try:
            choice = resolve(CHOOSER, RecipeChooser, GROUP)().choose(request)
        except UserError as error:
            with open_dict(config):
                config[GROUP] = {PROBLEM: str(error)}
            return config
        config = load([*others, f"{GROUP}={choice.record.name}", *choice.overrides])
        fill_found(config, choice.found)
        with open_dict(config):
            config[GROUP] = choice.describe(config)
        return config

    def _parse_overrides_and_create_caching_repo(self, config_name: str | None, overrides: list[str]) -> Any:
        check_search_path(overrides)
        return super()._parse_overrides_and_create_caching_repo(config_name, quote_paths(overrides))


def _let_typed_length_win(config: DictConfig, overrides: Sequence[str]) -> None:
    """Clear ``schedule.epochs`` where only ``schedule.steps`` is typed, and the other way round.

    Epochs that are typed are as many as they say: they need not last ``min_steps``.
    """
    typed = {override_key(override) for override in overrides}
    if "schedule.epochs" in typed and "schedule.min_steps" not in typed and "schedule" in config:
        config.schedule.min_steps = 0
    for key, other in (("epochs", "steps"), ("steps", "epochs")):
        is_typed = f"schedule.{key}" in typed and f"schedule.{other}" not in typed
        if is_typed and OmegaConf.select(config, f"schedule.{key}") is not None:
            config.schedule[other] = None


def _make_request(name: str, config: DictConfig, chosen: Mapping[str, Any], overrides: Sequence[str]) -> RecipeRequest:
    """Return what a recipe is chosen by; the arguments are as in ``RecipeRequest``, and the overrides as typed."""
    names: list[Any] = [name for name in config if name != "hydra"]
    sections: Any = OmegaConf.to_container(OmegaConf.masked_copy(config, names), resolve=True)
    sources = config.hydra.runtime.config_sources
    return RecipeRequest(
        name,
        sections,
        {group: option for group, option in chosen.items() if group != GROUP},
        frozenset(map(override_key, overrides)),
        [Path(source.path) for source in sources if source.schema == "file"],
    )
