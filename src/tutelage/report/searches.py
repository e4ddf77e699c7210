"""The result of a search: the best settings by validation, the command that trains them in full, and pictures."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from tutelage.config import MINIMIZED_OBJECTIVES, OBJECTIVES, SweeperConfig
from tutelage.report import page
from tutelage.report.jobs import FOLD, SEED, Job, are_numbers, group_jobs, shorten_key, to_number
from tutelage.report.pictures import COLORS, MIN_LOG_RANGE, TEXT_COLOR
from tutelage.terminal.intervals import format_percent

FULL_SEEDS = "0,1,2,3,4"
RESET_KEYS = (SEED, FOLD, "evaluate_test")  # keys of a job that the command for the best settings sets anew
CELL_SIDE, MAP_MARGIN = 0.95, 1.4  # inches, of a map
PANEL_SIDE, MAX_COLUMNS = 3.1, 4  # inches; panels in a row
MAX_LOG_TICKS = 8  # along a panel
COLOR_FLOOR, WHITE_TEXT = 0.1, 0.6  # of a map's range: white lies so far below the worst; text is white from here on
MAP_CAPTION = (
    "Each cell: the mean over the runs at this point, +- their standard deviation, and their number; darker is better."
)
CLOUDS_CAPTION = (
    "One panel per key, one dot per run: the objective at the value that was drawn. Lists and words have one row per "
    "member: dots are the runs that had it, the stroke is their mean."
)


def get_objective(search: SweeperConfig | None) -> str:
    """Return the metric that runs are ranked by; without a search, the default objective."""
    return OBJECTIVES[0] if search is None else search.objective


def rank_groups(keys: Sequence[str], jobs: Sequence[Job], objective: str) -> list[list[Job]]:
    """Return the runs grouped by their settings of ``keys``, the best mean first.

    Groups in which a run has no value of the objective come last.
    """

    def sort_key(members: Sequence[Job]) -> tuple[bool, float]:
        value = average_objective(members, objective) * (1 if objective in MINIMIZED_OBJECTIVES else -1)
        is_incomplete = any(job.get_result(objective) is None for job in members)
        return is_incomplete, math.inf if math.isnan(value) else value

    return sorted(group_jobs(keys, jobs).values(), key=sort_key)


def average_objective(jobs: Sequence[Job], objective: str) -> float:
    """Return the mean of the objective over runs; NaN if no run has a value."""
    values = [value for job in jobs if (value := job.get_result(objective)) is not None]
    return float(np.mean(values)) if values else math.nan


def format_objective(value: float, objective: str) -> str:
    """Return a value of the objective as a text: a loss as a number, an accuracy in percent."""
    return f"{value:.4g}" if objective in MINIMIZED_OBJECTIVES else format_percent(value)


def build_full_command(best: Job, command: str, search: SweeperConfig) -> str:
    """Return the command that trains the best settings of a search over new seeds and measures them on the test set.

    Args:
        best: a run with the best settings.
        command: the search's command; its flags and its launcher are kept.
        search: the search's settings.
    """
    words = shlex.split(command)
    flags = [word for word in words if word.startswith("--")]
    launcher = [word for word in words if word.lstrip("+").startswith(("hydra/launcher=", "hydra.launcher."))]
    settings = [word for word in best.overrides if word.lstrip("+").partition("=")[0] not in RESET_KEYS]
    sweeper = ["hydra/sweeper=grid"] if search.is_search else []
    folds = [f"{FOLD}=range({best.data_settings['folds']})"] if FOLD in best.settings else []
    repetitions = [*folds, f"{SEED}={FULL_SEEDS}", "evaluate_test=true"]
    return shlex.join(["tutelage", "train", *flags, "-m", *settings, *launcher, *sweeper, *repetitions])


def draw_search(
    keys: Sequence[str], jobs: Sequence[Job], grid: Mapping[str, Sequence[str]], objective: str, folder: Path
) -> list[page.Picture]:
    """Return a map of a grid over two numeric keys, or scatter plots of random trials; none for other sweeps.

    Args:
        keys: the varied keys, without the seed.
        jobs: the finished runs.
        grid: the values of each key if all their combinations were requested; empty if values were drawn at random.
        objective: the metric to draw.
        folder: where the PNG files are written.
    """
    scored = [job for job in jobs if job.get_result(objective) is not None]
    if not scored or not keys:
        return []
    if not grid:
        figure = draw_clouds(keys, scored, objective)
        return [page.save_picture(folder / "clouds.png", figure, f"{objective} over what was drawn", CLOUDS_CAPTION)]
    if len(keys) != 2 or not all(map(are_numbers, grid.values())):  # noqa: PLR2004 - a plane
        return []
    figure = draw_grid_map(grid, scored, objective)
    heading = f"{objective} over {shorten_key(keys[0])} and {shorten_key(keys[1])}"
    return [page.save_picture(folder / "map.png", figure, heading, MAP_CAPTION)]


def _collect_cells(
    keys: Sequence[str], jobs: Sequence[Job], objective: str
) -> Mapping[tuple[float, float], list[float]]:
    """Return the objective's values of the runs at each point of a plane."""
    cells: dict[tuple[float, float], list[float]] = {}
    for job in jobs:
        if (value := job.get_result(objective)) is not None:
            cells.setdefault((to_number(job.settings[keys[0]]), to_number(job.settings[keys[1]])), []).append(value)
    return cells


