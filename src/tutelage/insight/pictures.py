"""The pictures of a report, one function each; drawn with matplotlib without a screen."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

DPI = 110
PANEL_WIDTH, PANEL_HEIGHT = 4.2, 3.2
TILE = 1.15  # inches
MOST_NAMED_CLASSES = 25  # above it a confusion matrix carries no names
LONGEST_NAME = 12
MOST_TEMPLATES_ABREAST = 10
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
    _finish(axes)
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
        _finish(axes)
    return figure


def _finish(axes: Axes) -> None:
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
