"""The checks of a sweep before its first job, and the name of its folder. Only a look at the data needs torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tutelage.config import SWEEPERS, Config, OptunaSweeperConfig, SweeperConfig
from tutelage.errors import UserError
from tutelage.storage import digest
from tutelage.world import read_world

HASH_LENGTH = 6
# Overrides of where and how fast jobs run, of what is shown, and of the number of trials: they change no sweep's name.
NOT_IN_NAME = re.compile(
    r"[+~]*(hydra|trainer(?!\.precision)|callbacks(?!\.(?:extra|monitor))|logger|paths|data\.(root|unlabelled|num_workers))[.=/]"
)
UNNAMED_SETTINGS = {"params", "trials", "at_once"}
LAUNCHER_MODULES = {  # that each launcher needs; the extra tutelage[NAME] installs them
    "joblib": ("hydra_plugins.hydra_joblib_launcher",),
    "ray": ("ray",),
    "slurm": ("submitit",),
}
ONE_PROCESS_EACH = ("joblib", "ray")  # launchers that run each job in one process, several jobs on a machine


@dataclass(frozen=True)
class SweepSpec:
    """A sweep that has passed all checks.

    Attributes:
        path: the sweep's folder; the same for the same command, wherever and however it runs.
        launcher: the option of hydra/launcher.
        search: the sweeper's settings where the sweep looks for the best without the test set; None where it does not.
    """

    path: Path
    launcher: str
    search: SweeperConfig | None


def check_sweep_command(overrides: Sequence[str], config_dirs: Sequence[str]) -> SweepSpec:
    """Check a sweep as far as that is possible before its first job, and return its spec.

    Raises:
        UserError: a value is refused, a package is missing, or a search would see the test set.
    """
    from tutelage.sweeps.overrides import compose_sweep_values

    configs, hydra = compose_sweep_values(overrides, config_dirs)
    settings = _validate_sweeper(hydra.sweeper)
    _check_launcher(hydra, configs)
    is_search = not configs[0].evaluate_test
    if any(config.evaluate_test == is_search for config in configs):
        raise UserError(
            "evaluate_test=true,false: all jobs of a sweep need the same value; with false the sweep is a search"
        )
    if settings.is_search and not is_search:
        raise UserError(
            "evaluate_test=true: a search must not see the test set: give evaluate_test=false, and train the best "
            "setting afterwards"
        )
    path = Path(configs[0].paths.outputs) / ".sweeps" / _make_folder_name(overrides, settings)
    if is_search and not path.exists():  # a sweep that has a folder has passed this check
        for config in {config.data.model_dump_json(exclude={"fold"}): config for config in configs}.values():
            _check_has_validation_images(config)
    return SweepSpec(path, str(hydra.runtime.choices["hydra/launcher"]), settings if is_search else None)


def _validate_sweeper(composed: Any) -> SweeperConfig:
    """Return the settings of ``hydra.sweeper``, validated by the sweeper's schema."""
    from omegaconf import OmegaConf

    from tutelage.config.error_lines import describe_validation_error

    target = str(composed.get("_target_"))
    if target not in SWEEPERS:
        raise UserError(f"hydra.sweeper={target}: choose hydra/sweeper=grid, random or optuna")
    try:
        settings = SWEEPERS[target].model_validate(OmegaConf.to_container(composed, resolve=True))
    except ValidationError as error:
        raise UserError(describe_validation_error(error, "hydra.sweeper.")) from None
    if isinstance(settings, OptunaSweeperConfig) and find_spec("optuna") is None:
        raise UserError("hydra/sweeper=optuna: optuna is not installed: pip install 'tutelage[optuna]'")
    return settings


def _check_launcher(hydra: Any, configs: Sequence[Config]) -> None:
    """Check that the launcher is installed, and that it can start the processes that the jobs need."""
    name = str(hydra.runtime.choices["hydra/launcher"])
    if any(find_spec(module) is None for module in LAUNCHER_MODULES.get(name, ())):
        raise UserError(f"hydra/launcher={name}: a package for it is not installed: pip install 'tutelage[{name}]'")
    world = read_world()
    if world.size > 1:
        raise UserError(
            f"a sweep is started by one process, not by {world.size} of {world.started_by}: type it without "
            f"{world.started_by}; jobs with trainer.devices above 1 start their own processes, or "
            "hydra/launcher=slurm starts them"
        )
    trainer = next(
        (config.trainer for config in configs if (config.trainer.devices, config.trainer.nodes) != (1, 1)), None
    )
    if trainer is not None and name == "slurm" and trainer.devices == "auto":
        raise UserError("trainer.devices=auto: hydra/launcher=slurm needs the number of tasks on a node: give a number")
    if trainer is not None and name in ONE_PROCESS_EACH:
        raise UserError(
            f"trainer.devices={trainer.devices}: hydra/launcher={name} gives each job one process; leave "
            f"hydra/launcher={name} out (jobs run one after the other, each on all its devices), or use "
            "hydra/launcher=slurm"
        )


def _check_has_validation_images(config: Config) -> None:
    """Raise a UserError where a search has no validation images; for ``data.validation=auto`` the data are read."""
    kind = config.data.validation
    if kind == "auto":
        from tutelage.data import data_module

        kind = data_module(config.data).splits.validation_kind
    if kind == "none":
        raise UserError(
            f"data.validation={config.data.validation}: a search needs validation images, and there are none; "
            "data.validation=inside holds out some of the labelled images, outside:N takes N other images"
        )


def _make_folder_name(overrides: Sequence[str], settings: SweeperConfig) -> str:
    """Return the name of a sweep's folder: its ``sweep=`` or ``experiment=``, and a hash of what it varies."""
    values = {override.partition("=")[0].lstrip("+"): override.partition("=")[2] for override in overrides}
    title = values.get("sweep") or values.get("experiment") or "sweep"
    hashed_overrides = sorted(override for override in overrides if not NOT_IN_NAME.match(override))
    suffix = digest([hashed_overrides, settings.model_dump(exclude=UNNAMED_SETTINGS)])[:HASH_LENGTH]
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', title)}-{suffix}"
