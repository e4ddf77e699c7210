"""The pictures of a report, one function each; drawn with matplotlib, without a display."""

import math
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
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from tutelage.data import Source
from tutelage.storage import write_whole
from tutelage.terminal.intervals import Interval

mpl.rcParams["text.parse_math"] = False  # a $ in the name of a class is a $

DPI = 110
PANEL_WIDTH, PANEL_HEIGHT = 4.2, 3.2
MISSING_GLYPH = "Glyph .* missing from"  # the start of matplotlib's warning
TILE_SIDE, LINE_HEIGHT = 1.15, 0.14  # inches; the lines are those of a title
MAX_NAMED_CLASSES = 25  # with more classes, pictures leave out their names
TEXT_COLOR, LINE_COLOR = "#333333", "#bbbbbb"
MAX_NAME_LENGTH = 12  # Latin letters
MAX_PATH_LENGTH, PATH_END = 18, 13  # characters of a file's name under a tile; those of its end
TEMPLATE_COLUMNS = 10
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
CORRECT_COLOR, WRONG_COLOR = "#2a7a2a", "#b02020"
REFERENCE_COLOR = "#777777"  # of what others are compared with
LABEL_CURVES_SIZE = (7.6, 4.6)  # inches
NAME_SPACING = 0.056  # of the picture's height: one line of text
MIN_LINE_POINTS = 8  # lines of fewer points get markers
TEMPLATE_QUANTILE = 0.99  # of the absolute weights: sets the colour range, so that single pixels do not fade the rest
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


def draw_learning_curves(tables: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draw loss and accuracy over optimizer steps, one line per stage; validation is dashed.

    Args:
        tables: for each stage, the rows of its ``metrics.csv``.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(2.2 * PANEL_WIDTH, PANEL_HEIGHT), layout="constrained")
    has_validation = any(rows and "val/loss" in rows[0] for rows in tables.values())
    for axes, metric in ((left, "loss"), (right, "accuracy")):
        for number, (name, rows) in enumerate(tables.items()):
            steps = [row["step"] for row in rows]
            color = f"C{number}"
            marker = "o" if len(rows) < MIN_LINE_POINTS else None
            train_values = [row.get(f"train/{metric}", math.nan) for row in rows]  # no accuracy without labels
            axes.plot(steps, train_values, color=color, label=name, linewidth=1.4, marker=marker, markersize=3)
            if rows and f"val/{metric}" in rows[0]:
                axes.plot(steps, [row[f"val/{metric}"] for row in rows], color=color, linestyle="--", linewidth=1.2)
        axes.set(title=f"{metric} (dashed: validation)" if has_validation else metric, xlabel="optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    left.set_ylim(bottom=0)
    right.legend(frameon=False, fontsize=8)
    return figure


def draw_confusion_matrix(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix (C, C) of counts: one row per true class; colour is the share of the row."""
    count = len(classes)
    side = min(9.0, 1.5 + 0.36 * count)
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap=SHARE_COLORS, vmin=0, vmax=1, gid=SHARES)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.spines[:].set_color(LINE_COLOR)
    axes.tick_params(length=0)
    if count <= MAX_NAMED_CLASSES:
        names = [shorten_name(name) for name in classes]
        axes.set_xticks(range(count), names, rotation=60 if max(map(len, names)) > 2 else 0, fontsize=8)  # noqa: PLR2004
        axes.set_yticks(range(count), names, fontsize=8)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            share = matrix[row, column] / matrix[row].sum()
            color = "white" if share > DARK_SHARE else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=7, color=color)
    return figure


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


def draw_templates(weights: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw the weights (C, H, W) of a linear layer as one image per class; white is zero."""
    columns = min(TEMPLATE_COLUMNS, len(classes))
    rows = math.ceil(len(classes) / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(TILE_SIDE * columns, (TILE_SIDE + 0.28) * rows), squeeze=False, layout="constrained"
    )
    limit = float(np.quantile(np.abs(weights), TEMPLATE_QUANTILE)) or 1.0
    for position, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if position < len(classes):
            axes.imshow(weights[position], cmap="RdBu_r", vmin=-limit, vmax=limit)
            axes.set_title(shorten_name(classes[position]), fontsize=7, pad=3)
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


def draw_tiles(images: Sequence[np.ndarray], titles: Sequence[str], columns: int, colors: Sequence[str] = ()) -> Figure:
    """Draw images (H, W, C) uint8 in a grid, each below its title; ``colors`` are the titles' colours."""
    rows = math.ceil(len(images) / columns)
    title_height = LINE_HEIGHT * max([2, *(title.count("\n") + 1 for title in titles)])
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(TILE_SIDE * columns, (TILE_SIDE + title_height) * rows),
        squeeze=False,
        layout="constrained",
    )
    for position, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if position < len(images):
            draw_image(axes, images[position])
            color = colors[position] if colors else "black"
            axes.set_title(titles[position], fontsize=7, color=color, pad=3)
    return figure


def draw_image(axes: Axes, image: np.ndarray) -> None:
    """Draw one image (H, W, C) uint8, with one or three channels."""
    axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)


def shorten_name(name: str) -> str:
    """Return a class name, cut if it is too long for a tile; a Chinese character is as wide as two Latin letters."""
    ends = list(accumulate(1 + (east_asian_width(character) in "WF") for character in name))
    return name if not ends or ends[-1] <= MAX_NAME_LENGTH else name[: bisect(ends, MAX_NAME_LENGTH - 1)] + "…"


def file_line(source: Source, index: int) -> str:
    """Return a line break and an image's file name, cut in the middle if it is long; nothing for images without one."""
    return f"\n{shorten_path(source.names[index])}" if source.has_file_names else ""


def shorten_path(path: str) -> str:
    """Return a path that fits a tile: of a long one, its beginning and its end."""
    if len(path) <= MAX_PATH_LENGTH:
        return path
    return f"{path[: MAX_PATH_LENGTH - PATH_END - 1]}…{path[-PATH_END:]}"
