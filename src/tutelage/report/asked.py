"""What a run was asked to do: its data, labels, network, method and recipe, in words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.config import Config, DataConfig, NearestNeighboursConfig
from tutelage.config.recipe import GROUP, NONE
from tutelage.data import ImageDataModule, abbreviate
from tutelage.data.fingerprints import NAMED_DATA
from tutelage.report.templating import Column, Table
from tutelage.runs import main_stage_name
from tutelage.terminal.time_left import format_duration

REASON_COLUMNS = (Column("key", is_text=True), Column("why", is_text=True))


def name_data(config: DataConfig) -> str:
    """Return the name of a dataset, or of the folder or table that holds the user's own data."""
    name = config.target.rpartition(".")[2]
    is_named = config.root is None or (config.is_ours and name in NAMED_DATA)
    return name if is_named else Path(str(config.root)).expanduser().resolve().name


def describe_request(config: Config, record: Mapping[str, Any], data: ImageDataModule) -> dict[str, str]:
    """Return by name what is to be known of a run before its results."""
    splits, main = data.splits, next(e for e in record["stages"] if e["name"] == main_stage_name(record))
    classes = data.source.classes
    others = {
        "without labels": len(splits.pool),
        "for validation": len(splits.validation),
        "for the test": len(splits.test),
    }
    facts = {
        "data": f"{name_data(config.data)}: {len(data.source.labels):,} images, {_describe_pictures(config)}",
        "classes": f"{len(classes):,}: {abbreviate(classes)}",
        "labels": f"{len(splits.labelled):,}{_describe_budget(config)}",
        "other images": ", ".join(f"{count:,} {name}" for name, count in others.items() if count),
        "network": f"{main['model']['_target_'].rpartition('.')[2]}, {main['parameters']:,} weights; begins with "
        f"{'random weights' if config.init_from is None else config.init_from.rpartition('/')[2]}",
        "strategy": config.strategy.name.replace("_", " "),
        "augmentation": _describe_augmentation(config),
        "training": _describe_training(config) + _describe_time(record),
    }
    recipe = config.recipe
    if recipe is None or recipe.name == NONE:
        return facts
    return {**facts, "found": recipe.found, "recipe": f"{recipe.name}: {recipe.reasons[GROUP]}"}


def make_reasons(config: Config) -> Table:
    """Return the reason of each key that a recipe has set; no rows without a recipe."""
    recipe = config.recipe
    reasons = {} if recipe is None or recipe.name == NONE else recipe.reasons
    return Table("reasons of the recipe", REASON_COLUMNS, [(key, why) for key, why in reasons.items() if key != GROUP])


def _describe_pictures(config: Config) -> str:
    data = config.data
    return f"seen at {data.image_size} pixels, {'grey' if data.channels == 1 else 'in colour'}"


def _describe_budget(config: Config) -> str:
    data = config.data
    if data.labels_per_class is not None:
        return f" (data.labels_per_class={data.labels_per_class})"
    return "" if data.labels is None else f" (data.labels={data.labels})"


def _describe_augmentation(config: Config) -> str:
    augmentation = config.augmentation
    names = [str(transform["_target_"]).rpartition(".")[2] for transform in augmentation.transforms]
    if augmentation.strong:
        names.append("a second, strong view")
    if augmentation.mix is not None:
        names += [name for name in ("cutmix", "mixup") if getattr(augmentation.mix, name)]
    return ", ".join(names) or "none"


def _describe_training(config: Config) -> str:
    if isinstance(config.model, NearestNeighboursConfig):
        return "one pass"
    schedule, optimizer = config.schedule, config.optimizer
    length = f"{schedule.steps:,} steps" if schedule.steps else f"{schedule.epochs:g} epochs"
    rate = f"{optimizer.name} with a learning rate of {optimizer.lr:g}"
    return f"{length} of {config.data.batch_size} labelled images, {rate}, seed {config.seed}"


def _describe_time(record: Mapping[str, Any]) -> str:
    """Return the time of all stages; nothing for runs of versions that did not measure it."""
    seconds, threads = sum(entry.get("seconds", 0) for entry in record["stages"]), record.get("threads")
    if not seconds:
        return ""
    where = f" on {threads} {'thread' if threads == 1 else 'threads'}" if threads else ""
    return f"; {format_duration(seconds)}{where}"