def draw_grid_map(grid: Mapping[str, Sequence[str]], jobs: Sequence[Job], objective: str) -> Figure:
    """Draw a grid over two numeric keys as a map: each cell's colour is its mean, the better the darker."""
    keys = list(grid)
    cells = _collect_cells(keys, jobs, objective)
    rows, columns = (sorted(set(map(to_number, grid[key]))) for key in keys)
    means = np.array([[np.mean(cells.get((row, column), [math.nan])) for column in columns] for row in rows])
    goodness = -means if objective in MINIMIZED_OBJECTIVES else means
    low, high = float(np.nanmin(goodness)), float(np.nanmax(goodness))
    size = (MAP_MARGIN + CELL_SIDE * len(columns), MAP_MARGIN + CELL_SIDE * len(rows))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.imshow(goodness, cmap="Blues", aspect="auto", vmin=low - COLOR_FLOOR * (high - low), origin="lower")
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            color = "white" if goodness[y, x] > low + WHITE_TEXT * (high - low) else "black"
            text = _format_cell(cells.get((row, column), []), objective)
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    axes.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
    axes.set(xlabel=shorten_key(keys[1]), ylabel=shorten_key(keys[0]))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _format_cell(values: Sequence[float], objective: str) -> str:
    if not values:
        return "no result"
    mean = format_objective(float(np.mean(values)), objective)
    if len(values) == 1:
        return f"{mean}\n1 run"
    deviation = format_objective(float(np.std(values, ddof=1)), objective)
    return f"{mean}\n+- {deviation}\n{len(values)} runs"


def draw_clouds(keys: Sequence[str], jobs: Sequence[Job], objective: str) -> Figure:
    """Draw, for each key, the objective of each run over the value that was drawn for it."""
    rows, columns = math.ceil(len(keys) / MAX_COLUMNS), min(len(keys), MAX_COLUMNS)
    size = (PANEL_SIDE * columns, PANEL_SIDE * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in panels.flat[len(keys) :]:
        axes.set_axis_off()
    for key, axes in zip(keys, panels.flat, strict=False):
        points = [(job.settings[key], value) for job in jobs if (value := job.get_result(objective)) is not None]
        is_numeric = are_numbers(text for text, _ in points)
        axis = _draw_numbers_cloud(axes, points) if is_numeric else _draw_words_cloud(axes, points)
        axis.set_major_formatter(FuncFormatter(lambda value, _: format_objective(value, objective)))
        axis.set_major_locator(MaxNLocator(5 if axis is axes.yaxis else 3))  # tick labels below a panel need more room
        axes.set_title(shorten_key(key), fontsize=10)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_numbers_cloud(axes: Axes, points: Sequence[tuple[str, float]]) -> Axis:
    """Draw points (number as text, objective), numbers along x; return the objective's axis."""
    xs = [to_number(text) for text, _ in points]
    axes.scatter(xs, [value for _, value in points], s=14, color=COLORS[0], alpha=0.7)
    if min(xs) > 0 and max(xs) / min(xs) >= MIN_LOG_RANGE:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=MAX_LOG_TICKS, subs=(1, 3)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    elif all(x.is_integer() for x in xs):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return axes.yaxis


def _draw_words_cloud(axes: Axes, points: Sequence[tuple[str, float]]) -> Axis:
    """Draw points (text, objective) in one row per text or member of a list; return the objective's axis.

    The rows are sorted by their means, the largest at the top.
    """
    values_by_name: dict[str, list[float]] = {}
    for text, value in points:
        for name in _split_members(text):
            values_by_name.setdefault(name, []).append(value)
    names = sorted(values_by_name, key=lambda name: float(np.mean(values_by_name[name])))
    for row, name in enumerate(names):
        values = values_by_name[name]
        axes.scatter(values, [row] * len(values), s=14, color=COLORS[0], alpha=0.7)
        axes.plot(np.mean(values), row, marker="|", color=TEXT_COLOR, markersize=12)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    return axes.xaxis


def _split_members(text: str) -> list[str]:
    """Return the members of a value written as a list (``[a,b]``); of any other value, the value itself."""
    return [part.strip() for part in text[1:-1].split(",")] if text.startswith("[") and text.endswith("]") else [text]
