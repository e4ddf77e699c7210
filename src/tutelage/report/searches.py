"""What a search found: the best by validation, the command that trains it in full, and pictures of all it tried."""

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
from tutelage.report.jobs import SEED, Job, grouped, is_number, short
from tutelage.report.pictures import COLORS, INK, WIDE_RANGE

FULL_SEEDS = "0,1,2,3,4"
NOT_CHOSEN = (SEED, "evaluate_test")  # keys of a job that the command for the best sets anew
CELL, MARGIN = 0.95, 1.4  # inches, of a map
PANEL, ABREAST = 3.1, 4  # inches of a panel's side; panels in a row
LOG_TICKS = 8  # at most, along a panel
FAINTEST, DARK = 0.1, 0.6  # of a map's range: below the worst, so that it has a colour; where letters turn white
MAP_TOLD = (
    "Each cell: the mean over its runs, +- their standard deviation where there are several, and how many there are."
)
CLOUD_TOLD = (
    "A dot a run, over what it drew. Of a list there is a row for each of its members: the runs that had it, and their "
    "mean."
)


def objective_of(search: SweeperConfig | None) -> str:
    """Return what runs are ranked by."""
    return OBJECTIVES[0] if search is None else search.objective


def ranked(keys: Sequence[str], jobs: Sequence[Job], objective: str) -> list[list[Job]]:
    """Return the runs by their values at ``keys``, the best mean first; last those of which some have no objective."""

    def place(members: Sequence[Job]) -> tuple[bool, float]:
        value = mean(members, objective) * (1 if objective in MINIMIZED_OBJECTIVES else -1)
        return any(job.seen(objective) is None for job in members), math.inf if math.isnan(value) else value

    return sorted(grouped(keys, jobs).values(), key=place)


def mean(jobs: Sequence[Job], objective: str) -> float:
    """Return the mean of an objective over runs; not a number where there is none."""
    values = [value for job in jobs if (value := job.seen(objective)) is not None]
    return float(np.mean(values)) if values else math.nan


def told(value: float, objective: str) -> str:
    """Return a value of an objective as it is told: a share in percent."""
    return f"{value:.4g}" if objective in MINIMIZED_OBJECTIVES else f"{100 * value:.1f} %"


def command_for(best: Job, command: str, search: SweeperConfig) -> str:
    """Return the command that trains what a search found with new seeds, and only then meets the test set.

    Args:
        best: a run of the best.
        command: the search's; its flags are taken over, and where its jobs ran.
        search: how it searched.
    """
    typed = shlex.split(command)
    flags = [word for word in typed if word.startswith("--")]
    where = [word for word in typed if word.lstrip("+").startswith(("hydra/launcher=", "hydra.launcher."))]
    chosen = [one for one in best.overrides if one.lstrip("+").partition("=")[0] not in NOT_CHOSEN]
    over_seeds = ["hydra/sweeper=grid"] if search.is_search else []
    words = [*flags, "-m", *chosen, *where, *over_seeds, f"{SEED}={FULL_SEEDS}", "evaluate_test=true"]
    return shlex.join(["tutelage", "train", *words])


def pictures_of(
    keys: Sequence[str], jobs: Sequence[Job], asked: Mapping[str, Sequence[str]], objective: str, folder: Path
) -> list[page.Picture]:
    """Return a map of a grid over two numbers, or clouds of trials that were drawn; none of anything else.

    Args:
        keys: what was varied, but for the seed.
        jobs: the finished runs.
        asked: the values of each key whose every combination was asked for; empty where they were drawn.
        objective: what is drawn.
        folder: takes the files.
    """
    seen = [job for job in jobs if job.seen(objective) is not None]
    if not seen or not keys:
        return []
    if not asked:
        figure = clouds(keys, seen, objective)
        return [page.picture(folder / "clouds.png", figure, f"{objective} over what was drawn", CLOUD_TOLD)]
    if len(keys) != 2 or not all(is_number(value) for values in asked.values() for value in values):  # noqa: PLR2004 - a plane
        return []
    figure = grid_map(asked, seen, objective)
    heading = f"{objective} over {short(keys[0])} and {short(keys[1])}"
    return [page.picture(folder / "map.png", figure, heading, MAP_TOLD)]


