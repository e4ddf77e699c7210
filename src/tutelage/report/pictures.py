"""The pictures of a report, one function each; drawn with matplotlib without a screen."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from tutelage.report.gains import Interval

DPI = 110
PANEL_WIDTH, PANEL_HEIGHT = 4.2, 3.2
TILE = 1.15  # inches
MOST_NAMED_CLASSES = 25  # above it a confusion matrix carries no names
INK, FAINT = "#333333", "#bbbbbb"
LONGEST_NAME = 12
MOST_TEMPLATES_ABREAST = 10
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito: for all kinds of eyes
GOOD, BAD = "#2a7a2a", "#b02020"
PLAIN = "#777777"  # what the others are compared with
LABELS_SIZE = (7.6, 4.6)  # inches
LABEL_SPACING = 0.056  # of the picture's height: a line of letters
FEW_POINTS = 8  # that a line alone would not show
TEMPLATE_QUANTILE = 0.99  # of the absolute weights: the colours' range, so that single pixels do not fade the rest
WIDE_RANGE = 20  # from there on x is logarithmic
STRENGTH = {
    "brightness": "share of white added",
    "crop": "share of the side cut away",
    "rotate": "degrees",
    "translate": "share of the side moved",
}


def save(figure: Figure, file: Path) -> None:
    """Write a figure as PNG, whole or absent, and close it."""
    from tutelage.storage import write_whole

    write_whole(file, lambda out: figure.savefig(out, format="png", dpi=DPI, bbox_inches="tight"))
    plt.close(figure)


def learning_curves(tables: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draw loss and accuracy over the steps, one line a stage; validation dashed."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(2.2 * PANEL_WIDTH, PANEL_HEIGHT), layout="constrained")
    validated = any(rows and "val/loss" in rows[0] for rows in tables.values())
    for axes, value in ((left, "loss"), (right, "accuracy")):
        for number, (name, rows) in enumerate(tables.items()):
            steps = [row["step"] for row in rows]
            color = f"C{number}"
            marker = "o" if len(rows) < FEW_POINTS else None
            train = [row.get(f"train/{value}", math.nan) for row in rows]  # without labels there is no accuracy
            axes.plot(steps, train, color=color, label=name, linewidth=1.4, marker=marker, markersize=3)
            if rows and f"val/{value}" in rows[0]:
                axes.plot(steps, [row[f"val/{value}"] for row in rows], color=color, linestyle="--", linewidth=1.2)
        axes.set(title=f"{value}, dashed on validation" if validated else value, xlabel="optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    left.set_ylim(bottom=0)
    right.legend(frameon=False, fontsize=8)
    return figure


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix (C, C): rows are true classes, shares within a row as colour, counts as text."""
    count = len(classes)
    side = min(9.0, 2.2 + 0.42 * count)
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    axes.imshow(matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True)), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="answered", ylabel="true")
    if count <= MOST_NAMED_CLASSES:
        names = [shortened(name) for name in classes]
        axes.set_xticks(range(count), names, rotation=60 if max(map(len, names)) > 2 else 0, fontsize=8)  # noqa: PLR2004
        axes.set_yticks(range(count), names, fontsize=8)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            share = matrix[row, column] / matrix[row].sum()
            color = "white" if share > 0.5 else "black"  # noqa: PLR2004 - dark blue from there on
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=7, color=color)
    return figure


