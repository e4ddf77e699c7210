"""What makes two runs the same run, and where a run therefore lies."""

from pathlib import Path
from typing import Any

from tutelage.config import Config, DistillationConfig, FrozenTeacherConfig, LwFConfig, NoisyStudentConfig
from tutelage.runs.weight_sources import first_data, weights_identity
from tutelage.storage import digest

IDENTITY_VERSION = 2  # since version 2 a view's numbers are drawn for a whole batch at once
HASH_LENGTH = 10

# What a run *is*. Everything else in the config says where and how fast it runs, or what is shown.
SECTIONS = (
    "seed",
    "attempt",
    "debug",
    "data",
    "model",
    "augmentation",
    "strategy",
    "optimizer",
    "scheduler",
    "schedule",
)
TRAINER_KEYS = ("precision",)
# Where the data lies and how fast it is read; what transforms made of mirror stands in the augmentation.
NOT_IN_DATA = ("root", "unlabelled", "num_workers", "mirror")
ALWAYS_IN = ("seed",)  # also at its default, for people who read run.json


def identity(config: Config, fingerprint: str) -> dict[str, Any]:
    """Return the scientific part of a config; values at their schema default are left out.

    Args:
        config: the whole config.
        fingerprint: what the data is, where its name does not say (see ``FolderListing.fingerprint``).
    """
    chosen = config.model_dump(mode="json", exclude_defaults=True)
    picked = {section: chosen[section] for section in SECTIONS if section in chosen}
    picked |= {name: getattr(config, name) for name in ALWAYS_IN}
    picked["data"] = {key: value for key, value in picked["data"].items() if key not in NOT_IN_DATA}
    trainer = {key: value for key, value in chosen.get("trainer", {}).items() if key in TRAINER_KEYS}
    if trainer:
        picked["trainer"] = trainer
    if isinstance(config.strategy, NoisyStudentConfig):
        picked["strategy"] = _self_trained(config, config.strategy, picked["strategy"])
    if isinstance(config.strategy, FrozenTeacherConfig | LwFConfig):
        picked["strategy"] = _taught(config, config.strategy, picked["strategy"])
    if config.init_from is not None:
        picked["init_from"] = weights_identity(config.init_from, "init_from")
        if isinstance(config.strategy, LwFConfig) and not config.strategy.tasks:
            picked["first_task_measured"] = first_data(config.init_from)[0] is not None
    if fingerprint:
        picked["data"]["fingerprint"] = fingerprint
    return {"identity_version": IDENTITY_VERSION, **_plain_numbers(picked)}


def _self_trained(config: Config, strategy: NoisyStudentConfig, chosen: dict[str, Any]) -> dict[str, Any]:
    """Return what the students are, not how it was written, without the keys that change nothing beside the others."""
    students = [
        {
            "model": config.student_model(student).model_dump(mode="json", exclude_defaults=True),
            "length": student.length,
        }
        for student in strategy.planned
    ]
    unused = {"rounds"} if strategy.until == "rounds" else set[str]()
    if strategy.target_type == "hard":
        unused.add("temperature")
    return {**{key: value for key, value in chosen.items() if key not in unused}, "students": students}


def _taught(config: Config, strategy: FrozenTeacherConfig | LwFConfig, chosen: dict[str, Any]) -> dict[str, Any]:
    """Return what a teacher is and does, without the keys that change nothing beside the others."""
    views, unused = config.augmentation, set[str]()
    if isinstance(strategy, FrozenTeacherConfig) and strategy.teachers:
        chosen = {**chosen, "teachers": [weights_identity(given, "strategy.teachers") for given in strategy.teachers]}
        unused |= {"teacher", "teacher_length"}
    if strategy.teacher_logits != "live" and (views.mix is not None or not views.transforms):
        chosen = {**chosen, "teacher_logits": "cached"}  # for each step, or of images as they are
        unused.add("cached_views")
    elif strategy.teacher_logits != "views":
        unused.add("cached_views")
    if isinstance(strategy, DistillationConfig) and strategy.target_type == "hard":
        unused.add("temperature")
    return {key: value for key, value in chosen.items() if key not in unused}


def _plain_numbers(value: Any) -> Any:
    """Return ``value`` with whole floats as integers: 9.0 is typed for 9."""
    if isinstance(value, dict):
        return {key: _plain_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def run_path(config: Config, fingerprint: str) -> Path:
    """Return the folder that belongs to a config: the same for the same science, wherever and whenever it runs."""
    names = [config.data.target.rpartition(".")[2], config.model.target.rpartition(".")[2], config.strategy.name]
    readable = "-".join(name.lower() for name in names) + f"-s{config.seed}"
    return (
        Path(config.paths.outputs) / config.name / f"{readable}-{digest(identity(config, fingerprint))[:HASH_LENGTH]}"
    )
