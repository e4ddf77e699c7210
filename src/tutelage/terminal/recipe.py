"""The lines that say which recipe a config has, and why."""

from collections.abc import Sequence

from tutelage.config import Config, NearestNeighboursConfig
from tutelage.config.recipe import GROUP, NONE


def describe_recipe(config: Config) -> list[str]:
    """Return six lines: what was found, what was chosen and why, and how to choose otherwise; none without a recipe."""
    recipe = config.recipe
    if recipe is None or recipe.name == NONE:
        return []
    data, options, schedule = config.data, recipe.options, config.schedule
    colours = "grey" if data.channels == 1 else "in colour"
    flips = any(str(transform["_target_"]).endswith("HorizontalFlip") for transform in config.augmentation.transforms)
    mirrored = ", mirrored" if data.mirror and flips else ""
    weights = "random weights" if config.init_from is None else f"the weights {config.init_from.rpartition('/')[2]}"
    steps = f"{schedule.steps:,} steps" if schedule.steps else f"{schedule.epochs:g} epochs"
    at_least = f", and {schedule.min_steps:,} steps at least," if schedule.min_steps else ""
    length = (
        "one pass"
        if isinstance(config.model, NearestNeighboursConfig)
        else f"{steps}{at_least} of {data.batch_size} labelled pictures, learning rate {config.optimizer.lr:g}"
    )
    rows = [
        ("found", recipe.found),
        ("recipe", f"{recipe.name}: {recipe.reasons[GROUP]}"),
        ("pictures", f"{data.image_size} pixels, {colours}{mirrored}; augmentation={options['augmentation']}"),
        ("network", f"model={options['model']}, which begins with {weights}"),
        ("training", f"strategy={options['strategy']}; {length}"),
        (
            "otherwise",
            "type any key, or recipe=none; 'tutelage recipe' instead of 'train' gives the reason of each key",
        ),
    ]
    return align(rows)


def align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows of cells as lines in which each column but the last has one width."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    return [
        "  ".join([*(f"{cell:<{width}}" for cell, width in zip(row[:-1], widths, strict=True)), row[-1]])
        for row in rows
    ]
