"""Pictures of the rounds of a noisy student: rows of small panels, one per round or one per measure."""

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
    COLORS,
    CORRECT_COLOR,
    LINE_COLOR,
    MAX_NAMED_CLASSES,
    REFERENCE_COLOR,
    TEXT_COLOR,
    WRONG_COLOR,
    remove_frame,
    shorten_name,
)

MAX_COLUMNS = 4  # panels in a row
PANEL = (2.7, 2.4)  # inches
CLASS_HEIGHT = 0.21  # inches of a class's bar
MIN_BIN_IMAGES = 10  # the precision of fewer images says little and is drawn faint
MIN_DOT_AREA, MAX_DOT_AREA = 18.0, 130.0  # in square points; the fullest bin has the largest dot
TICK_STEP = 0.2  # of shares
MARGIN = 0.35  # of the range of values, above and below


@dataclass(frozen=True)
class Trace:
    """A measure over the networks of a run: values by the network's number, in the order of training."""

    heading: str
    values: Mapping[int, float]


def draw_traces(networks: Sequence[str], traces: Sequence[Trace]) -> Figure:
    """Draw shares over the networks of a run, one panel per measure, with each value written at its point."""
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
                color=TEXT_COLOR,
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )
        margin = max(MARGIN * (max(values) - min(values)), 0.01)
        axes.set_ylim(min(values) - margin, max(values) + margin)
        axes.set_xlim(-0.5, len(networks) - 0.5)
        axes.set_xticks(range(len(networks)), networks, rotation=30 if len(networks) > MAX_COLUMNS else 0)
        axes.set_yticks([])
        _style_panel(axes, trace.heading)
    return figure


def draw_class_counts(rounds: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw how many pool images were predicted as each class, and how many of them were kept; one panel per round."""
    classes = next(iter(rounds.values()))["classes"]
    has_names = len(classes) <= MAX_NAMED_CLASSES
    height = 0.9 + CLASS_HEIGHT * min(len(classes), 2 * MAX_NAMED_CLASSES)
    figure, grid = _create_grid(len(rounds), height, sharey=True, sharex=True)
    for axes, (name, summary) in zip(grid, rounds.items(), strict=False):
        predicted = np.array(summary["answered_per_class"])
        kept, uses = np.array(summary["kept_per_class"]), np.array(summary["shown_per_class"])
        order = np.arange(len(classes)) if has_names else np.argsort(-predicted, kind="stable")
        heights = np.arange(len(classes))
        axes.barh(heights, predicted[order], color=COLORS[0], alpha=0.22, height=0.78)
        axes.barh(heights, kept[order], color=COLORS[0], height=0.78)
        if has_names:
            axes.scatter(uses[order], heights, marker="|", s=60, color=TEXT_COLOR, linewidth=1.6, zorder=3)
        axes.set_yticks(heights if has_names else [], [shorten_name(c) for c in classes] if has_names else [])
        axes.set_ylim(len(classes) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        _style_panel(axes, name, "pool images", grid_axis="x")
    return figure


def draw_confidence_histograms(rounds: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw histograms of the teacher's confidence on the pool, one panel per round.

    Each bar stacks, from below, correct predictions, wrong ones, and those whose true class is unknown.
    """
    figure, grid = _create_grid(len(rounds), PANEL[1], sharey=True)
    lowest = _lowest_confidence(rounds, "histogram")
    for axes, (name, summary) in zip(grid, rounds.items(), strict=False):
        edges, counts = np.array(summary["edges"]), np.array(summary["histogram"])
        known, correct = np.array(summary["known"]), np.array(summary["right"])
        bottom = np.zeros(len(counts))
        stack = ((correct, CORRECT_COLOR), (known - correct, WRONG_COLOR), (counts - known, REFERENCE_COLOR))
        for part, color in stack:
            share = part / max(1, counts.sum())
            axes.bar(
                edges[:-1], share, np.diff(edges), bottom=bottom, align="edge", color=color, linewidth=0, alpha=0.85
            )
            bottom += share
        axes.set_xlim(lowest, 1)
        axes.xaxis.set_major_locator(MultipleLocator(TICK_STEP))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        _style_panel(axes, name, "confidence")
    return figure


def draw_reliability(rounds: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw a reliability diagram for each round: the precision of pseudo-labels over their confidence.

    A bin of more images has a larger dot; dots of few images are faint and not on the line. A perfectly calibrated
    teacher would lie on the dashed diagonal (Guo et al. 2017).
    """
    figure, grid = _create_grid(len(rounds), PANEL[0], sharey=True)
    lowest = _lowest_confidence(rounds, "known")
    for axes, (name, summary) in zip(grid, rounds.items(), strict=False):
        edges, known, correct = (np.array(summary[key], dtype=float) for key in ("edges", "known", "right"))
        filled = known > 0
        confidences, counts = ((edges[:-1] + edges[1:]) / 2)[filled], known[filled]
        precision = correct[filled] / counts
        solid = counts >= MIN_BIN_IMAGES
        axes.plot([lowest, 1], [lowest, 1], color=LINE_COLOR, linestyle="--", linewidth=1.2, zorder=1)
        axes.plot(confidences[solid], precision[solid], color=COLORS[0], linewidth=1.6, zorder=2)
        areas = np.maximum(MIN_DOT_AREA, MAX_DOT_AREA * np.sqrt(counts / known.max()))
        colors = [(*to_rgb(COLORS[0]), 1.0 if is_solid else 0.3) for is_solid in solid]
        axes.scatter(
            confidences, precision, s=areas, color=colors, edgecolor="white", linewidth=0.8, zorder=3, clip_on=False
        )
        axes.set(xlim=(lowest, 1.01), ylim=(-0.02, 1.02))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
            axis.set_major_locator(MultipleLocator(TICK_STEP))
        _style_panel(axes, f"{name}: {100 * correct.sum() / known.sum():.1f} % correct", "confidence")
    return figure


def _style_panel(axes: Axes, title: str, x_label: str = "", grid_axis: Literal["x", "y"] = "y") -> None:
    """Give a small panel its title, its label of x and its grid lines."""
    axes.set_title(title, loc="left", fontsize=9, color=TEXT_COLOR)
    axes.set_xlabel(x_label, fontsize=8, color=TEXT_COLOR)
    remove_frame(axes, grid_axis)
    axes.tick_params(labelsize=8)


def _lowest_confidence(rounds: Mapping[str, Mapping[str, Any]], key: str) -> float:
    """Return the lowest confidence over all rounds: the left edge of the first bin whose count at ``key`` is not 0."""
    edges = [summary["edges"][bins[0]] for summary in rounds.values() if len(bins := np.flatnonzero(summary[key]))]
    return float(min(edges, default=0.0))


def _create_grid(panels: int, height: float, sharex: bool = False, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``panels`` panels, at most ``MAX_COLUMNS`` in a row, and the list of its panels."""
    columns = min(MAX_COLUMNS, panels)
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
