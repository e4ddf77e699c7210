"""What a sweep has to be before any of its jobs runs, and where its files lie. Needs no torch but to look at data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tutelage.config import SWEEPERS, Config, OptunaSweeperConfig, SweeperConfig
from tutelage.errors import UserError
from tutelage.process_group import read_world
from tutelage.storage import digest

HASH_LENGTH = 6
# Where and how fast jobs run, what is shown, and how many trials: the same sweep goes on with others of these.
NOT_IN_NAME = re.compile(
    r"[+~]*(hydra|trainer(?!\.precision)|callbacks|logger|paths|data\.(root|unlabelled|num_workers))[.=/]"
)
UNNAMED_SETTINGS = {"params", "trials", "at_once"}
LAUNCHERS = {  # what each needs; a tutelage[NAME] brings it
    "joblib": ("hydra_plugins.hydra_joblib_launcher",),
    "ray": ("ray",),
    "slurm": ("submitit",),
}
ONE_PROCESS_EACH = ("joblib", "ray")  # launchers that share a machine out by jobs


@dataclass(frozen=True)
class Plan:
    """A sweep that may run.

    Attributes:
        path: its folder; the same for the same command, wherever and however it runs.
        launcher: the option of hydra/launcher.
        search: what it goes by, where it looks for the best without seeing the test set; else None.
    """

    path: Path
    launcher: str
    search: SweeperConfig | None


def checked_sweep(overrides: Sequence[str], folders: Sequence[str]) -> Plan:
    """Return the plan of a sweep, after all that can be told before any of its jobs runs.

    Raises:
        UserError: it, one of its values, or what it needs is not as it has to be.
    """
    from tutelage.sweeps.overrides import check_sweep

    configs, hydra = check_sweep(overrides, folders)
    settings = _sweeper(hydra.sweeper)
    _check_launcher(hydra, configs)
    searching = not configs[0].evaluate_test
    if any(config.evaluate_test == searching for config in configs):
        raise UserError("evaluate_test=true,false: all jobs of a sweep have the same; where it is false it is a search")
    if settings.searches and not searching:
        raise UserError(
            "evaluate_test=true: a search must not see the test set: give evaluate_test=false, and train what is found "
            "afterwards"
        )
    path = Path(configs[0].paths.outputs) / ".sweeps" / _name(overrides, settings)
    if searching and not path.exists():  # one that was begun has been looked at
        for config in {config.data.model_dump_json(): config for config in configs}.values():
            _check_validated(config)
    return Plan(path, str(hydra.runtime.choices["hydra/launcher"]), settings if searching else None)


def _sweeper(composed: Any) -> SweeperConfig:
    """Return the settings of ``hydra.sweeper``, checked."""
    from omegaconf import OmegaConf

    from tutelage.config.compose import first_complaint

    target = str(composed.get("_target_"))
    if target not in SWEEPERS:
        raise UserError(f"hydra.sweeper={target}: choose hydra/sweeper=grid, random or optuna")
    try:
        settings = SWEEPERS[target].model_validate(OmegaConf.to_container(composed, resolve=True))
    except ValidationError as error:
        raise UserError(first_complaint(error, "hydra.sweeper.")) from None
    if isinstance(settings, OptunaSweeperConfig) and find_spec("optuna") is None:
        raise UserError("hydra/sweeper=optuna: optuna is not installed: pip install 'tutelage[optuna]'")
    return settings


def _check_launcher(hydra: Any, configs: Sequence[Config]) -> None:
    """Check that the launcher is there and suits the jobs' processes."""
    name = str(hydra.runtime.choices["hydra/launcher"])
    if any(find_spec(module) is None for module in LAUNCHERS.get(name, ())):
        raise UserError(f"hydra/launcher={name}: a package for it is not installed: pip install 'tutelage[{name}]'")
    if read_world().size > 1:
        raise UserError(
            f"a sweep is begun by one process, not by {read_world().size} of {read_world().started_by}: leave that out; "
            "jobs with trainer.devices above 1 begin their own processes, or hydra/launcher=slurm does"
        )
    several = next(
        (config.trainer for config in configs if (config.trainer.devices, config.trainer.nodes) != (1, 1)), None
    )
    if several is not None and name == "slurm" and several.devices == "auto":
        raise UserError("trainer.devices=auto: hydra/launcher=slurm asks for as many tasks a node: give a number")
    if several is not None and name in ONE_PROCESS_EACH:
        raise UserError(
            f"trainer.devices={several.devices}: hydra/launcher={name} gives each job one process; leave it out "
            "(jobs run one after the other, each on all its devices), or use hydra/launcher=slurm"
        )


def _check_validated(config: Config) -> None:
    """Raise a UserError unless there are validation images to search by; ``auto`` is settled by the data."""
    kind = config.data.validation
    if kind == "auto":
        from tutelage.data import data_module

        kind = data_module(config.data).splits.validation_kind
    if kind == "none":
        raise UserError(
            f"data.validation={config.data.validation}: a search goes by validation images, and there are none; "
            "data.validation=inside holds some of the labels out, outside:N takes N other images"
        )


def _name(overrides: Sequence[str], settings: SweeperConfig) -> str:
    """Return the name of a sweep's folder: what it is called, and a hash of what it is."""
    called = {one.partition("=")[0].lstrip("+"): one.partition("=")[2] for one in overrides}
    label = called.get("sweep") or called.get("experiment") or "sweep"
    what = [one for one in overrides if not NOT_IN_NAME.match(one)]
    hashed = digest([sorted(what), settings.model_dump(exclude=UNNAMED_SETTINGS)])
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', label)}-{hashed[:HASH_LENGTH]}"
