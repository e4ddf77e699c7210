"""Soft labels: what a network says of a picture at several temperatures, beside the one class that is left of it."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from tutelage.explain.section import Group, Section, make_picture_tiles
from tutelage.explain.subject import Subject
from tutelage.report.pictures import COLORS, LINE_COLOR, TEXT_COLOR, shorten_name
from tutelage.report.vector import encode_figure

TEMPERATURES = (1, 2, 5, 10, 100)
MAX_BARS = 10  # classes with bars
COLUMN_WIDTH, BAR_HEIGHT, HEAD_HEIGHT = 1.25, 0.22, 0.5  # inches
PITCH = 1.4  # from one column to the next, in probabilities
NAMED_SHARE = 0.005  # smaller probabilities have no number
READING = (
    "Hard is what is left when only the likeliest class counts; the other columns are the probabilities after the "
    "logits are divided by the temperature T. A higher T shows which wrong classes the network finds similar, which is "
    "what a student learns from its teacher beyond the label; at T = 100 hardly anything is left of it."
)


def show_soft_labels(subject: Subject) -> list[Section]:
    """Return the section on soft labels."""
    groups = []
    for tile, logits in zip(make_picture_tiles(subject), subject.logits, strict=True):
        columns = soften(logits)
        shown = choose_classes(columns["T = 1"])
        figure = draw_bars([shorten_name(subject.classes[each]) for each in shown], columns, shown)
        alt = f"Probabilities of {len(shown)} classes, hard and at T = {', '.join(map(str, TEMPERATURES))}."
        groups.append(Group(tile, figure=encode_figure(figure), alt=alt))
    return [Section("Soft labels", READING, groups=groups)]


def soften(logits: Tensor) -> dict[str, np.ndarray]:
    """Return the probabilities (C,) of logits (C,): of the hard label, and at each temperature, by their titles."""
    hard = torch.nn.functional.one_hot(logits.argmax(), len(logits)).float()
    soft = {f"T = {temperature}": (logits / temperature).softmax(dim=0) for temperature in TEMPERATURES}
    return {title: values.numpy() for title, values in {"hard": hard, **soft}.items()}


def choose_classes(probabilities: np.ndarray) -> np.ndarray:
    """Return the classes that get bars: all of a few, in their order; of many the likeliest, the likeliest first."""
    if len(probabilities) <= MAX_BARS:
        return np.arange(len(probabilities))
    return np.argsort(-probabilities, kind="stable")[:MAX_BARS]


def draw_bars(names: Sequence[str], columns: Mapping[str, np.ndarray], shown: np.ndarray) -> Figure:
    """Draw probabilities as bars: a row for each class, side by side for each column."""
    size = (COLUMN_WIDTH * len(columns) + 0.8, BAR_HEIGHT * len(names) + HEAD_HEIGHT)
    figure, axes = plt.subplots(figsize=size)
    rows = np.arange(len(shown))
    for number, (title, values) in enumerate(columns.items()):
        left, shares = number * PITCH, values[shown]
        axes.barh(rows, shares, left=left, color=COLORS[0], height=0.66)
        axes.axvline(left, color=LINE_COLOR, linewidth=0.8)
        axes.text(left, -0.9, title, fontsize=9, color=TEXT_COLOR)
        for row, share in enumerate(shares.tolist()):
            if share >= NAMED_SHARE:
                axes.text(left + share + 0.03, row, f"{share:.0%}", va="center", fontsize=7, color=TEXT_COLOR)
    axes.set(xlim=(0, PITCH * len(columns)), ylim=(len(shown) - 0.4, -0.6), xticks=[], yticks=rows)
    axes.set_yticklabels(names, fontsize=8)
    axes.tick_params(length=0, colors=TEXT_COLOR)
    axes.spines[:].set_visible(False)
    return figure