def cells(keys: Sequence[str], jobs: Sequence[Job], objective: str) -> Mapping[tuple[float, float], list[float]]:
    """Return the objective's values of the runs at each point of a plane."""
    found: dict[tuple[float, float], list[float]] = {}
    for job in jobs:
        if (value := job.seen(objective)) is not None:
            found.setdefault((float(job.chosen[keys[0]]), float(job.chosen[keys[1]])), []).append(value)
    return found


def grid_map(asked: Mapping[str, Sequence[str]], jobs: Sequence[Job], objective: str) -> Figure:
    """Draw the means of a grid over two numbers as colours, the better the darker, with all of their numbers."""
    keys = list(asked)
    found = cells(keys, jobs, objective)
    rows, columns = (sorted(set(map(float, asked[key]))) for key in keys)
    means = np.array([[np.mean(found.get((row, column), [math.nan])) for column in columns] for row in rows])
    goodness = -means if objective in MINIMIZED_OBJECTIVES else means
    low, high = float(np.nanmin(goodness)), float(np.nanmax(goodness))
    size = (MARGIN + CELL * len(columns), MARGIN + CELL * len(rows))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.imshow(goodness, cmap="Blues", aspect="auto", vmin=low - FAINTEST * (high - low), origin="lower")
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            color = "white" if goodness[y, x] > low + DARK * (high - low) else "black"
            text = _in_cell(found.get((row, column), []), objective)
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    axes.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
    axes.set(xlabel=short(keys[1]), ylabel=short(keys[0]))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _in_cell(values: Sequence[float], objective: str) -> str:
    if not values:
        return "no result"
    mean = told(float(np.mean(values)), objective)
    if len(values) == 1:
        return f"{mean}\n1 run"
    return f"{mean}\n+- {told(float(np.std(values, ddof=1)), objective)}\n{len(values)} runs"


def clouds(keys: Sequence[str], jobs: Sequence[Job], objective: str) -> Figure:
    """Draw, for each key, the objective of each run over what it drew."""
    rows, columns = math.ceil(len(keys) / ABREAST), min(len(keys), ABREAST)
    size = (PANEL * columns, PANEL * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in panels.flat[len(keys) :]:
        axes.set_axis_off()
    for key, axes in zip(keys, panels.flat, strict=False):
        points = [(job.chosen[key], value) for job in jobs if (value := job.seen(objective)) is not None]
        axis = _along_x(axes, points) if all(is_number(text) for text, _ in points) else _in_rows(axes, points)
        axis.set_major_formatter(FuncFormatter(lambda value, _: told(value, objective)))
        axis.set_major_locator(MaxNLocator(5 if axis is axes.yaxis else 3))  # those below a panel stand side by side
        axes.set_title(short(key), fontsize=10)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _along_x(axes: Axes, points: Sequence[tuple[str, float]]) -> Axis:
    """Draw dots (number as text, objective) and return the objective's axis."""
    xs = [float(text) for text, _ in points]
    axes.scatter(xs, [value for _, value in points], s=14, color=COLORS[0], alpha=0.7)
    if min(xs) > 0 and max(xs) / min(xs) >= WIDE_RANGE:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=LOG_TICKS, subs=(1, 3)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    elif all(x.is_integer() for x in xs):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return axes.yaxis


def _in_rows(axes: Axes, points: Sequence[tuple[str, float]]) -> Axis:
    """Draw dots (text, objective), a row a text or a member of a list, by their means; return the objective's axis."""
    found: dict[str, list[float]] = {}
    for text, value in points:
        for name in members(text):
            found.setdefault(name, []).append(value)
    names = sorted(found, key=lambda name: float(np.mean(found[name])))
    for place, name in enumerate(names):
        values = found[name]
        axes.scatter(values, [place] * len(values), s=14, color=COLORS[0], alpha=0.7)
        axes.plot(np.mean(values), place, marker="|", color=INK, markersize=12)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    return axes.xaxis


def members(text: str) -> list[str]:
    """Return what a value is drawn as: the members of a list, or itself."""
    return [part.strip() for part in text[1:-1].split(",")] if text.startswith("[") and text.endswith("]") else [text]
