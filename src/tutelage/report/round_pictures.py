"""The pictures of the rounds of a noisy student: small multiples, a panel a round or a measure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, MultipleLocator, PercentFormatter, StrMethodFormatter

from tutelage.report.pictures import (
    BAD,
    COLORS,
    FAINT,
    GOOD,
    INK,
    MOST_NAMED_CLASSES,
    PLAIN,
    bare,
    shortened,
)

ABREAST = 4  # panels in a row
PANEL = (2.7, 2.4)  # inches
CLASS_HEIGHT = 0.21  # inches of a class's bar
FEW_IN_BIN = 10  # images; the precision of fewer says little and is drawn faint
SMALLEST_DOT, LARGEST_DOT = 18.0, 130.0  # points squared; the largest is the fullest bin's
TICKS = 0.2  # of shares
ROOM = 0.35  # of the range of values, above and below


@dataclass(frozen=True)
class Trace:
    """A measure over the networks of a run, in the order in which they learned: values by their number."""

    heading: str
    values: Mapping[int, float]


def over_rounds(networks: Sequence[str], traces: Sequence[Trace]) -> Figure:
    """Draw shares over the networks of a run, a panel a measure, each value written at its point."""
    width = max(PANEL[0], 0.75 * len(networks))
    figure, grid = plt.subplots(
        1, len(traces), figsize=(width * len(traces), PANEL[1]), squeeze=False, layout="constrained"
    )
    for number, (axes, trace) in enumerate(zip(grid.flat, traces, strict=True)):
        xs, values = list(trace.values), list(trace.values.values())
        axes.plot(xs, values, color=COLORS[number % len(COLORS)], marker="o", markersize=5, linewidth=2)
        for x, value in zip(xs, values, strict=True):
            axes.annotate(
                f"{100 * value:.1f} %",
                (x, value),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=INK,
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )
        room = max(ROOM * (max(values) - min(values)), 0.01)
        axes.set_ylim(min(values) - room, max(values) + room)
        axes.set_xlim(-0.5, len(networks) - 0.5)
        axes.set_xticks(range(len(networks)), networks, rotation=30 if len(networks) > ABREAST else 0)
        axes.set_yticks([])
        _titled(axes, trace.heading)
    return figure


def kept_per_class(rounds: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw for each class how many pool images were answered so, and how many of them were kept; a panel a round."""
    classes = next(iter(rounds.values()))["classes"]
    is_named = len(classes) <= MOST_NAMED_CLASSES
    height = 0.9 + CLASS_HEIGHT * min(len(classes), 2 * MOST_NAMED_CLASSES)
    figure, grid = _grid(len(rounds), height, sharey=True, sharex=True)
    for axes, (name, told) in zip(grid, rounds.items(), strict=False):
        answered, kept, shown = (np.array(told[f"{what}_per_class"]) for what in ("answered", "kept", "shown"))
        order = np.arange(len(classes)) if is_named else np.argsort(-answered, kind="stable")
        places = np.arange(len(classes))
        axes.barh(places, answered[order], color=COLORS[0], alpha=0.22, height=0.78)
        axes.barh(places, kept[order], color=COLORS[0], height=0.78)
        if is_named:
            axes.scatter(shown[order], places, marker="|", s=60, color=INK, linewidth=1.6, zorder=3)
        axes.set_yticks(places if is_named else [], [shortened(c) for c in classes] if is_named else [])
        axes.set_ylim(len(classes) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        _titled(axes, name, "pool images", lines="x")
    return figure


def confidences(rounds: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw how sure the teacher was: shares of the pool by confidence, right below wrong where truth is known."""
    figure, grid = _grid(len(rounds), PANEL[1], sharey=True)
    least = _least(rounds, "histogram")
    for axes, (name, told) in zip(grid, rounds.items(), strict=False):
        edges, every = np.array(told["edges"]), np.array(told["histogram"])
        known, right = np.array(told["known"]), np.array(told["right"])
        below = np.zeros(len(every))
        for count, color in ((right, GOOD), (known - right, BAD), (every - known, PLAIN)):
            share = count / max(1, every.sum())
            axes.bar(
                edges[:-1], share, np.diff(edges), bottom=below, align="edge", color=color, linewidth=0, alpha=0.85
            )
            below += share
        axes.set_xlim(least, 1)
        axes.xaxis.set_major_locator(MultipleLocator(TICKS))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        _titled(axes, name, "confidence")
    return figure


def reliability(rounds: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the precision of pseudo-labels at each confidence against the diagonal, a panel a round.

    A dot grows with the number of images; dots of few images are faint and off the line.
    """
    figure, grid = _grid(len(rounds), PANEL[0], sharey=True)
    least = _least(rounds, "known")
    for axes, (name, told) in zip(grid, rounds.items(), strict=False):
        edges, known, right = (np.array(told[key], dtype=float) for key in ("edges", "known", "right"))
        middles, there = (edges[:-1] + edges[1:]) / 2, known > 0
        precision = right[there] / known[there]
        many = known[there] >= FEW_IN_BIN
        axes.plot([least, 1], [least, 1], color=FAINT, linestyle="--", linewidth=1.2, zorder=1)
        axes.plot(middles[there][many], precision[many], color=COLORS[0], linewidth=1.6, zorder=2)
        areas = np.maximum(SMALLEST_DOT, LARGEST_DOT * np.sqrt(known[there] / known.max()))
        colors = [(*to_rgb(COLORS[0]), 1.0 if some else 0.3) for some in many]
        axes.scatter(middles[there], precision, s=areas, color=colors, edgecolor="white", linewidth=0.8, zorder=3)
        axes.set(xlim=(least, 1.01), ylim=(-0.02, 1.02))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
            axis.set_major_locator(MultipleLocator(TICKS))
        _titled(axes, f"{name}: {100 * right.sum() / known.sum():.1f} % right", "confidence")
    return figure


def _titled(axes: Axes, title: str, below: str = "", lines: Literal["x", "y"] = "y") -> None:
    """Give a small panel its title and what stands below it."""
    axes.set_title(title, loc="left", fontsize=9, color=INK)
    axes.set_xlabel(below, fontsize=8, color=INK)
    bare(axes, lines)
    axes.tick_params(labelsize=8)


def _least(rounds: Mapping[str, Mapping[str, Any]], key: str) -> float:
    """Return where the confidences of all rounds begin: the lowest edge of a bin that is not empty."""
    begins = [told["edges"][filled[0]] for told in rounds.values() if len(filled := np.flatnonzero(told[key]))]
    return float(min(begins, default=0.0))


def _grid(panels: int, height: float, sharex: bool = False, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``panels`` panels, some in a row, and its panels."""
    columns = min(ABREAST, panels)
    rows = math.ceil(panels / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(PANEL[0] * columns + 0.8, height * rows),
        squeeze=False,
        layout="constrained",
        sharex=sharex,
        sharey=sharey,
    )
    for axes in grid.flat[panels:]:
        axes.set_axis_off()
    return figure, list(grid.flat)
