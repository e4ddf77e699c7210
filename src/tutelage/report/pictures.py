"""The pictures of a report, one function each; drawn with matplotlib, without a display."""

import warnings
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal
from unicodedata import east_asian_width

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from tutelage.storage import write_whole
from tutelage.terminal.intervals import Interval

mpl.rcParams["text.parse_math"] = False  # a $ in the name of a class is a $

DPI = 110
PANEL_WIDTH, PANEL_HEIGHT = 4.2, 3.2
MISSING_GLYPH = "Glyph .* missing from"  # the start of matplotlib's warning
TEXT_COLOR, LINE_COLOR = "#333333", "#bbbbbb"
MAX_NAME_LENGTH = 12  # Latin letters
MAX_PATH_LENGTH, PATH_END = 18, 13  # characters of a file's name under a tile; those of its end
COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
)  # Okabe and Ito: safe for colour-blind readers
SHARE_COLORS = LinearSegmentedColormap.from_list("share", [(*to_rgb("#0a5aa0"), opacity) for opacity in (0.0, 1.0)])
SHARES = "shares"  # the name in an SVG of an image that is drawn in these colours
DARK_SHARE = 0.7  # from it on the colour of a share is dark on a light and on a dark page
REFERENCE_COLOR = "#777777"  # of what others are compared with
LABEL_CURVES_SIZE = (7.6, 4.6)  # inches
NAME_SPACING = 0.056  # of the picture's height: one line of text
MIN_LOG_RANGE = 20  # ratio of the largest to the smallest x from which on the axis is logarithmic
STRENGTH_LABELS = {
    "brightness": "share of white added",
    "crop": "share of the side cut away",
    "rotate": "rotation in degrees",
    "translate": "shift as a share of the side",
}


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure as PNG and close it; the file is written whole or not at all."""
    write_png(figure, file, dpi=DPI, bbox_inches="tight")
    plt.close(figure)


def write_png(figure: Figure, file: Path, **options: Any) -> None:
    """Write a figure as PNG, whole or not at all; a character that the font lacks becomes a box, without a warning."""
    with missing_glyphs_unsaid():
        write_whole(file, lambda out: figure.savefig(out, format="png", **options))


@contextmanager
def missing_glyphs_unsaid() -> Iterator[None]:
    """Let matplotlib not warn of characters that its font lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=MISSING_GLYPH, category=UserWarning)
        yield