def shift_curves(shift: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Draw accuracies over the strengths of a shift, one line (strengths, accuracies) a network."""
    figure, axes = plt.subplots(figsize=(1.5 * PANEL_WIDTH, PANEL_HEIGHT), layout="constrained")
    for name, (strengths, accuracies) in lines.items():
        axes.plot(strengths, accuracies, marker="o", markersize=3, linewidth=1.4, label=name)
    axes.set(xlabel=STRENGTH[shift], ylabel="test accuracy", ylim=(0, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if shift != "rotate":
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    finish(axes)
    return figure


def templates(weights: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw the weights (C, H, W) of linear units as images around zero, one a class."""
    columns = min(MOST_TEMPLATES_ABREAST, len(classes))
    rows = math.ceil(len(classes) / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(TILE * columns, (TILE + 0.28) * rows), squeeze=False, layout="constrained"
    )
    most = float(np.quantile(np.abs(weights), TEMPLATE_QUANTILE)) or 1.0
    for place, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if place < len(classes):
            axes.imshow(weights[place], cmap="RdBu_r", vmin=-most, vmax=most)
            axes.set_title(shortened(classes[place]), fontsize=7, pad=3)
    return figure


@dataclass(frozen=True)
class Panel:
    """A picture's part: a measure over x, one line a name; each of its points is the mean of its values."""

    heading: str
    lines: Mapping[str, Mapping[float, Sequence[float]]]
    share: bool = False


def panels(x_name: str, shown: Sequence[Panel]) -> Figure:
    """Draw measures side by side over a common x, means as lines and single values as faint dots."""
    figure, grid = plt.subplots(
        1, len(shown), figsize=(0.85 * PANEL_WIDTH * len(shown), PANEL_HEIGHT), squeeze=False, layout="constrained"
    )
    for axes, panel in zip(grid.flat, shown, strict=True):
        for number, (name, points) in enumerate(panel.lines.items()):
            xs = sorted(points)
            color = f"C{number}"
            axes.plot(xs, [np.mean(points[x]) for x in xs], marker="o", markersize=3, color=color, label=name)
            axes.scatter(
                [x for x in xs for _ in points[x]], [v for x in xs for v in points[x]], s=8, color=color, alpha=0.35
            )
        every = [x for points in panel.lines.values() for x in points]
        if min(every) > 0 and max(every) / min(every) >= WIDE_RANGE:
            axes.set_xscale("log")
        axes.set(title=panel.heading, xlabel=x_name)
        axes.set_xticks(sorted(set(every)), [f"{x:g}" for x in sorted(set(every))], minor=False)
        axes.xaxis.set_minor_locator(NullLocator())
        if panel.share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        else:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        finish(axes)
    return figure


def label_curves(lines: Mapping[str, Sequence[tuple[int, Interval]]], plain: Sequence[str] = ()) -> Figure:
    """Draw accuracies, as shares, over the number of labels in all, each line named at its end.

    Args:
        lines: points (labels, mean with its interval) of each line, by rising labels; the interval is its band.
        plain: lines that the others are compared with, which are grey.
    """
    figure, axes = plt.subplots(figsize=LABELS_SIZE, layout="constrained")
    colors = dict.fromkeys(plain, PLAIN)
    rest = [name for name in lines if name not in colors]
    colors |= {name: COLORS[number % len(COLORS)] for number, name in enumerate(rest)}
    for name, points in sorted(lines.items(), key=lambda line: line[0] not in plain):  # plain ones lie below
        xs, means = [x for x, _ in points], [mean for _, (mean, _, _) in points]
        style = "--" if name in plain else "-" if rest.index(name) < len(COLORS) else ":"
        low, high = [i.low for _, i in points], [i.high for _, i in points]
        axes.fill_between(xs, low, high, color=colors[name], alpha=0.14, linewidth=0)
        axes.plot(xs, means, style, color=colors[name], marker="o", markersize=5, markeredgecolor="white", linewidth=2)
    counts = sorted({x for points in lines.values() for x, _ in points})
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    _around(axes, [mean for points in lines.values() for _, (mean, _, _) in points])
    axes.set_xlabel("labels in all", color=INK)
    axes.set_title("test accuracy", loc="left", fontsize=10, color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g} %"))
    bare(axes)
    _name_ends(axes, {name: (points[-1][0], points[-1][1].value) for name, points in lines.items()}, colors)
    return figure


def bare(axes: Axes, lines: Literal["x", "y"] = "y") -> None:
    """Leave a panel nothing but grid lines, across or (``x``) upright, and the axis that they stand on."""
    axes.grid(axis=lines, alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.spines["bottom" if lines == "y" else "left"].set(visible=True, color=FAINT)
    axes.tick_params(length=0, colors=INK)


def _around(axes: Axes, values: Sequence[float]) -> None:
    """Let y span the values and some room about them; a wide band of few seeds may leave the picture."""
    low, high = min(values), max(values)
    room = max(0.12 * (high - low), 0.01)
    axes.set_ylim(max(0.0, low - room), min(1.0, high + room))


def _name_ends(axes: Axes, ends: Mapping[str, tuple[float, float]], colors: Mapping[str, str]) -> None:
    """Write each line's name right of its end (x, y), moved apart where ends lie close."""
    low, high = axes.get_ylim()
    order = sorted(ends, key=lambda name: ends[name][1])
    places = apart([(ends[name][1] - low) / (high - low) for name in order], LABEL_SPACING)
    for name, place in zip(order, places, strict=True):
        axes.annotate(
            name,
            (1.0, place),
            xycoords=axes.transAxes,
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=colors[name],
            fontsize=10,
            fontweight="bold",
            annotation_clip=False,
        )


def apart(places: Sequence[float], spacing: float) -> list[float]:
    """Return rising places moved so that neighbours lie ``spacing`` or more apart, close to where they were.

    Neighbours that come too close form a block around their common middle.
    """
    blocks: list[tuple[float, int]] = []  # middle and size
    for place in places:
        middle, size = place, 1
        while blocks and middle - blocks[-1][0] < spacing * (size + blocks[-1][1]) / 2:
            other, count = blocks.pop()
            middle, size = (other * count + middle * size) / (count + size), size + count
        blocks.append((middle, size))
    return [middle + spacing * (n - (size - 1) / 2) for middle, size in blocks for n in range(size)]


def finish(axes: Axes) -> None:
    """Give a panel its grid and its legend, and take the frame away."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def tiles(images: Sequence[np.ndarray], titles: Sequence[str], columns: int, colors: Sequence[str] = ()) -> Figure:
    """Draw images (H, W, C) uint8 in a grid, each under its title."""
    rows = math.ceil(len(images) / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(TILE * columns, (TILE + 0.28) * rows), squeeze=False, layout="constrained"
    )
    for place, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if place < len(images):
            show(axes, images[place])
            color = colors[place] if colors else "black"
            axes.set_title(titles[place], fontsize=7, color=color, pad=3)
    return figure


def show(axes: Axes, image: np.ndarray) -> None:
    """Draw one image (H, W, C) uint8."""
    axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)


def shortened(name: str) -> str:
    """Return a class name that fits a tile."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
