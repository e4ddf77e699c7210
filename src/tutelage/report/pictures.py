"""The pictures of a report, one function each; drawn with matplotlib, without a display."""

import warnings
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal
from unicodedata import east_asian_width

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from tutelage.storage import write_whole
from tutelage.terminal.intervals import Interval

mpl.rcParams["text.parse_math"] = False  # a $ in the name of a class is a $

DPI = 110
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


def shorten_name(name: str) -> str:
    """Return a class name, cut if it is too long for a tile; a Chinese character is as wide as two Latin letters."""
    ends = list(accumulate(1 + (east_asian_width(character) in "WF") for character in name))
    return name if not ends or ends[-1] <= MAX_NAME_LENGTH else name[: bisect(ends, MAX_NAME_LENGTH - 1)] + "…"


def shorten_path(path: str) -> str:
    """Return a path that fits a tile: of a long one, its beginning and its end."""
    if len(path) <= MAX_PATH_LENGTH:
        return path
    return f"{path[: MAX_PATH_LENGTH - PATH_END - 1]}…{path[-PATH_END:]}"