def draw_shift_curves(shift: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Draw test accuracy over the strength of a shift, one line (strengths, accuracies) per network."""
    figure, axes = plt.subplots(figsize=(1.5 * PANEL_WIDTH, PANEL_HEIGHT), layout="constrained")
    for name, (strengths, accuracies) in lines.items():
        axes.plot(strengths, accuracies, marker="o", markersize=3, linewidth=1.4, label=name)
    axes.set(xlabel=STRENGTH_LABELS[shift], ylabel="test accuracy", ylim=(0, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if shift != "rotate":
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    style_axes(axes)
    return figure


@dataclass(frozen=True)
class Panel:
    """One panel of a picture: a measure over x.

    Attributes:
        heading: the name of the measure.
        lines: for each line's name, the values at each x; the line joins their means.
        is_share: the values are shares, drawn in percent on a linear scale; others are drawn on a logarithmic one.
    """

    heading: str
    lines: Mapping[str, Mapping[float, Sequence[float]]]
    is_share: bool = False


def draw_panels(x_name: str, panels: Sequence[Panel]) -> Figure:
    """Draw panels side by side over the same x: means as lines, single values as faint dots."""
    figure, grid = plt.subplots(
        1, len(panels), figsize=(0.85 * PANEL_WIDTH * len(panels), PANEL_HEIGHT), squeeze=False, layout="constrained"
    )
    for axes, panel in zip(grid.flat, panels, strict=True):
        for number, (name, points) in enumerate(panel.lines.items()):
            xs = sorted(points)
            color = f"C{number}"
            axes.plot(xs, [np.mean(points[x]) for x in xs], marker="o", markersize=3, color=color, label=name)
            axes.scatter(
                [x for x in xs for _ in points[x]], [v for x in xs for v in points[x]], s=8, color=color, alpha=0.35
            )
        ticks = sorted({x for points in panel.lines.values() for x in points})
        if ticks[0] > 0 and ticks[-1] / ticks[0] >= MIN_LOG_RANGE:
            axes.set_xscale("log")
        axes.set(title=panel.heading, xlabel=x_name)
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks], minor=False)
        axes.xaxis.set_minor_locator(NullLocator())
        if panel.is_share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        else:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        style_axes(axes)
    return figure


def draw_label_curves(lines: Mapping[str, Sequence[tuple[int, Interval]]], references: Sequence[str] = ()) -> Figure:
    """Draw accuracies over the total number of labels; each line's name stands at its end.

    Args:
        lines: the points of each line, by rising number of labels: (number of labels, mean accuracy between 0 and 1
            with its interval, which is drawn as a band).
        references: names of the lines that others are compared with; they are grey.
    """
    figure, axes = plt.subplots(figsize=LABEL_CURVES_SIZE, layout="constrained")
    colors = dict.fromkeys(references, REFERENCE_COLOR)
    others = [name for name in lines if name not in colors]
    colors |= {name: COLORS[number % len(COLORS)] for number, name in enumerate(others)}
    for name, points in sorted(lines.items(), key=lambda line: line[0] not in references):  # references lie below
        xs, means = [x for x, _ in points], [mean for _, (mean, _, _) in points]
        style = "--" if name in references else "-" if others.index(name) < len(COLORS) else ":"
        lows, highs = [interval.low for _, interval in points], [interval.high for _, interval in points]
        axes.fill_between(xs, lows, highs, color=colors[name], alpha=0.14, linewidth=0)
        axes.plot(xs, means, style, color=colors[name], marker="o", markersize=5, markeredgecolor="white", linewidth=2)
    counts = sorted({x for points in lines.values() for x, _ in points})
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    _fit_y_limits(axes, [mean for points in lines.values() for _, (mean, _, _) in points])
    axes.set_xlabel("labels in total", color=TEXT_COLOR)
    axes.set_title("test accuracy", loc="left", fontsize=10, color=TEXT_COLOR)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g} %"))
    remove_frame(axes)
    _write_line_names(axes, {name: (points[-1][0], points[-1][1].value) for name, points in lines.items()}, colors)
    return figure


def remove_frame(axes: Axes, grid_axis: Literal["x", "y"] = "y") -> None:
    """Leave a panel only the grid lines of one axis, ``y`` horizontal or ``x`` vertical, and the line of the other."""
    axes.grid(axis=grid_axis, alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.spines["bottom" if grid_axis == "y" else "left"].set(visible=True, color=LINE_COLOR)
    axes.tick_params(length=0, colors=TEXT_COLOR)


def _fit_y_limits(axes: Axes, values: Sequence[float]) -> None:
    """Set the limits of y to the values and a margin; a wide band of few seeds may extend beyond them."""
    low, high = min(values), max(values)
    margin = max(0.12 * (high - low), 0.01)
    axes.set_ylim(max(0.0, low - margin), min(1.0, high + margin))


def _write_line_names(axes: Axes, ends: Mapping[str, tuple[float, float]], colors: Mapping[str, str]) -> None:
    """Write each line's name to the right of its end (x, y); names that would overlap are moved apart."""
    low, high = axes.get_ylim()
    order = sorted(ends, key=lambda name: ends[name][1])
    heights = space_apart([(ends[name][1] - low) / (high - low) for name in order], NAME_SPACING)
    for name, height in zip(order, heights, strict=True):
        axes.annotate(
            name,
            (1.0, height),
            xycoords=axes.transAxes,
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=colors[name],
            fontsize=10,
            fontweight="bold",
            annotation_clip=False,
        )


def space_apart(positions: Sequence[float], spacing: float) -> list[float]:
    """Return rising positions moved so that neighbours are at least ``spacing`` apart, close to where they were.

    Neighbours that are too close form a block around the mean of their positions.
    """
    blocks: list[tuple[float, int]] = []  # (centre, size)
    for position in positions:
        centre, size = position, 1
        while blocks and centre - blocks[-1][0] < spacing * (size + blocks[-1][1]) / 2:
            last_centre, last_size = blocks.pop()
            centre, size = (last_centre * last_size + centre * size) / (last_size + size), size + last_size
        blocks.append((centre, size))
    return [centre + spacing * (n - (size - 1) / 2) for centre, size in blocks for n in range(size)]


def style_axes(axes: Axes) -> None:
    """Add a grid and a legend to a panel, and remove its top and right frame lines."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def shorten_name(name: str) -> str:
    """Return a class name, cut if it is too long for a tile; a Chinese character is as wide as two Latin letters."""
    ends = list(accumulate(1 + (east_asian_width(character) in "WF") for character in name))
    return name if not ends or ends[-1] <= MAX_NAME_LENGTH else name[: bisect(ends, MAX_NAME_LENGTH - 1)] + "…"


def shorten_path(path: str) -> str:
    """Return a path that fits a tile: of a long one, its beginning and its end."""
    if len(path) <= MAX_PATH_LENGTH:
        return path
    return f"{path[: MAX_PATH_LENGTH - PATH_END - 1]}…{path[-PATH_END:]}"
