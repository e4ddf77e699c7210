"""The pictures of a search: a map of a grid over two numeric keys, or the objective over each key that was drawn."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from tutelage.config import MINIMIZED_OBJECTIVES
from tutelage.report.jobs import Job, are_numbers, shorten_key, to_number
from tutelage.report.pictures import COLORS, DARK_SHARE, SHARE_COLORS, SHARES, TEXT_COLOR
from tutelage.report.searches import format_objective
from tutelage.report.sweep_charts import MIN_LOG_RANGE

CELL_SIDE, MAP_MARGIN = 0.95, 1.4  # inches, of a map
PANEL_SIDE, MAX_COLUMNS = 3.1, 4  # inches; panels in a row
MAX_LOG_TICKS = 8  # along a panel
COLOR_FLOOR = 0.1  # of a map's range: what has no colour lies so far below the worst


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
    """Draw a grid over two numeric keys as a map: each cell's colour is its mean, the better the darker.

    The best cell has a frame.
    """
    keys = list(grid)
    cells = _collect_cells(keys, jobs, objective)
    rows, columns = (sorted(set(map(to_number, grid[key]))) for key in keys)
    means = np.array([[np.mean(cells.get((row, column), [math.nan])) for column in columns] for row in rows])
    goodness = -means if objective in MINIMIZED_OBJECTIVES else means
    low, high = float(np.nanmin(goodness)), float(np.nanmax(goodness))
    white = low - COLOR_FLOOR * (high - low)
    size = (MAP_MARGIN + CELL_SIDE * len(columns), MAP_MARGIN + CELL_SIDE * len(rows))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.imshow(goodness, cmap=SHARE_COLORS, aspect="auto", vmin=white, origin="lower", gid=SHARES)
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            color = "white" if goodness[y, x] > white + DARK_SHARE * (high - white) else "black"
            text = _format_cell(cells.get((row, column), []), objective)
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=color)
    best_y, best_x = np.unravel_index(np.nanargmax(goodness), goodness.shape)
    axes.add_patch(Rectangle((best_x - 0.5, best_y - 0.5), 1, 1, fill=False, edgecolor="black", lw=2, clip_on=False))
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
