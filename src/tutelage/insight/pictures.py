"""The pictures of a report, one function each; drawn with matplotlib without a screen."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

DPI = 110
PANEL_WIDTH, PANEL_HEIGHT = 4.2, 3.2
TILE = 1.15  # inches
MOST_NAMED_CLASSES = 25  # above it a confusion matrix carries no names
LONGEST_NAME = 12
DIVIDER = "#888888"


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
            axes.plot(steps, [row[f"train/{value}"] for row in rows], color=color, label=name, linewidth=1.4)
            if rows and f"val/{value}" in rows[0]:
                axes.plot(steps, [row[f"val/{value}"] for row in rows], color=color, linestyle="--", linewidth=1.2)
        axes.set(title=f"{value}, dashed on validation" if validated else value, xlabel="optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
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
