"""Small drawings over the confidence of predictions, as SVG within a page: histograms and reliability diagrams."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tutelage.report.answers import Bins
from tutelage.terminal.intervals import format_percent

MIN_BIN_IMAGES = 10  # the precision of fewer images says little and is drawn faint
MIN_RADIUS, MAX_RADIUS = 2.5, 6.5  # of dots; the fullest bin has the largest one
X_STEP = 0.2  # between ticks
Y_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)
MAX_Y_TICKS = 5
LEFT, TOP, WIDTH, HEIGHT, MARGIN = 46, 10, 250, 160, 40  # of the field within the drawing, in its own units

CALIBRATION_CAPTION = (
    "How often answers are right (upwards) by how confident they are (to the right). On the dashed line they are right "
    "as often as they claim; below it they are too sure of themselves. A larger dot is more images, a faint one fewer "
    f"than {MIN_BIN_IMAGES}."
)


@dataclass(frozen=True)
class BarPart:
    """A part of a bar, from ``x`` to ``x_end`` and from ``y`` to ``y_end``."""

    x: float
    x_end: float
    y: float
    y_end: float
    kind: Literal["right", "wrong", "unknown"]
    title: str


@dataclass(frozen=True)
class Dot:
    """A dot at ``x``, ``y``; a faint one says little."""

    x: float
    y: float
    radius: float
    is_faint: bool
    title: str


@dataclass(frozen=True)
class Panel:
    """A drawing over confidence, of shares from 0 upwards.

    Attributes:
        heading: above it.
        alt: what it says, for readers that do not see it.
        low: the lowest confidence, at the left; at the right is 1.
        high: the largest share, at the top.
        bars: of a histogram.
        dots: of a reliability diagram, with a line that joins those that are not faint, and the diagonal.
    """

    heading: str
    alt: str
    low: float
    high: float
    bars: Sequence[BarPart] = ()
    dots: Sequence[Dot] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return LEFT + WIDTH + 10, TOP + HEIGHT + MARGIN

    @property
    def field(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what is drawn in."""
        return LEFT, TOP, LEFT + WIDTH, TOP + HEIGHT

    def x(self, value: float) -> float:
        """Return where a confidence is."""
        return round(LEFT + WIDTH * (value - self.low) / (1 - self.low), 2)

    def y(self, value: float) -> float:
        """Return where a share is."""
        return round(TOP + HEIGHT * (1 - value / self.high), 2)

    @property
    def x_ticks(self) -> list[float]:
        """The confidences that are named."""
        return [n * X_STEP for n in range(math.ceil(self.low / X_STEP - 1e-9), round(1 / X_STEP) + 1)]

    @property
    def y_ticks(self) -> list[float]:
        """The shares that are named."""
        step = next((step for step in Y_STEPS if self.high / step <= MAX_Y_TICKS + 1e-9), Y_STEPS[-1])
        return [n * step for n in range(int(self.high / step + 1e-9) + 1)]

    @property
    def path(self) -> str:
        """The points of the line that joins dots."""
        return " ".join(f"{self.x(dot.x)},{self.y(dot.y)}" for dot in self.dots if not dot.is_faint)


def lowest_confidence(all_counts: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the left edge of the first bin with images in any of several (edges, counts)."""
    edges = [float(edges[bins[0]]) for edges, counts in all_counts if len(bins := np.flatnonzero(counts))]
    return min(edges, default=0.0)


def draw_reliability(heading: str, bins: Bins, low: float) -> Panel:
    """Return a reliability diagram: the share of correct predictions over their confidence.

    A perfectly calibrated network would lie on the diagonal (Guo et al. 2017).
    """
    middles, dots = (bins.edges[:-1] + bins.edges[1:]) / 2, []
    for x, known, right in zip(middles.tolist(), bins.known.tolist(), bins.right.tolist(), strict=True):
        if known:
            radius = max(MIN_RADIUS, MAX_RADIUS * (known / bins.known.max()) ** 0.25)
            title = f"about {x:.0%} confident: {format_percent(right / known)} of {known:,} images are right"
            dots.append(Dot(x, right / known, radius, known < MIN_BIN_IMAGES, title))
    return Panel(heading, f"Reliability diagram: {'; '.join(dot.title for dot in dots)}.", low, 1.0, dots=dots)


def draw_histogram(heading: str, bins: Bins, counts: np.ndarray, low: float, high: float) -> Panel:
    """Return a histogram of confidence, as shares of all images.

    Each bar stacks, from below, correct predictions, wrong ones, and those whose true class is unknown.

    Args:
        heading: above it.
        bins: the images whose true class is known.
        counts: (B,) all images of each bin.
        low: the lowest confidence that is drawn.
        high: the largest share.
    """
    total, bars = max(1, int(counts.sum())), []
    for number, count in enumerate(counts.tolist()):
        known, right, bottom = int(bins.known[number]), int(bins.right[number]), 0.0
        x, x_end = float(bins.edges[number]), float(bins.edges[number + 1])
        said = f"{right:,} right, {known - right:,} wrong, {count - known:,} unknown" if known else "true class unknown"
        title = f"{x:.0%} to {x_end:.0%} confident: {count:,} images; {said}"
        parts: tuple[tuple[Literal["right", "wrong", "unknown"], int], ...]
        parts = (("right", right), ("wrong", known - right), ("unknown", count - known))
        for kind, part in parts:
            if part:
                bars.append(BarPart(x, x_end, bottom, bottom + part / total, kind, title))
                bottom += part / total
    return Panel(heading, f"Histogram of the confidence of {total:,} images.", low, high, bars=bars)
