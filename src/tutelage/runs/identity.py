"""The identity of a run: the part of its config that decides over the result, and the folder that follows from it."""

from pathlib import Path
from typing import Any

from tutelage.config import MONITORS, CallbacksConfig, Config
from tutelage.config.foreign_code import describe_code, list_foreign_packages
from tutelage.config.targets import failures_as_user_errors
from tutelage.runs.weight_sources import find_run_data, weights_identity
from tutelage.storage import digest

# 2: a view's numbers are drawn for a whole batch at once; 3: keys have other names; 4: a strategy is named by its class
# 5: data.labels counts images, and fingerprints hold contents
IDENTITY_VERSION = 5
HASH_LENGTH = 10

# Sections that decide over the result, as callbacks.monitor and callbacks.extra do. All others say where and how fast a
# run computes, or what it shows.
SECTIONS = (
    "seed",
    "attempt",
    "debug",
    "data",
    "model",
    "augmentation",
    "strategy",
    "loss",
    "optimizer",
    "scheduler",
    "schedule",
)
TRAINER_KEYS = ("precision",)
# Location and speed of the data. The fingerprint holds what follows from the layout, the augmentation what its
# transforms make of mirror.
NOT_IN_DATA = ("root", "unlabelled", "layout", "num_workers", "mirror")
ALWAYS_IN = ("seed",)  # also at its default, for readers of run.json


def run_identity(config: Config, fingerprint: str) -> dict[str, Any]:
    """Return the scientific part of a config; values at their schema default are left out.

    Args:
        config: the whole config.
        fingerprint: a digest of the data, where its name does not identify it (see ``data.fingerprint``).
    """
    values = config.model_dump(mode="json", exclude_defaults=True)
    identity = {section: values[section] for section in SECTIONS if section in values}
    identity |= {name: getattr(config, name) for name in ALWAYS_IN}
    identity["data"] = {key: value for key, value in identity["data"].items() if key not in NOT_IN_DATA}
    trainer = {key: value for key, value in values.get("trainer", {}).items() if key in TRAINER_KEYS}
    if trainer:
        identity["trainer"] = trainer
    strategy = config.strategy
    with failures_as_user_errors(type(strategy), f"strategy={strategy.name}: identity()"):
        identity["strategy"] = dict(strategy.identity(config))
        digest(identity["strategy"])  # it is plain
    if teachers := strategy.given_teachers:
        identity["strategy"]["teachers"] = [weights_identity(name, "strategy.teachers") for name in teachers]
    if callbacks := _callbacks_identity(config.callbacks):
        identity["callbacks"] = callbacks
    if config.init_from is not None:
        identity["init_from"] = weights_identity(config.init_from, "init_from")
        if strategy.adds_task:
            identity["first_task_measured"] = find_run_data(config.init_from)[0] is not None
    if fingerprint:
        identity["data"]["fingerprint"] = fingerprint
    return {"identity_version": IDENTITY_VERSION, **_plain_numbers(identity)}


def _callbacks_identity(callbacks: CallbacksConfig) -> dict[str, Any]:
    """Return what selects the best weights, where that is not accuracy, and callbacks of one's own with their code."""
    identity: dict[str, Any] = {} if callbacks.monitor == MONITORS[0] else {"monitor": callbacks.monitor}
    if extra := callbacks.extra:
        code = {package: describe_code(package) for package in list_foreign_packages(extra)}
        identity |= {"extra": extra, **({"code": code} if code else {})}
    return identity


def _plain_numbers(value: Any) -> Any:
    """Return ``value`` with whole floats as integers: users type 9.0 for 9."""
    if isinstance(value, dict):
        return {key: _plain_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def run_path(config: Config, fingerprint: str) -> Path:
    """Return the folder of a config's run: the same for the same identity, wherever and whenever it runs."""
    names = [config.data.target.rpartition(".")[2], config.model.target.rpartition(".")[2], config.strategy.name]
    readable = "-".join(name.lower() for name in names) + f"-s{config.seed}"
    return (
        Path(config.paths.outputs)
        / config.name
        / f"{readable}-{digest(run_identity(config, fingerprint))[:HASH_LENGTH]}"
    )
